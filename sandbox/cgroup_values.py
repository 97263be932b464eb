"""What a control group is told and what it says, as values: limits, usage, and the texts of its files. Pure."""

from __future__ import annotations

import mmap

import attrs

CPU_PERIOD_US = 100_000
CPU_QUOTA_MIN_US = 1000  # the kernel takes none below


def _at_least_one(_owner: object, field: attrs.Attribute[int | None], value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{field.name} must be at least 1: {value}")


def _not_negative(_owner: object, field: attrs.Attribute[int | None], value: int | None) -> None:
    if value is not None and value < 0:
        raise ValueError(f"{field.name} must not be negative: {value}")


def _positive(_owner: object, field: attrs.Attribute[float | None], value: float | None) -> None:
    if value is not None and value <= 0:
        raise ValueError(f"{field.name} must be more than 0: {value}")


def _weight(_owner: object, field: attrs.Attribute[int | None], value: int | None) -> None:
    if value is not None and not 1 <= value <= 10_000:
        raise ValueError(f"{field.name} must be from 1 to 10000: {value}")


@attrs.frozen(kw_only=True)
class GroupLimits:
    """What all members together may use; None leaves it to the group above.

    `kill_together`: when memory runs out the whole group dies instead of its biggest process.
    """

    memory_max_bytes: int | None = attrs.field(default=None, validator=_at_least_one)
    swap_max_bytes: int | None = attrs.field(default=None, validator=_not_negative)
    pids_max: int | None = attrs.field(default=None, validator=_at_least_one)
    cpu_max_cores: float | None = attrs.field(default=None, validator=_positive)
    io_weight: int | None = attrs.field(default=None, validator=_weight)
    kill_together: bool = False

    def files(self) -> tuple[tuple[str, str], ...]:
        """Name each file that sets one of these, and what it reads back as."""
        wanted = (
            ("memory.max", _pages(self.memory_max_bytes)),
            ("memory.swap.max", _pages(self.swap_max_bytes)),
            ("memory.oom.group", "1" if self.kill_together else None),
            ("pids.max", None if self.pids_max is None else str(self.pids_max)),
            ("cpu.max", _quota(self.cpu_max_cores)),
            ("io.weight", None if self.io_weight is None else f"default {self.io_weight}"),
        )
        return tuple((name, value) for name, value in wanted if value is not None)


def _pages(size_bytes: int | None) -> str | None:
    """Round down as the kernel does, or reading back would give another number."""
    return None if size_bytes is None else str(size_bytes // mmap.PAGESIZE * mmap.PAGESIZE)


def _quota(cores: float | None) -> str | None:
    if cores is None:
        return None
    return f"{max(CPU_QUOTA_MIN_US, round(cores * CPU_PERIOD_US))} {CPU_PERIOD_US}"


@attrs.frozen(kw_only=True)
class Usage:
    """What the members of a group have used so far, the gone ones included. None: this kernel does not tell."""

    memory_peak_bytes: int | None
    cpu_us: int
    cpu_throttled_us: int
    oom_kills: int  # processes killed for memory; a plain SIGKILL does not count
    forks_refused: int


def read_flat(text: str) -> dict[str, int]:
    """Read lines of a name and a number."""
    return {name: int(value) for name, _, value in (line.partition(" ") for line in text.splitlines())}
