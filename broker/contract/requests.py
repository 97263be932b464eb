"""What a client may ask: one class per tool, exactly the arguments on the wire with their units and limits.

Values only. A request that exists has passed its limits; whether it is allowed is the policy's question.
Schemas (`broker/contract/schema.py`) and strict decoding (`broker/contract/decode.py`) both read these hints.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, TypeAlias

import attrs

from broker.contract.command_requests import (
    ExecuteCommand,
    JobRequest,
    ListCommands,
    ReadOutput,
    ResizeTerminal,
    SearchOutput,
    SignalCommand,
    WaitCommand,
    WriteStdin,
)
from broker.contract.fields import MAX_OFFSET, MAX_PID, Argument, Path, SessionId
from broker.contract.long_text import Text
from broker.contract.schema import About
from broker.contract.transfer_requests import (
    CancelTransfer,
    FinishTransfer,
    OpenTransfer,
    StatTransfer,
    TransferRequest,
)
from broker.contract.tree_requests import (
    CopyPath,
    DeletePath,
    EditFile,
    FindFiles,
    MakeDirectory,
    MovePath,
    SearchFiles,
    StatPath,
)

__all__ = [
    "CancelTransfer",
    "CopyPath",
    "CreateSession",
    "DeletePath",
    "DownloadFile",
    "EditFile",
    "ExecuteCommand",
    "FindFiles",
    "FinishTransfer",
    "GetProcessList",
    "GetSystemInfo",
    "KillProcess",
    "KillSession",
    "ListCommands",
    "ListDirectory",
    "MakeDirectory",
    "MovePath",
    "OpenTransfer",
    "ReadFile",
    "ReadOutput",
    "Request",
    "ResizeTerminal",
    "SearchFiles",
    "SearchOutput",
    "SignalCommand",
    "StatPath",
    "StatTransfer",
    "UploadFile",
    "WaitCommand",
    "WriteFile",
    "WriteStdin",
]

DEFAULT_CHUNK_BYTES = 1_048_576
MAX_LISTED_ENTRIES = 10_000
MAX_LISTED_DEPTH = 64

Encoding: TypeAlias = Literal[
    "binary",
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "ascii",
    "latin-1",
    "iso-8859-2",
    "iso-8859-15",
    "windows-1250",
    "windows-1251",
    "windows-1252",
    "koi8-r",
    "gb18030",
    "big5",
    "shift_jis",
    "euc-jp",
    "euc-kr",
]
"""Encodings that a file may be declared to be in."""


@attrs.frozen(kw_only=True)
class CreateSession:
    """create_session."""

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
class KillSession:
    """kill_session."""

    session_id: SessionId
    force: Annotated[bool, About(description="true: SIGKILL at once, without the grace after SIGTERM.")] = False


@attrs.frozen(kw_only=True)
class ReadFile:
    """read_file."""

    session_id: SessionId
    path: Path
    offset: Annotated[int, About(description="First byte to read.", minimum=0, maximum=MAX_OFFSET)] = 0
    limit: Annotated[
        int | None,
        About(
            description="Most bytes to read. Default and ceiling: file_limits.max_read_size.",
            minimum=1,
            maximum=MAX_OFFSET,
        ),
    ] = None
    start_line: Annotated[
        int | None,
        About(
            description="First line to read, counted from 1; negative: from the end, -20 is the last 20 lines. "
            "Instead of offset.",
            minimum=-MAX_OFFSET,
            maximum=MAX_OFFSET,
        ),
    ] = None
    line_count: Annotated[
        int | None,
        About(description="Most lines to read, from start_line (default 1).", minimum=1, maximum=MAX_OFFSET),
    ] = None
    encoding: Annotated[
        Encoding | None,
        About(
            description="How the file's text is written; binary gives base64 whatever it holds. Left out: UTF-8, or "
            "base64 where it is none."
        ),
    ] = None


@attrs.frozen(kw_only=True)
class WriteFile:
    """write_file."""

    session_id: SessionId
    path: Path
    content: Annotated[Text, About(description="Text to write, as UTF-8, unchanged.", secret=True)]
    mode: Annotated[
        Literal["overwrite", "append"],
        About(description="overwrite replaces the whole file at once; append adds to its end."),
    ] = "overwrite"


@attrs.frozen(kw_only=True)
class ListDirectory:
    """list_directory."""

    session_id: SessionId
    path: Path = "."
    include_hidden: Annotated[bool, About(description="true: names that begin with a dot as well.")] = False
    depth: Annotated[
        int,
        About(
            description="1: this directory only; more: so many levels, names relative to it, links not followed.",
            minimum=1,
            maximum=MAX_LISTED_DEPTH,
        ),
    ] = 1
    max_entries: Annotated[
        int, About(description="Most entries in one answer.", minimum=1, maximum=MAX_LISTED_ENTRIES)
    ] = MAX_LISTED_ENTRIES
    cursor: Annotated[
        str | None,
        About(description="next_cursor of the answer before, for the entries that follow.", max_length=8192),
    ] = None


@attrs.frozen(kw_only=True)
class DownloadFile:
    """download_file."""

    session_id: SessionId
    path: Path
    chunk_size: Annotated[
        int,
        About(
            description="Bytes of this chunk; more than file_limits.max_read_size is cut to that.",
            minimum=1,
            maximum=MAX_OFFSET,
        ),
    ] = DEFAULT_CHUNK_BYTES
    offset: Annotated[
        int,
        About(
            description="First byte of this chunk: 0, then chunk_offset + chunk_size of the answer before.",
            minimum=0,
            maximum=MAX_OFFSET,
        ),
    ] = 0


@attrs.frozen(kw_only=True)
class UploadFile:
    """upload_file."""

    session_id: SessionId
    path: Path
    chunk_data: Annotated[bytes, About(description="The bytes of this chunk, base64 with padding.", secret=True)]
    transfer_id: Annotated[
        str,
        About(description="Empty for the first chunk, then the transfer_id of the answer.", max_length=64),
    ] = ""
    chunk_offset: Annotated[
        int,
        About(description="Where in the file this chunk begins, in bytes.", minimum=0, maximum=MAX_OFFSET),
    ] = 0
    is_last: Annotated[
        bool, About(description="true: this chunk completes the file, which then replaces the destination at once.")
    ] = False


@attrs.frozen(kw_only=True)
class GetSystemInfo:
    """get_system_info."""


@attrs.frozen(kw_only=True)
class GetProcessList:
    """get_process_list."""

    session_id: Annotated[
        SessionId | None,
        About(description="Only the processes of this session. Left out: those of the user that commands run as."),
    ] = None


@attrs.frozen(kw_only=True)
class KillProcess:
    """kill_process."""

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


Request: TypeAlias = (
    CreateSession
    | KillSession
    | ReadFile
    | WriteFile
    | ListDirectory
    | DownloadFile
    | UploadFile
    | GetSystemInfo
    | GetProcessList
    | KillProcess
    | EditFile
    | SearchFiles
    | FindFiles
    | StatPath
    | MakeDirectory
    | MovePath
    | CopyPath
    | DeletePath
    | JobRequest
    | TransferRequest
)
