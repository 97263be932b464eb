"""How much one session may write through its files and transfers: taken before, given back when it came to nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from transfers.refusals import QuotaExceeded


@attrs.define(eq=False, kw_only=True)
class Quota:
    """Owns one count. It knows no file: who writes says how much, beforehand, and what came of it."""

    limit_bytes: int
    used_bytes: int = attrs.field(default=0, init=False)

    def take(self, size_bytes: int) -> None:
        """Count *size_bytes* as written. Raises: QuotaExceeded, and nothing is counted."""
        if self.used_bytes + size_bytes > self.limit_bytes:
            raise QuotaExceeded(size_bytes, self.used_bytes, self.limit_bytes)
        self.used_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Say that *size_bytes* of what was taken are not on the disk."""
        self.used_bytes -= size_bytes

    @contextmanager
    def taken(self, size_bytes: int) -> Iterator[None]:
        """Take *size_bytes* for the work inside, which writes all of them, or fails and has written none."""
        self.take(size_bytes)
        try:
            yield
        except BaseException:
            self.give_back(size_bytes)
            raise
