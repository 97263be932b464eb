"""Packs: patterns that any policy can pull in by name (`blocked_paths: [{use: secrets}]`), each with its reason."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from policy.packs.closing import Closing
from policy.packs.persistence import PERSISTENCE
from policy.packs.secrets import SECRETS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from policy.rules import ClosedPath

PACKS: Final[Mapping[str, tuple[Closing, ...]]] = MappingProxyType({"persistence": PERSISTENCE, "secrets": SECRETS})


def rows_of(entry: str | ClosedPath) -> Iterator[tuple[str, Closing]]:
    """What an entry of `blocked_paths` closes, each with the pack that it comes from ("" for none)."""
    if isinstance(entry, str):
        yield "", Closing(entry, why="")
    elif entry.path is not None:
        yield "", Closing(entry.path, why=entry.why, close=entry.close)
    elif entry.use is not None:
        for row in PACKS[entry.use]:
            yield entry.use, row
