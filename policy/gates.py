"""The gates of one rule that an argv must pass, each a function that denies or says nothing.

Order: how many words, which subcommand, which arguments. Confirmation is no gate of these: it is asked by
`command.py` when all of them are passed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policy.arguments import find_denied, find_unlisted
from policy.decision import Deny, shown
from policy.known import denied_args_of

if TYPE_CHECKING:
    from policy.rules import CommandRule


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
