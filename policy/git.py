"""The options that every git gets, because the configuration of a repository names programs that it would run.

A variable reaches only keys whose names are known (`environment.py`). For drivers of a free name (`diff.NAME.command`,
`diff.NAME.textconv`), and for what git runs in submodules, where it forgets the variables, there are options alone.
They are put behind the subcommand, in front of what was asked; what would take them back is denied (`known.py`).
No shell is needed for any of this: a program that the session may run is enough, git itself with an alias for one.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NO_PROGRAMS: Final = ("--no-ext-diff", "--no-textconv")
_NO_SUBMODULES: Final = "--ignore-submodules=dirty"  # a submodule's commit is looked at, and nothing is run in it

INSERTED: Final[Mapping[tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
    {
        ("annotate",): _NO_PROGRAMS,
        ("blame",): _NO_PROGRAMS,
        ("diff",): (*_NO_PROGRAMS, _NO_SUBMODULES),
        ("diff-files",): (*_NO_PROGRAMS, _NO_SUBMODULES),
        ("diff-index",): (*_NO_PROGRAMS, _NO_SUBMODULES),
        ("diff-tree",): _NO_PROGRAMS,
        ("format-patch",): _NO_PROGRAMS,
        ("grep",): ("--no-textconv",),
        ("log",): _NO_PROGRAMS,
        ("range-diff",): _NO_PROGRAMS,
        ("reflog", "show"): _NO_PROGRAMS,
        ("show",): _NO_PROGRAMS,
        ("stash", "list"): _NO_PROGRAMS,
        ("stash", "show"): _NO_PROGRAMS,
        ("status",): (_NO_SUBMODULES,),
        ("whatchanged",): _NO_PROGRAMS,
    }
)
"""Options by the words of the subcommands that take them; a test asks the real git."""

_TAKE_A_VALUE: Final = frozenset(("-C", "-c", "--git-dir", "--work-tree", "--namespace", "--config-env"))


def hardened(argv: tuple[str, ...]) -> tuple[str, ...]:
    """Return the command line of a git with the options that its subcommand gets."""
    at = 1 + sum(1 for _ in _global_options(argv[1:]))
    for length in (2, 1):
        options = INSERTED.get(argv[at : at + length])
        if options is not None:
            return (*argv[: at + length], *options, *argv[at + length :])
    return argv


def _global_options(words: tuple[str, ...]) -> Iterator[str]:
    """The words in front of the subcommand, which only a rule without `allowed_prefixes` lets pass."""
    value_follows = False
    for word in words:
        if not value_follows and not word.startswith("-"):
            return
        value_follows = not value_follows and word in _TAKE_A_VALUE
        yield word
