"""What processes may use, as one value: told to setrlimit(2) and to control groups. Pure."""

from __future__ import annotations

import attrs

from sandbox.cgroup.usage import GroupLimits

KEEPER_BYTES = 64 * 1024 * 1024  # it has about 10 MB of private memory
KEEPER_FILES = 64  # it has about 15 open


def _at_least_one(_owner: object, field: attrs.Attribute[int | None], value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{field.name} must be at least 1: {value}")


@attrs.frozen(kw_only=True)
class Limits:
    """What processes may use; None leaves what the surroundings have. Swap, cores and weight need a cgroup."""

    memory_max_bytes: int | None = attrs.field(default=None, validator=_at_least_one)
    pids_max: int | None = attrs.field(default=None, validator=_at_least_one)
    file_size_max_bytes: int | None = attrs.field(default=None, validator=_at_least_one)
    open_files_max: int | None = attrs.field(default=None, validator=_at_least_one)
    swap_max_bytes: int | None = None
    cpu_max_cores: float | None = None
    io_weight: int | None = None

    def overridden(self, override: Limits | None) -> Limits:
        """These limits, with what *override* names put in its place."""
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
        """Whether a keeper can do its work within them, and not only its commands."""
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
