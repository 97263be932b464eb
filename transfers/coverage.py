"""Which bytes of a file went out, in whatever order they were asked for. Pure."""

from __future__ import annotations

import attrs

MAX_GAPS = 256
"""A client that asks for more scattered pieces than this gets them, but the smallest is not remembered."""


@attrs.define(eq=False)
class Coverage:
    """The bytes 0 to *size_bytes* of a file, and which of them were covered."""

    size_bytes: int
    _spans: list[tuple[int, int]] = attrs.field(factory=list, init=False)

    @property
    def covered_bytes(self) -> int:
        """How many bytes are covered."""
        return sum(stop - start for start, stop in self._spans)

    @property
    def next_offset(self) -> int:
        """The first byte that is not covered."""
        return self._spans[0][1] if self._spans and self._spans[0][0] == 0 else 0

    @property
    def is_whole(self) -> bool:
        """Whether every byte is covered; of an empty file none is missing."""
        return self.covered_bytes == self.size_bytes

    def add(self, start: int, stop: int) -> None:
        """Cover the bytes from *start* up to, not including, *stop*."""
        apart = [span for span in self._spans if span[1] < start or stop < span[0]]
        touched = [span for span in self._spans if not (span[1] < start or stop < span[0])]
        merged = (min([start, *(s for s, _ in touched)]), max([stop, *(e for _, e in touched)]))
        self._spans = sorted([*apart, merged])
        if len(self._spans) > MAX_GAPS:
            self._spans.remove(min(self._spans, key=lambda span: span[1] - span[0]))
