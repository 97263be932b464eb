"""Faults of a configuration file, as values, and the one exception that carries them all.

Owns how a fault reads: `file:line: key: message; did you mean other?`, one a line, whatever bytes the file
held. Knows neither YAML nor the settings.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, TypeAlias

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list positions from the top of a file down: ("policy", "allowed_paths", 2)."""

SHOWN_CHARACTERS = 80  # of one value or key: a fault stays a line that a terminal can show


@attrs.frozen(kw_only=True)
class Fault:
    """One thing to correct, with the place to correct it. `nearest` is the known key that was perhaps meant."""

    file: str
    line: int
    path: KeyPath
    message: str
    nearest: str | None = None

    def __str__(self) -> str:
        key = f" {dotted(self.path)}:" if self.path else ""
        hint = f"; did you mean {self.nearest}?" if self.nearest else ""
        return f"{printable(self.file, 1000)}:{self.line}:{key} {self.message}{hint}"


class ConfigFaults(Exception):
    """The configuration cannot be used; `faults` names everything that is wrong with it, not only the first."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(sorted(faults, key=lambda fault: (fault.file, fault.line)))
        super().__init__(self.faults)

    def __str__(self) -> str:
        return "\n".join(map(str, self.faults))


def dotted(path: KeyPath) -> str:
    """Write a key path as people do: `policy.allowed_paths[2]`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + printable(step)
    return text


def printable(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """Make text from a file safe to show: control and direction characters escaped, long text cut."""
    if len(text) > limit:
        text = f"{text[:limit]}... ({len(text)} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def nearest(wrong: str, known: Iterable[str]) -> str | None:
    """Find the known key that `wrong` most likely stands for, in any case and with `-` for `_`."""
    spelled = wrong.casefold().replace("-", "_")
    found = difflib.get_close_matches(spelled, list(known), n=1)
    return found[0] if found else None
