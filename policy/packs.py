"""Packs: patterns that any policy can pull in by name (`blocked_paths: [{use: secrets}]`), each with its reason.

Data alone. What is closed entirely can be neither read nor changed, what is closed for writing only read.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

Extent = Literal["all", "writing"]


@attrs.frozen
class Closing:
    """One row of a pack."""

    pattern: str
    why: str = attrs.field(kw_only=True)
    close: Extent = attrs.field(kw_only=True, default="all")


PACKS: Final[Mapping[str, tuple[Closing, ...]]] = MappingProxyType(
    {
        "persistence": (
            Closing("~/.*", why="start files, settings and secrets of the user's programs"),
            Closing("~/bin/**", why="programs that the user's shell finds first"),
            Closing("**/.git/config", why="git runs programs that it names", close="writing"),
            Closing("**/.git/hooks/**", why="git runs what lies here", close="writing"),
        ),
        "secrets": (Closing("**/.ssh/**", why="keys"), Closing("**/.env", why="secrets of a project")),
    }
)
