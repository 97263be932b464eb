"""Errors of the kernel edge, by name; `plan.LayerUnavailable` is the one that comes before all of these."""

from __future__ import annotations


class SandboxError(Exception):
    """Failure of this package's process side."""


class UserUnavailable(SandboxError):
    """Lack of a user that the commands could run as; the broker cannot start."""


class BirthFailed(SandboxError):
    """Failure to bring a session init to life; `stage` names the step. Nothing of it is left."""

    def __init__(self, stage: str, why: str, errno: int | None = None) -> None:
        """Keep stage, reason and the kernel's number apart."""
        super().__init__(f"the session's process could not be set up, at stage {stage!r}: {why}")
        self.stage = stage
        self.why = why
        self.errno = errno


class BirthCut(BirthFailed):
    """Birth that nothing refused: the process was ended, or stopped, while it was set up. Another one may succeed."""


class SpawnFailed(SandboxError):
    """Failure to start a command; `stage` names the step. Nothing of its program ran."""

    def __init__(self, stage: str, why: str, errno: int | None = None, path: str = "") -> None:
        """Keep stage, reason and the kernel's number apart. *path*: of what the stage is about."""
        super().__init__(f"the command could not be started, at stage {stage!r}: {why}{path and f': {path}'}")
        self.stage = stage
        self.why = why
        self.errno = errno


class NeverBegan(SpawnFailed):
    """End of the process that was to become the command, before it was told what it is; another one may do it."""

    def __init__(self) -> None:
        """Say so."""
        super().__init__("launch", "the process that waited for it was ended before it read what to run")


class ProcessNotFound(SandboxError):
    """Question about a process that the session does not have."""

    def __init__(self, pid: int) -> None:
        """Remember which process was asked for."""
        super().__init__(f"the session has no process {pid}")
        self.pid = pid
