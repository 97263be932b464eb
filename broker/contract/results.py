"""What a tool answers when it did its work: one class per tool, exactly the fields on the wire.

Values only; failures are `broker/contract/errors.py`. Bytes are bytes here and base64 on the wire
(`broker/contract/encode.py`). Text from the machine may hold lone surrogates; the wire form replaces them.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import attrs

from broker.contract.command_results import (
    ExecuteCommandResult,
    JobResult,
    ListCommandsResult,
    ReadOutputResult,
    ResizeTerminalResult,
    SearchOutputResult,
    SignalCommandResult,
    WaitCommandResult,
    WriteStdinResult,
)
from broker.contract.fields import Sha256, Success, TransferId
from broker.contract.schema import About
from broker.contract.transfer_results import (
    CancelTransferResult,
    FinishTransferResult,
    OpenTransferResult,
    StatTransferResult,
    TransferResult,
)
from broker.contract.tree_results import (
    CopyPathResult,
    DeletePathResult,
    EditFileResult,
    FindFilesResult,
    MakeDirectoryResult,
    MovePathResult,
    SearchFilesResult,
    StatPathResult,
)

__all__ = [
    "CancelTransferResult",
    "CopyPathResult",
    "CpuInfo",
    "CreateSessionResult",
    "DeletePathResult",
    "DirectoryEntry",
    "DiskInfo",
    "DownloadFileResult",
    "EditFileResult",
    "ExecuteCommandResult",
    "FindFilesResult",
    "FinishTransferResult",
    "GetProcessListResult",
    "GetSystemInfoResult",
    "IsolationLayer",
    "KillProcessResult",
    "KillSessionResult",
    "ListCommandsResult",
    "ListDirectoryResult",
    "MakeDirectoryResult",
    "MemoryInfo",
    "MovePathResult",
    "OpenTransferResult",
    "ProcessInfo",
    "ReadFileResult",
    "ReadOutputResult",
    "ResizeTerminalResult",
    "Result",
    "SearchFilesResult",
    "SearchOutputResult",
    "SignalCommandResult",
    "StatPathResult",
    "StatTransferResult",
    "UploadFileResult",
    "WaitCommandResult",
    "WriteFileResult",
    "WriteStdinResult",
]


@attrs.frozen(kw_only=True)
class IsolationLayer:
    """What one layer of the walls does on this machine."""

    name: str
    state: Literal["enforced", "partial", "unavailable"]
    detail: Annotated[str, About(description="What holds, or why it does not.")]


Isolation: TypeAlias = Annotated[
    tuple[IsolationLayer, ...], About(description="Each layer around the commands, and what it really enforces here.")
]


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
class KillSessionResult:
    """kill_session."""

    success: Success = True
    session_id: str
    processes_ended: Annotated[int, About(description="Processes of the session that were running and are gone.")]
    commands_ended: Annotated[tuple[str, ...], About(description="The command_id of each command that was running.")]


@attrs.frozen(kw_only=True)
class ReadFileResult:
    """read_file; give `content` bytes for a binary file, text else."""

    success: Success = True
    content: Annotated[str | bytes, About(description="Text; base64 when is_binary is true.")]
    size_bytes: Annotated[int, About(description="Size of the whole file.")]
    mime_type: str
    is_binary: bool
    truncated: Annotated[bool, About(description="The file goes on after this part.")]
    next_offset: Annotated[int | None, About(description="Offset of the next part, in bytes; null at the end.")]
    encoding: Annotated[str | None, About(description="What the text was decoded from; null for base64.")] = None
    start_line: Annotated[
        int | None, About(description="Number of the first line in content, when lines were asked for.")
    ] = None
    line_count: Annotated[int | None, About(description="Lines in content, when lines were asked for.")] = None


@attrs.frozen(kw_only=True)
class WriteFileResult:
    """write_file."""

    success: Success = True
    path: Annotated[str, About(description="The real path that was written.")]
    bytes_written: int


@attrs.frozen(kw_only=True)
class DirectoryEntry:
    """One name in a directory; a symbolic link is not followed."""

    name: str
    type: Literal["file", "directory", "symlink", "other"]
    size_bytes: Annotated[int | None, About(description="Of a file; else null.")]
    modified_at: Annotated[str | None, About(description="UTC, ISO 8601, ends in Z.")] = None


@attrs.frozen(kw_only=True)
class ListDirectoryResult:
    """list_directory."""

    success: Success = True
    path: Annotated[str, About(description="The real path that was listed.")]
    entries: tuple[DirectoryEntry, ...]
    total_count: Annotated[int, About(description="Entries in the directory, also those cut from the list.")]
    truncated: Annotated[bool, About(description="There are more entries than listed.")]
    next_cursor: Annotated[str | None, About(description="Pass it as cursor for the next entries; else null.")] = None


@attrs.frozen(kw_only=True)
class DownloadFileResult:
    """download_file."""

    success: Success = True
    transfer_id: TransferId
    filename: str
    mime_type: str
    total_size: Annotated[int, About(description="Bytes of the whole file.")]
    chunk_data: Annotated[bytes, About(description="The bytes of this chunk, base64.")]
    chunk_offset: int
    chunk_size: Annotated[int, About(description="Bytes in this chunk; the next one begins at chunk_offset + this.")]
    is_complete: Annotated[bool, About(description="This chunk reaches the end of the file.")]
    sha256: Sha256 = None
    sha256_missing: Annotated[str | None, About(description="Why the last chunk has no sha256.")] = None


@attrs.frozen(kw_only=True)
class UploadFileResult:
    """upload_file."""

    success: Success = True
    transfer_id: TransferId
    path: str
    bytes_received: Annotated[int, About(description="Bytes so far; the next chunk begins here.")]
    is_complete: Annotated[bool, About(description="The file is in place.")]
    sha256: Sha256 = None


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
class KillProcessResult:
    """kill_process."""

    success: Success = True
    pid: int
    signal_sent: int
    was_running: Annotated[bool, About(description="false: it had ended before the signal.")]


Result: TypeAlias = (
    CreateSessionResult
    | KillSessionResult
    | ReadFileResult
    | WriteFileResult
    | ListDirectoryResult
    | DownloadFileResult
    | UploadFileResult
    | GetSystemInfoResult
    | GetProcessListResult
    | KillProcessResult
    | EditFileResult
    | SearchFilesResult
    | FindFilesResult
    | StatPathResult
    | MakeDirectoryResult
    | MovePathResult
    | CopyPathResult
    | DeletePathResult
    | JobResult
    | TransferResult
)
