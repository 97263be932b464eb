"""The path rules as regular expressions, for whoever walks a tree and meets a hundred thousand paths.

`decide_path` gives the reason and is what counts where one path is decided. Here is the same decision as data: it
can be handed to a process that holds nothing of ours, and takes microseconds. A test holds the two together.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

import attrs

from policy.pattern import ANY_DEPTH

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from policy.pattern import Pattern

_Branch: TypeAlias = "dict[str, _Branch]"

NEVER = "(?!)"
_ANY_COMPONENTS = "(?:/[^/]+)*"
_END_OF_COMPONENT = r"(?=/|\Z)"
_END = ""  # the piece after the last one


@attrs.frozen(kw_only=True)
class TreeFilter:
    """Expressions over an absolute, normal path; the root directory is the empty text.

    A path is permitted when `allowed` matches all of it, `blocked_from_root` does not match its beginning and
    `blocked_anywhere` is found nowhere in it. It may be changed when the same is true of `guarded_from_root` and
    `guarded_anywhere`, and written when, moreover, no part of its last name after a dot is one of
    `blocked_extensions` (lower case).

    Where `opened` matches the beginning of a path, the expressions `_from_root` do not count, and those `_anywhere`
    are searched for only from the end of that match on.

    Beneath a path that nothing closes, only names are closed that `last_names` matches, with a slash in front: a walk
    that comes from above need not ask the others.
    """

    allowed: str
    blocked_from_root: str
    blocked_anywhere: str
    guarded_from_root: str
    guarded_anywhere: str
    opened: str
    last_names: str
    blocked_extensions: tuple[str, ...]


def tree_filter(
    *,
    allowed: Iterable[Pattern],
    blocked: tuple[Pattern, ...],
    guarded: tuple[Pattern, ...],
    opened: Iterable[Pattern],
    blocked_extensions: Iterable[str],
) -> TreeFilter:
    """Return the rules of `PathRules` as expressions."""
    stems = sorted((_stem(pattern.parts) for pattern in opened), key=len, reverse=True)
    return TreeFilter(
        allowed=_any_of(_whole(pattern.parts) for pattern in allowed),
        blocked_from_root=_from_root(blocked),
        blocked_anywhere=_anywhere(blocked),
        guarded_from_root=_from_root(guarded),
        guarded_anywhere=_anywhere(guarded),
        opened=_beginning(stems),  # the innermost first
        last_names=_beginning(_stem(pattern.parts)[-1:] for pattern in (*blocked, *guarded)),
        blocked_extensions=tuple(sorted(blocked_extensions)),
    )


def _from_root(patterns: Iterable[Pattern]) -> str:
    stems = (_stem(pattern.parts) for pattern in patterns if pattern.parts[:1] != (ANY_DEPTH,))
    return _beginning(stems)


def _anywhere(patterns: Iterable[Pattern]) -> str:
    return _beginning(_stem(pattern.parts[1:]) for pattern in patterns if pattern.parts[:1] == (ANY_DEPTH,))


def _stem(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The pattern without the `**` at its end: what is beneath a blocked path is blocked anyway."""
    while parts and parts[-1] == ANY_DEPTH:
        parts = parts[:-1]
    return parts


def _whole(parts: tuple[str, ...]) -> str:
    stem = _stem(parts)
    return _components(stem) + (r"(?:/[\s\S]*)?" if stem != parts else "")


def _beginning(patterns: Iterable[tuple[str, ...]]) -> str:
    root: _Branch = {}
    for parts in patterns:
        branch = root
        for piece in _pieces(parts):
            branch = branch.setdefault(piece, {})
        branch[_END] = {}
    if _END in root:
        return ""  # `/**` or `**`: everything
    return f"{_spelled(root)}{_END_OF_COMPONENT}" if root else NEVER


def _spelled(branch: _Branch) -> str:
    """One expression for all that grows from here: what patterns have in common is looked at once.

    There are hundreds of patterns, and nearly all names differ from all of them in their first character.
    """
    spelled = ""
    while len(branch) == 1:
        ((piece, branch),) = branch.items()
        spelled += piece
    others = [f"{piece}{_spelled(below)}" for piece, below in branch.items()]
    return f"{spelled}(?:{'|'.join(others)})" if others else spelled


def _any_of(expressions: Iterable[str]) -> str:
    return f"(?:{'|'.join(expressions) or NEVER})"


def _components(parts: tuple[str, ...]) -> str:
    return "".join(_pieces(parts))


def _pieces(parts: tuple[str, ...]) -> Iterator[str]:
    """The expression of a pattern, piece by piece: a character, a wildcard, any number of components."""
    before = ""
    for part in parts:
        if part != ANY_DEPTH:
            yield "/"
            yield from ({"*": "[^/]*", "?": "[^/]"}.get(c, re.escape(c)) for c in re.sub(r"\*+", "*", part))
        elif before != ANY_DEPTH:  # two in a row say no more than one
            yield _ANY_COMPONENTS
        before = part
