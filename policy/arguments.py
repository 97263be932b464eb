"""The gates of one rule that an argv must pass, each a function that denies or says nothing.

Order: how many words, which subcommand, which arguments. Confirmation is no gate of these: it is asked by
`command.py` when all of them are passed.

Programs read options generously: `--output=x`, `--outp x`, `-ox` and `-ro x` may all mean `--output x`. A
check that knows less than the program is a hole, and policy cannot know every program's parser, so in doubt
it denies: a proper beginning of a denied long option is that option, and a denied letter is denied anywhere
in a bundle of letters. `--` ends nothing here, since not every program honours it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policy.decision import Deny, shown
from policy.known import denied_args_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policy.rules import CommandRule

_NUMBER_FLAG = re.compile(r"-[0-9]+")
_LETTER_OPTION_LENGTH = 2  # "-o"


def first_denial(key: str, rule: CommandRule, words: tuple[str, ...]) -> Deny | None:
    """Return the denial of the first gate of *rule* that *words* do not pass; *key* names the rule."""
    return (
        _too_many(key, rule, words)
        or _outside_prefixes(key, rule, words)
        or _denied_argument(key, rule, words)
        or _unlisted_flag(key, rule, words)
    )


def _too_many(key: str, rule: CommandRule, words: tuple[str, ...]) -> Deny | None:
    if len(words) <= rule.max_args:
        return None
    return Deny(
        rule=f"{key}.max_args",
        reason=f"argv has {len(words)} words, the program's name included; at most {rule.max_args} are "
        "allowed: split the work into several calls.",
    )


def _outside_prefixes(key: str, rule: CommandRule, words: tuple[str, ...]) -> Deny | None:
    prefixes = [tuple(prefix.split()) for prefix in rule.allowed_prefixes]
    if not prefixes or any(words[1 : 1 + len(prefix)] == prefix for prefix in prefixes):
        return None
    listed = ", ".join(" ".join(prefix) for prefix in prefixes)
    return Deny(
        rule=f"{key}.allowed_prefixes",
        reason=f"{_first_words(words, prefixes)}: the words after {shown(words[0])} must begin with one of: {listed}.",
    )


def _first_words(words: tuple[str, ...], prefixes: list[tuple[str, ...]]) -> str:
    if len(words) == 1:
        return f"{shown(words[0])} alone is not allowed"
    if words[1].startswith("-") and any(prefix[0] in words[2:] for prefix in prefixes):
        return f"Option {shown(words[1])} stands in front of the subcommand, which is not allowed"
    longest = max(len(prefix) for prefix in prefixes if prefix)
    same_start = any(prefix[0] == words[1] for prefix in prefixes)
    return f"{shown(' '.join(words[1 : 1 + longest] if same_start else words[1:2]))} is not allowed"


def _denied_argument(key: str, rule: CommandRule, words: tuple[str, ...]) -> Deny | None:
    entries, built_in = denied_args_of(rule)
    found = find_denied(words, entries)
    if found is None:
        return None
    argument, entry = found
    source = "the broker's own list for this program" if built_in else "the rule"
    is_letter = re.fullmatch(r"-[^-]", entry.split()[-1])
    return Deny(
        rule=f"{key}.denied_args",
        reason=f"Argument {shown(argument)} is denied: {source} denies {shown(entry)} in every spelling "
        "(abbreviated, with a value, in a bundle of letters). Leave it out"
        f"{'; write other letters and their values as words of their own.' if is_letter else '.'}",
    )


def _unlisted_flag(key: str, rule: CommandRule, words: tuple[str, ...]) -> Deny | None:
    if rule.allowed_flags is None:
        return None
    flag = find_unlisted(words, rule.allowed_flags)
    if flag is None:
        return None
    return Deny(
        rule=f"{key}.allowed_flags",
        reason=f"Option {shown(flag)} is not one of the allowed ones, in exact spelling, one a word: "
        f"{', '.join(rule.allowed_flags) or 'none'}.",
    )


def find_denied(argv: Sequence[str], entries: Sequence[str]) -> tuple[str, str] | None:
    """Return the first argument of *argv* that an entry denies, with that entry.

    An entry of several words (`grep -O`) denies its last word after the subcommand that its first words
    name. Where an option stands before the subcommand, nobody knows which one it is: the entry applies.
    """
    for entry in entries:
        *scope, option = entry.split()
        for argument in _within(argv, scope):
            if _denies(option, argument):
                return argument, entry
    return None


def _within(argv: Sequence[str], scope: Sequence[str]) -> Sequence[str]:
    """Return the arguments that an entry with these first words looks at."""
    words = argv[1 : 1 + len(scope)]
    if list(words) == list(scope):
        return argv[1 + len(scope) :]
    return argv[1:] if any(word.startswith("-") for word in words) else ()


def _denies(option: str, argument: str) -> bool:
    if option.startswith("--"):
        return _is_long(option, argument)
    if option.startswith("-") and len(option) == _LETTER_OPTION_LENGTH:
        return argument.startswith("-") and not argument.startswith("--") and option[1] in argument
    if option.startswith("-"):  # `-exec`: a word with one dash, as find has them
        return argument == option or argument.startswith(f"{option}=")
    return argument == option


def _is_long(option: str, argument: str) -> bool:
    name = argument.partition("=")[0]
    return len(name) > len("--") and option.startswith(name)


def find_unlisted(argv: Sequence[str], flags: Sequence[str]) -> str | None:
    """Return the first argument that begins with a dash and is none of *flags*.

    Exact spellings, no abbreviations and no bundles. A listed `--x` admits `--x=value`; `-NUM` admits `-20`;
    a trailing `*` admits any ending. `-` (standard input) and `--` are no flags.
    """
    for argument in argv[1:]:
        is_flag = argument.startswith("-") and argument not in {"-", "--"}
        if is_flag and not any(_admits(flag, argument) for flag in flags):
            return argument
    return None


def _admits(flag: str, argument: str) -> bool:
    if flag == "-NUM":
        return _NUMBER_FLAG.fullmatch(argument) is not None
    if flag.endswith("*"):
        return argument.startswith(flag[:-1])
    return argument == flag or (flag.startswith("--") and argument.startswith(f"{flag}="))
