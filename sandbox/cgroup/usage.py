"""Usage of a control group, as values, and how its files are read. Pure."""

from __future__ import annotations

import attrs


def shown_size(size_bytes: int) -> str:
    """Return a size as people read it."""
    return f"{size_bytes / (1 << 20):.6g} MiB"


@attrs.frozen(kw_only=True)
class Usage:
    """Usage of all members of a group so far, the gone ones included. None: this kernel does not tell."""

    memory_peak_bytes: int | None
    cpu_user_us: int
    cpu_system_us: int
    oom_kills: int  # processes killed for memory; a plain SIGKILL does not count


@attrs.frozen(kw_only=True)
class CommandUsage:
    """Usage of a command and all it started, up to its end. `killed_by`: the memory limit that ended it, in words."""

    memory_peak_bytes: int | None
    cpu_user_ms: int
    cpu_system_ms: int
    oom_killed: bool
    killed_by: str | None


def read_flat(text: str) -> dict[str, int]:
    """Read lines of a name and a number."""
    return {name: int(value) for name, _, value in (line.partition(" ") for line in text.splitlines())}
