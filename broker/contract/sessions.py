"""Sessions, processes and the machine: what a client may ask, and what is answered.

Values only, one class each way for each tool, with exactly the names on the wire. The text of a request class is what
the documents say of its tool.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, TypeAlias

import attrs

from broker.contract.fields import MAX_PID, Argument, Path, SessionId, Success
from broker.contract.schema import About


@attrs.frozen(kw_only=True)
class IsolationLayer:
    """One layer of the walls, and its state on this machine."""

    name: str
    state: Literal["enforced", "partial", "unavailable"]
    detail: Annotated[str, About(description="What holds, or why it does not.")]


Isolation: TypeAlias = Annotated[
    tuple[IsolationLayer, ...], About(description="Each layer around the commands, and what it really enforces here.")
]


@attrs.frozen(kw_only=True)
class CreateSession:
    """Open a session: a working directory, an environment and walls, which the other tools need."""

    id: Annotated[
        SessionId | None, About(description="Your own name for the session. Left out: a random one is made.")
    ] = None
    working_dir: Annotated[
        Path | None, About(description="Existing directory the session starts in. Default: the session user's home.")
    ] = None
    environment: Annotated[
        Mapping[str, Annotated[Argument, About(secret=True)]],
        About(
            description="Variables for every command of the session. Names the policy denies (PATH, LD_PRELOAD, "
            "PYTHONPATH, GIT_* ...) are refused.",
            max_items=256,
        ),
    ] = attrs.field(factory=lambda: MappingProxyType({}))


@attrs.frozen(kw_only=True)
class CreateSessionResult:
    """create_session."""

    success: Success = True
    session_id: Annotated[str, About(description="Pass this to the other tools.")]
    working_dir: str
    created_at: Annotated[str, About(description="UTC, ISO 8601, ends in Z.")]
    idle_timeout_seconds: Annotated[
        float, About(description="The session ends after this many seconds without a call; a running command counts.")
    ]
    isolation: Isolation


@attrs.frozen(kw_only=True)
class KillSession:
    """End a session and everything that it started."""

    session_id: SessionId
    force: Annotated[bool, About(description="true: SIGKILL at once, without the grace after SIGTERM.")] = False


@attrs.frozen(kw_only=True)
class KillSessionResult:
    """kill_session."""

    success: Success = True
    session_id: str
    processes_ended: Annotated[int, About(description="Processes of the session that were running and are gone.")]
    commands_ended: Annotated[tuple[str, ...], About(description="The command_id of each command that was running.")]


@attrs.frozen(kw_only=True)
class GetSystemInfo:
    """Describe the machine, and which walls hold."""


@attrs.frozen(kw_only=True)
class CpuInfo:
    """Processors; the usage is of the time since the last question."""

    cores: int
    usage_percent: float


@attrs.frozen(kw_only=True)
class MemoryInfo:
    """RAM of the machine."""

    total_bytes: int
    available_bytes: int
    used_bytes: int
    usage_percent: float


@attrs.frozen(kw_only=True)
class DiskInfo:
    """One mounted file system."""

    mount_point: str
    total_bytes: int
    used_bytes: int
    free_bytes: int
    usage_percent: float


@attrs.frozen(kw_only=True)
class GetSystemInfoResult:
    """get_system_info."""

    success: Success = True
    hostname: str
    platform: str
    cpu: CpuInfo
    memory: MemoryInfo
    disks: tuple[DiskInfo, ...]
    uptime_seconds: int
    isolation: Isolation


@attrs.frozen(kw_only=True)
class GetProcessList:
    """List the processes of a session, or of the session user."""

    session_id: Annotated[
        SessionId | None,
        About(description="Only the processes of this session. Left out: those of the user that commands run as."),
    ] = None


@attrs.frozen(kw_only=True)
class ProcessInfo:
    """One process."""

    pid: int
    name: str
    cmdline: Annotated[str | None, About(description="null for a process that is not of your sessions.")]
    status: str
    cpu_percent: float | None
    memory_rss: Annotated[int | None, About(description="Resident bytes.")]


@attrs.frozen(kw_only=True)
class GetProcessListResult:
    """get_process_list."""

    success: Success = True
    processes: tuple[ProcessInfo, ...]
    total_count: int
    session_id: Annotated[str | None, About(description="The session asked for, else null.")] = None


@attrs.frozen(kw_only=True)
class KillProcess:
    """Signal a process of the session."""

    session_id: SessionId
    pid: Annotated[int, About(description="A process of this session.", minimum=1, maximum=MAX_PID)]
    signal: Annotated[
        int,
        About(
            description="Signal number: 15 SIGTERM asks, 9 SIGKILL ends, 0 only asks whether it runs.",
            minimum=0,
            maximum=64,
        ),
    ] = 15


@attrs.frozen(kw_only=True)
class KillProcessResult:
    """kill_process."""

    success: Success = True
    pid: int
    signal_sent: int
    was_running: Annotated[bool, About(description="false: it had ended before the signal.")]
