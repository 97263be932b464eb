"""What is answered about commands: one class per tool, exactly the fields on the wire. Values only."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import attrs

from broker.contract.fields import Success
from broker.contract.schema import About

Running: TypeAlias = Annotated[bool, About(description="The command has not ended.")]
ExitCode: TypeAlias = Annotated[
    int | None, About(description="null while it runs, or when a signal ended the command.")
]
SignalNumber: TypeAlias = Annotated[
    int | None, About(description="Number of the signal that ended the command, else null.")
]
Dropped: TypeAlias = Annotated[
    int, About(description="Bytes that came after the quota was full and are not kept anywhere.")
]
MemoryPeak: TypeAlias = Annotated[
    int | None, About(description="Most memory that it and all it started used at once; null without a cgroup.")
]
CpuUser: TypeAlias = Annotated[
    int | None, About(description="Processor time of it and all it started; null without a cgroup.")
]
CpuSystem: TypeAlias = Annotated[int | None, About(description="The kernel's time for them; null without a cgroup.")]
OomKilled: TypeAlias = Annotated[
    bool | None, About(description="Memory ran out and the kernel killed it; null without a cgroup.")
]
KilledBy: TypeAlias = Annotated[
    str | None, About(description="The limit that ended it, such as: memory limit 512 MiB reached. Else null.")
]


@attrs.frozen(kw_only=True)
class ExecuteCommandResult:
    """execute_command and wait_command; `success` is false when the exit code is not 0, which is not an error."""

    success: Annotated[bool, About(description="The command ended by itself with exit code 0, or still runs.")]
    exit_code: ExitCode
    signal: SignalNumber
    stdout: Annotated[str, About(description="Beginning and end, with the count of what is left out between.")]
    stderr: str
    duration_ms: int
    pid: int | None
    stdout_truncated: Annotated[bool, About(description="There was more; read_output has it.")] = False
    stderr_truncated: Annotated[bool, About(description="There was more; read_output has it.")] = False
    timed_out: Annotated[bool, About(description="The command was ended at its timeout; the output is partial.")] = (
        False
    )
    command_id: Annotated[str, About(description="Names the command in the other tools.")] = ""
    running: Running = False
    next_cursor: Annotated[int, About(description="What comes from now on: read_output of both from here.")] = 0
    stdout_omitted_bytes: int = 0
    stderr_omitted_bytes: int = 0
    dropped_bytes: Dropped = 0
    memory_peak_bytes: MemoryPeak = None
    cpu_user_ms: CpuUser = None
    cpu_system_ms: CpuSystem = None
    oom_killed: OomKilled = None
    killed_by: KilledBy = None


@attrs.frozen(kw_only=True)
class WaitCommandResult(ExecuteCommandResult):
    """wait_command: what execute_command would have answered."""


@attrs.frozen(kw_only=True)
class ReadOutputResult:
    """read_output; give `data` bytes for base64."""

    success: Success = True
    data: str | bytes
    cursor: Annotated[int, About(description="Where data begins: the cursor asked for, or what is left after it.")]
    next_cursor: Annotated[int, About(description="Where the next part begins.")]
    total_bytes: Annotated[int, About(description="Bytes of the stream that were kept so far.")]
    running: Running
    exit_code: ExitCode
    signal: SignalNumber
    dropped_bytes: Dropped
    evicted_bytes: Annotated[
        int, About(description="Bytes between the cursor asked for and data that were kept once and had to make room.")
    ]


@attrs.frozen(kw_only=True)
class WriteStdinResult:
    """write_stdin."""

    success: Success = True
    bytes_written: Annotated[int, About(description="Bytes taken from data.")]
    waiting_bytes: Annotated[int, About(description="Of all input, what the command has not read yet.")]


@attrs.frozen(kw_only=True)
class CommandInfo:
    """One command of a session."""

    command_id: str
    argv: tuple[str, ...]
    state: Literal["running", "exited", "signalled", "timed_out", "failed"]
    pid: int | None
    exit_code: ExitCode
    signal: SignalNumber
    started_at: Annotated[str, About(description="UTC, ISO 8601, ends in Z.")]
    duration_ms: int
    stdout_bytes: int
    stderr_bytes: int
    terminal: Annotated[bool, About(description="It runs on a terminal.")]
    memory_peak_bytes: MemoryPeak = None
    cpu_user_ms: CpuUser = None
    cpu_system_ms: CpuSystem = None
    oom_killed: OomKilled = None
    killed_by: KilledBy = None


@attrs.frozen(kw_only=True)
class ListCommandsResult:
    """list_commands."""

    success: Success = True
    commands: Annotated[tuple[CommandInfo, ...], About(description="Running ones and those that ended last, by age.")]
    running_count: int
    max_concurrent_commands: int


@attrs.frozen(kw_only=True)
class SignalCommandResult:
    """signal_command."""

    success: Success = True
    command_id: str
    signal_sent: str
    was_running: Annotated[bool, About(description="false: it had ended before the signal.")]


@attrs.frozen(kw_only=True)
class Match:
    """One line that matches."""

    stream: Literal["stdout", "stderr"]
    cursor: Annotated[int, About(description="Where in its stream the line begins, for read_output.")]
    line: Annotated[int | None, About(description="Its number, from 1; null when the search did not begin at byte 0.")]
    text: Annotated[str, About(description="The line, or at most 500 characters around the match.")]
    before: tuple[str, ...]
    after: tuple[str, ...]


@attrs.frozen(kw_only=True)
class SearchOutputResult:
    """search_output."""

    success: Success = True
    matches: tuple[Match, ...]
    complete: Annotated[bool, About(description="All output up to now was searched.")]
    next_cursor: Annotated[
        int | None, About(description="If not complete: where a search of this one stream goes on; null for both.")
    ]
    dropped_bytes: Dropped


@attrs.frozen(kw_only=True)
class ResizeTerminalResult:
    """resize_terminal."""

    success: Success = True
    command_id: str
    rows: int
    columns: int


JobResult: TypeAlias = (
    ExecuteCommandResult
    | ReadOutputResult
    | WriteStdinResult
    | ListCommandsResult
    | WaitCommandResult
    | SignalCommandResult
    | SearchOutputResult
    | ResizeTerminalResult
)
