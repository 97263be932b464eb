"""One row of a pack: a pattern, what it closes, and the reason a refused call is told."""

from __future__ import annotations

from typing import Literal

import attrs

Extent = Literal["all", "writing"]  # all: neither read nor changed; writing: read, never changed


@attrs.frozen
class Closing:
    """A closed pattern with its reason."""

    pattern: str
    why: str = attrs.field(kw_only=True)
    close: Extent = attrs.field(kw_only=True, default="all")


def sealed(why: str, *patterns: str) -> tuple[Closing, ...]:
    """Rows that are closed entirely, for one reason."""
    return tuple(Closing(pattern, why=why, close="all") for pattern in patterns)


def guarded(why: str, *patterns: str) -> tuple[Closing, ...]:
    """Rows that are closed for writing only, for one reason."""
    return tuple(Closing(pattern, why=why, close="writing") for pattern in patterns)
