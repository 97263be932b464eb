"""Commands and what they say: what a client may ask, and what is answered.

Values only, one class each way for each tool, with exactly the names on the wire. The text of a request class is what
the documents say of its tool.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import attrs

from broker.contract.fields import (
    MAX_ARGUMENTS,
    MAX_OFFSET,
    MAX_TIMEOUT_S,
    MAX_WAIT_S,
    Argument,
    CommandId,
    SessionId,
    Success,
)
from broker.contract.long_text import Text
from broker.contract.schema import About

MAX_PAGE_BYTES = 1_048_576
MAX_PATTERN_CHARACTERS = 1000
MAX_CELLS = 1000

Stream: TypeAlias = Annotated[
    Literal["both", "stdout", "stderr"],
    About(description="Which output: both are interleaved in the order in which it came."),
]
StripAnsi: TypeAlias = Annotated[
    bool, About(description="true: output without colours, cursor movements and other control sequences.")
]
Rows: TypeAlias = Annotated[int, About(description="Height in characters.", minimum=1, maximum=MAX_CELLS)]
Columns: TypeAlias = Annotated[int, About(description="Width in characters.", minimum=1, maximum=MAX_CELLS)]
SignalName: TypeAlias = Literal[
    "END", "SIGHUP", "SIGINT", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGCONT", "SIGSTOP"
]

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
class TerminalSize:
    """The size of the terminal that a command runs on."""

    rows: Rows = 24
    columns: Columns = 80


@attrs.frozen(kw_only=True)
class ExecuteCommand:
    """Run one allowed program to its end, its deadline or the session's end, or have it run on in the session."""

    session_id: SessionId
    argv: Annotated[
        tuple[Argument, ...],
        About(
            description="The command and its arguments, one string each. No shell: pipes, redirects, globs and "
            "$VARIABLES are plain text.",
            min_items=1,
            max_items=MAX_ARGUMENTS,
        ),
    ]
    timeout_seconds: Annotated[
        float | None,
        About(
            description="Seconds until the command and all it started are ended. Default: timeouts.command_default of "
            "the server; timeouts.command_max with background or wait_seconds.",
            above=0,
            maximum=MAX_TIMEOUT_S,
        ),
    ] = None
    stdin_input: Annotated[
        Annotated[Text, About()] | None,
        About(
            description="Text for standard input, which then ends. Left out: it is empty, or with background or "
            "wait_seconds open for write_stdin.",
            secret=True,
        ),
    ] = None
    confirm: Annotated[
        bool,
        About(description="true: you confirm a command that the policy runs only when confirmed."),
    ] = False
    background: Annotated[
        bool, About(description="true: answer at once with command_id and pid; the command goes on in the session.")
    ] = False
    wait_seconds: Annotated[
        float | None,
        About(
            description="Answer when the command is done, or after this many seconds with running: true, the output so "
            "far and next_cursor; the command goes on.",
            minimum=0,
            maximum=MAX_WAIT_S,
        ),
    ] = None
    terminal: Annotated[
        TerminalSize | None, About(description="Run it on a terminal of this size; all output is then stdout.")
    ] = None
    strip_ansi: StripAnsi = False


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
class ReadOutput:
    """Read what a command said from a byte cursor on, while it runs or after; wait for more if asked to."""

    session_id: SessionId
    command_id: CommandId
    stream: Stream = "both"
    cursor: Annotated[
        int,
        About(
            description="First byte to read: 0, then the next_cursor of the answer before. Negative: that many bytes "
            "before the end.",
            minimum=-MAX_OFFSET,
            maximum=MAX_OFFSET,
        ),
    ] = 0
    max_bytes: Annotated[
        int | None,
        About(
            description="Most bytes to read. Default: output.inline_bytes. With wait_seconds at most 65536 come.",
            minimum=4,
            maximum=MAX_PAGE_BYTES,
        ),
    ] = None
    wait_seconds: Annotated[
        float,
        About(description="Wait so long for output after cursor, if there is none yet.", minimum=0, maximum=MAX_WAIT_S),
    ] = 0
    encoding: Annotated[
        Literal["text", "base64"],
        About(description="text: bytes that are no UTF-8 show as U+FFFD; base64: exactly what was said."),
    ] = "text"
    strip_ansi: StripAnsi = False


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
class WriteStdin:
    """Give a running command input, or end its input."""

    session_id: SessionId
    command_id: CommandId
    data: Annotated[
        Text,
        About(
            description=r"Text for its standard input; a line needs its \n. On a terminal \u0003 is Ctrl-C.",
            max_length=MAX_PAGE_BYTES,
            max_bytes=MAX_PAGE_BYTES,
            secret=True,
        ),
    ] = ""
    close: Annotated[bool, About(description="true: the input ends after data.")] = False


@attrs.frozen(kw_only=True)
class WriteStdinResult:
    """write_stdin."""

    success: Success = True
    bytes_written: Annotated[int, About(description="Bytes taken from data.")]
    waiting_bytes: Annotated[int, About(description="Of all input, what the command has not read yet.")]


@attrs.frozen(kw_only=True)
class ListCommands:
    """List the commands that a session runs, and those that ended last."""

    session_id: SessionId


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
class WaitCommand:
    """Wait for the end of a command, and answer what `execute_command` would have."""

    session_id: SessionId
    command_id: CommandId
    wait_seconds: Annotated[
        float, About(description="Answer after this long at the latest.", minimum=0, maximum=MAX_WAIT_S)
    ] = 30
    strip_ansi: StripAnsi = False


@attrs.frozen(kw_only=True)
class WaitCommandResult(ExecuteCommandResult):
    """wait_command: what execute_command would have answered."""


@attrs.frozen(kw_only=True)
class SignalCommand:
    """End a command and all it started, or signal its process group by name."""

    session_id: SessionId
    command_id: CommandId
    signal: Annotated[
        SignalName,
        About(
            description="END ends it and all it started: SIGTERM, then SIGKILL. SIGKILL kills all it started; other "
            "signals go to its process group."
        ),
    ] = "END"


@attrs.frozen(kw_only=True)
class SignalCommandResult:
    """signal_command."""

    success: Success = True
    command_id: str
    signal_sent: str
    was_running: Annotated[bool, About(description="false: it had ended before the signal.")]


@attrs.frozen(kw_only=True)
class SearchOutput:
    """Find lines of a command's output that match a regular expression, with context and their cursors."""

    session_id: SessionId
    command_id: CommandId
    pattern: Annotated[
        str,
        About(
            description="A regular expression (Python's re), searched line by line.",
            min_length=1,
            max_length=MAX_PATTERN_CHARACTERS,
        ),
    ]
    context: Annotated[int, About(description="Lines shown before and after each match.", minimum=0, maximum=20)] = 0
    stream: Stream = "both"
    ignore_case: Annotated[bool, About(description="true: upper and lower case are the same.")] = False
    cursor: Annotated[
        int,
        About(description="Search from this byte of the stream on (not of both).", minimum=0, maximum=MAX_OFFSET),
    ] = 0
    max_matches: Annotated[int, About(description="Stop after so many matches.", minimum=1, maximum=1000)] = 50


@attrs.frozen(kw_only=True)
class OutputMatch:
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
    matches: tuple[OutputMatch, ...]
    complete: Annotated[bool, About(description="All output up to now was searched.")]
    next_cursor: Annotated[
        int | None, About(description="If not complete: where a search of this one stream goes on; null for both.")
    ]
    dropped_bytes: Dropped


@attrs.frozen(kw_only=True)
class ResizeTerminal:
    """Give a command's terminal another size."""

    session_id: SessionId
    command_id: CommandId
    rows: Rows
    columns: Columns


@attrs.frozen(kw_only=True)
class ResizeTerminalResult:
    """resize_terminal."""

    success: Success = True
    command_id: str
    rows: int
    columns: int
