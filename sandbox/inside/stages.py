"""Failure of a birth: at a stage that has a name, for a reason that the kernel gave. Child side, stdlib only."""

from __future__ import annotations

import contextlib

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Iterator


class StageFailed(Exception):
    """One stage could not be done: there will be no session."""

    def __init__(self, stage: str, why: str, errno: int | None = None) -> None:
        """Keep stage, reason and the kernel's number apart."""
        super().__init__(f"{stage}: {why}")
        self.stage = stage
        self.why = why
        self.errno = errno


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Give what the kernel refuses in here the stage's name. Raises StageFailed."""
    try:
        yield
    except OSError as error:
        raise StageFailed(name, error.strerror or str(error), error.errno) from error
