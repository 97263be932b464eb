"""Limits of what processes may use, as values: told to setrlimit(2) and to control groups. Pure."""

from __future__ import annotations

import mmap

import attrs

KEEPER_BYTES = 64 * 1024 * 1024  # it has about 10 MB of private memory
KEEPER_FILES = 64  # it has about 15 open
CPU_PERIOD_US = 100_000  # of cpu.max, as the kernel has it by default
CPU_QUOTA_MIN_US = 1000  # the kernel takes none below
GROUP_FILES = ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max", "io.weight")


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
class Limits:
    """Limits of a session or command; None leaves what the surroundings have. Swap, cores and weight need a cgroup."""

    memory_max_bytes: int | None = attrs.field(default=None, validator=_at_least_one)
    pids_max: int | None = attrs.field(default=None, validator=_at_least_one)
    file_size_max_bytes: int | None = attrs.field(default=None, validator=_at_least_one)
    open_files_max: int | None = attrs.field(default=None, validator=_at_least_one)
    swap_max_bytes: int | None = None
    cpu_max_cores: float | None = None
    io_weight: int | None = None

    def overridden(self, override: Limits | None) -> Limits:
        """Return these limits, with what *override* names put in its place."""
        if override is None:
            return self
        named = {name: value for name, value in attrs.asdict(override).items() if value is not None}
        return attrs.evolve(self, **named)

    def of_group(self) -> GroupLimits:
        """Return what a control group holds all its processes together to."""
        return GroupLimits(
            memory_max_bytes=self.memory_max_bytes,
            swap_max_bytes=self.swap_max_bytes,
            pids_max=self.pids_max,
            cpu_max_cores=self.cpu_max_cores,
            io_weight=self.io_weight,
        )

    @property
    def hold_a_keeper(self) -> bool:
        """Tell whether a keeper can do its work within them, and not only its commands."""
        memory, files = self.memory_max_bytes, self.open_files_max
        return (memory is None or memory >= KEEPER_BYTES) and (files is None or files >= KEEPER_FILES)

    def of_process(self, *, grouped: bool) -> dict[str, int | None]:
        """Return what setrlimit(2) is told; in a group, the sum counts and a program may reserve what it likes."""
        return {
            "memory_max_bytes": None if grouped else self.memory_max_bytes,
            "pids_max": None if grouped else self.pids_max,
            "file_size_max_bytes": self.file_size_max_bytes,
            "open_files_max": self.open_files_max,
        }


@attrs.frozen(kw_only=True)
class GroupLimits:
    """Limits of all members of a control group together; None leaves it to the group above.

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
        return tuple((name, value) for name, value in zip(GROUP_FILES, values, strict=True) if value is not None)

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


def _pages(size_bytes: int | None) -> str | None:
    """Round down as the kernel does, or reading back would give another number."""
    return None if size_bytes is None else str(size_bytes // mmap.PAGESIZE * mmap.PAGESIZE)


def _quota(cores: float | None) -> str | None:
    if cores is None:
        return None
    return f"{max(CPU_QUOTA_MIN_US, round(cores * CPU_PERIOD_US))} {CPU_PERIOD_US}"
