"""Does an argv contain an argument that a rule denies, or a flag that it does not list?

Programs read options generously: `--output=x`, `--outp x`, `-ox` and `-ro x` may all mean `--output x`. A
check that knows less than the program is a hole, and policy cannot know every program's parser, so in doubt
it denies: a proper beginning of a denied long option is that option, and a denied letter is denied anywhere
in a bundle of letters. `--` ends nothing here, since not every program honours it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_NUMBER_FLAG = re.compile(r"-[0-9]+")
_LETTER_OPTION_LENGTH = 2  # "-o"


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
