"""What a client may ask of commands: starting one, and everything about one that runs or ran. Values only."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import attrs

from broker.contract.fields import MAX_ARGUMENTS, MAX_OFFSET, MAX_TIMEOUT_S, MAX_WAIT_S, Argument, CommandId, SessionId
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


@attrs.frozen(kw_only=True)
class TerminalSize:
    """Of the terminal that a command runs on."""

    rows: Rows = 24
    columns: Columns = 80


@attrs.frozen(kw_only=True)
class ExecuteCommand:
    """execute_command."""

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
class ReadOutput:
    """read_output."""

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
class WriteStdin:
    """write_stdin."""

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
class ListCommands:
    """list_commands."""

    session_id: SessionId


@attrs.frozen(kw_only=True)
class WaitCommand:
    """wait_command."""

    session_id: SessionId
    command_id: CommandId
    wait_seconds: Annotated[
        float, About(description="Answer after this long at the latest.", minimum=0, maximum=MAX_WAIT_S)
    ] = 30
    strip_ansi: StripAnsi = False


@attrs.frozen(kw_only=True)
class SignalCommand:
    """signal_command."""

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
class SearchOutput:
    """search_output."""

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
class ResizeTerminal:
    """resize_terminal."""

    session_id: SessionId
    command_id: CommandId
    rows: Rows
    columns: Columns


JobRequest: TypeAlias = (
    ExecuteCommand
    | ReadOutput
    | WriteStdin
    | ListCommands
    | WaitCommand
    | SignalCommand
    | SearchOutput
    | ResizeTerminal
)
