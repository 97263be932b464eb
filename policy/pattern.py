"""One path pattern, and whether it matches the components of a path.

`**` is any number of components, none included; within a component `*` is any characters and `?` is one.
Case is exact, and a component is never decoded or normalised: it is matched as the kernel will read it.
Matching takes time in proportion to pattern times path, whatever they hold.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs

from policy.grammar import check_pattern

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ANY_DEPTH = "**"


def components(path: str) -> tuple[str, ...]:
    """Split a path or a pattern; doubled slashes and `.` mean nothing, as for the kernel."""
    return tuple(part for part in path.split("/") if part not in {"", "."})


def compile_pattern(name: str, pattern: str, home: str) -> tuple[str, ...]:
    """Return the components of *pattern* with `~` expanded; *name* is its key, for the error.

    Raises:
        ValueError: the pattern would match nothing, or not what it seems to.
    """
    check_pattern(name, pattern)
    parts = components(pattern)
    return (*components(home), *parts[1:]) if pattern.startswith("~") else parts


def matched_depths(pattern: Sequence[str], path: Sequence[str]) -> Iterator[int]:
    """Yield every n for which *pattern* matches the first n components of *path*."""
    at = _closure(pattern, {0})  # positions in the pattern that the components so far may have reached
    for depth in range(len(path) + 1):
        if len(pattern) in at:
            yield depth
        if depth < len(path):
            at = _closure(pattern, _step(pattern, at, path[depth]))


def _step(pattern: Sequence[str], at: set[int], name: str) -> set[int]:
    reached = set()
    for position in at - {len(pattern)}:
        if pattern[position] == ANY_DEPTH:
            reached.add(position)
        elif matches_name(pattern[position], name):
            reached.add(position + 1)
    return reached


def _closure(pattern: Sequence[str], at: set[int]) -> set[int]:
    """Add the positions that are reached for free, because `**` may be no component at all."""
    reached = set(at)
    for position in range(len(pattern)):
        if position in reached and pattern[position] == ANY_DEPTH:
            reached.add(position + 1)
    return reached


def matches_name(pattern: str, name: str) -> bool:
    """Match one component. Only the last `*` is ever tried again, so this is never exponential."""
    p = n = 0
    star = retry = -1
    while n < len(name):
        if p < len(pattern) and pattern[p] == "*":
            star, retry = p, n
            p += 1
        elif p < len(pattern) and pattern[p] in {"?", name[n]}:
            p, n = p + 1, n + 1
        elif star >= 0:
            retry += 1
            p, n = star + 1, retry
        else:
            return False
    return all(c == "*" for c in pattern[p:])


def is_glob(part: str) -> bool:
    """Tell whether a component of a pattern matches more than itself."""
    return "*" in part or "?" in part


@attrs.frozen(kw_only=True)
class Pattern:
    """A compiled pattern, and how the file spells it.

    `needs` are its components without wildcards: a path that lacks one of them cannot match, which settles most
    patterns at the price of a look at a set. `shapes` are beginning and end of the components with wildcards, each of
    which some component must have. `pack` and `why` say where a closed pattern comes from and what for;
    they may be empty.
    """

    text: str
    parts: tuple[str, ...]
    pack: str = ""
    why: str = ""
    needs: frozenset[str] = attrs.field(init=False)
    shapes: tuple[tuple[str, str], ...] = attrs.field(init=False)

    @needs.default
    def _literal_components(self) -> frozenset[str]:
        return frozenset(part for part in self.parts if not is_glob(part))

    @shapes.default
    def _ends_of_globs(self) -> tuple[tuple[str, str], ...]:
        globs = (re.split(r"[*?]", part) for part in self.parts if part != ANY_DEPTH and is_glob(part))
        return tuple((texts[0], texts[-1]) for texts in globs)

    def may_match(self, names: frozenset[str]) -> bool:
        """Tell whether the pattern can match a path with these components; most cannot, which costs little to see."""
        return self.needs <= names and all(
            any(name.startswith(beginning) and name.endswith(end) for name in names) for beginning, end in self.shapes
        )
