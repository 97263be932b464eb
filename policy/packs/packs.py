"""Packs: patterns that any policy can pull in by name (`blocked_paths: [{use: secrets}]`), each with its reason."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from policy.packs.closing import Closing
from policy.packs.persistence import PERSISTENCE
from policy.packs.secrets import SECRETS

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKS: Final[Mapping[str, tuple[Closing, ...]]] = MappingProxyType({"persistence": PERSISTENCE, "secrets": SECRETS})
