"""The first of hundreds of patterns that closes a path: a look at its names settles nearly all of them.

What a look cannot settle is matched, in the order of the file.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Self

import attrs

from policy.pattern import ANY_DEPTH, Pattern, is_glob, matched_depths

if TYPE_CHECKING:
    from collections.abc import Iterator


@attrs.frozen
class Candidates:
    """Patterns by what a path must have for them.

    `by_name`: positions of the patterns whose last component is this name. `loose`: of those whose last component has
    wildcards, each with its beginning and its end, which some name of the path must have. `**` does not count.
    """

    patterns: tuple[Pattern, ...]
    by_name: dict[str, tuple[int, ...]]
    loose: tuple[tuple[str, str, int], ...]
    _beginnings: tuple[str, ...]
    _ends: tuple[str, ...]

    @classmethod
    def among(cls, patterns: tuple[Pattern, ...]) -> Self:
        """Sort *patterns* for asking."""
        by_name: defaultdict[str, list[int]] = defaultdict(list)
        loose: list[tuple[str, str, int]] = []
        for number, pattern in enumerate(patterns):
            last = next((part for part in reversed(pattern.parts) if part != ANY_DEPTH), "*")
            if is_glob(last):
                beginning, end = pattern.shapes[-1] if pattern.shapes else ("", "")
                loose.append((beginning, end, number))
            else:
                by_name[last].append(number)
        return cls(
            patterns,
            {name: tuple(numbers) for name, numbers in by_name.items()},
            tuple(loose),
            tuple({beginning for beginning, _, _ in loose if beginning}),
            tuple({end for beginning, end, _ in loose if not beginning}),
        )

    def first_match(self, parts: tuple[str, ...], inside: int) -> tuple[Pattern, int] | None:
        """The first pattern that matches the path or something above it, and at which depth.

        *inside*: so many components lead to an opened directory (see `path.py`); 0: there is none.
        """
        beneath = parts[inside:]
        for pattern in self._that_may_match(frozenset(beneath)):
            if not inside or pattern.parts[:1] == (ANY_DEPTH,):
                for depth in matched_depths(pattern.parts, beneath):
                    return pattern, inside + depth
        return None

    def _that_may_match(self, names: frozenset[str]) -> Iterator[Pattern]:
        numbers = {number for name in names for number in self.by_name.get(name, ())}
        # A path without components is the root directory, which `/**` and `**` match.
        for name in names or ("",):
            if name.endswith(self._ends) or name.startswith(self._beginnings):
                numbers.update(
                    number for beginning, end, number in self.loose if name.startswith(beginning) and name.endswith(end)
                )
        for number in sorted(numbers):
            if self.patterns[number].may_match(names):
                yield self.patterns[number]
