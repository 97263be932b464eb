"""What a control group is told and what it says, as values: limits, usage, and the texts of its files. Pure."""

from __future__ import annotations

import mmap

import attrs

CPU_PERIOD_US = 100_000
CPU_QUOTA_MIN_US = 1000  # the kernel takes none below
FILES = ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max", "io.weight")


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
        values = (
            _pages(self.memory_max_bytes),
            _pages(self.swap_max_bytes),
            "1" if self.kill_together else None,
            None if self.pids_max is None else str(self.pids_max),
            _quota(self.cpu_max_cores),
            None if self.io_weight is None else f"default {self.io_weight}",
        )
        return tuple((name, value) for name, value in zip(FILES, values, strict=True) if value is not None)

    def beyond(self, other: GroupLimits) -> bool:
        """Tell whether these allow more of anything than *other*."""
        return other.widened(self) != other

    def widened(self, other: GroupLimits) -> GroupLimits:
        """Return these limits, raised where *other* is wider; what is limited nowhere here stays so."""
        wider = {
            name: max(mine, theirs)
            for name in _ADDED_UP
            if (mine := getattr(self, name)) is not None and (theirs := getattr(other, name)) is not None
        }
        return attrs.evolve(self, **wider)

    def without_shared(self, session: GroupLimits) -> GroupLimits:
        """Return what of these limits one command needs for itself: time and disk are shared out by the session's."""
        cores, weight = self.cpu_max_cores, self.io_weight
        return attrs.evolve(
            self,
            cpu_max_cores=None if cores == session.cpu_max_cores else cores,
            io_weight=None if weight == session.io_weight else weight,
        )

    def with_room(self, memory_bytes: int, pids: int) -> GroupLimits:
        """Return these limits with room for so much more."""
        memory, tasks = self.memory_max_bytes, self.pids_max
        return attrs.evolve(
            self,
            memory_max_bytes=None if memory is None else memory + memory_bytes,
            pids_max=None if tasks is None else tasks + pids,
        )


# What a group above must have room for, because it counts together; a weight is relative and needs none.
_ADDED_UP = ("memory_max_bytes", "swap_max_bytes", "pids_max", "cpu_max_cores")


def shown_size(size_bytes: int) -> str:
    """Return a size as people read it."""
    return f"{size_bytes / (1 << 20):.6g} MiB"


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
    cpu_user_us: int
    cpu_system_us: int
    cpu_throttled_us: int
    oom_kills: int  # processes killed for memory; a plain SIGKILL does not count
    forks_refused: int


@attrs.frozen(kw_only=True)
class CommandUsage:
    """What a command and all it started used up to its end. `killed_by`: the memory limit that ended it, in words."""

    memory_peak_bytes: int | None
    cpu_user_ms: int
    cpu_system_ms: int
    oom_killed: bool
    killed_by: str | None


def read_flat(text: str) -> dict[str, int]:
    """Read lines of a name and a number."""
    return {name: int(value) for name, _, value in (line.partition(" ") for line in text.splitlines())}
