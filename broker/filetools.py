"""Files and transfers: perform_* takes a request and the path that was allowed, and returns the result.

Each follows one order: pin what is really there, decide on its real path, then use the same descriptor. What is
checked is what is used, whatever is renamed or linked meanwhile.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import MappingProxyType

import trio

from broker.belongings import PartDestination
from broker.decisions import require_path
from broker.errors import BrokerError, ErrorCode
from broker.hardlinks import require_no_blocked_link
from broker.host import Host, Scope, Step
from broker.requests import DownloadFile, ListDirectory, ReadFile, UploadFile, WriteFile
from broker.results import (
    DirectoryEntry,
    DownloadFileResult,
    ListDirectoryResult,
    ReadFileResult,
    UploadFileResult,
    WriteFileResult,
)
from broker.textpart import MAX_CHARACTER_BYTES, cut_text
from policy.path import Purpose
from sandbox.files import Entry, FileFacts, Place, Resolved
from transfers.media import HEAD_BYTES
from transfers.part import Progress

LISTED_ENTRIES = 10_000
"""Names in one answer; total_count tells how many there are."""


async def perform_read_file(scope: Scope, request: ReadFile, path: str) -> ReadFileResult:
    """Read a range of bytes, as text where it is text, never splitting a character."""
    host, own = scope.host, scope.own
    ceiling = host.policy.file_limits.max_read_size
    limit = min(request.limit or ceiling, ceiling)
    with await own.files.resolve(path, read=True) as found:
        await _require(host, found, "read")
        # A few bytes more: a character that begins within the limit is read whole.
        data = await own.files.read(found, request.offset, limit + MAX_CHARACTER_BYTES - 1)
        head = data if request.offset == 0 else await own.files.read(found, 0, HEAD_BYTES)
        size_bytes = max(found.facts.size_bytes, request.offset + len(data) if data else 0)
    media = await host.media.of_bytes(head[:HEAD_BYTES], posixpath.basename(found.path))
    at_end = request.offset + len(data) >= size_bytes
    text = cut_text(data, limit, starts_file=request.offset == 0, ends_file=at_end)
    used = len(data[:limit]) if text is None else text.used_bytes
    next_offset = request.offset + used
    return ReadFileResult(
        content=data[:limit] if text is None else text.text,
        size_bytes=size_bytes,
        mime_type=media.mime_type,
        is_binary=text is None,
        truncated=next_offset < size_bytes,
        next_offset=next_offset if next_offset < size_bytes else None,
    )


async def perform_write_file(scope: Scope, request: WriteFile, path: str) -> WriteFileResult:
    """Replace a file at once, or append to it; durable when it returns, untouched when it fails."""
    host, files = scope.host, scope.own.files
    data = request.content.encode()
    _require_size(host, len(data))
    with await files.place(path) as place:
        await _require_place(host, place)
        if request.mode == "append":
            await files.append(place, data)
        else:
            await files.overwrite(place, data)
        return WriteFileResult(path=place.path, bytes_written=len(data))


async def perform_list_directory(scope: Scope, request: ListDirectory, path: str) -> ListDirectoryResult:
    """List the names of a directory."""
    with await scope.own.files.resolve(path, read=True) as found:
        require_path(scope.host, found.path, "list")
        listing = await scope.own.files.list_directory(
            found, limit=LISTED_ENTRIES, include_hidden=request.include_hidden
        )
    return ListDirectoryResult(
        path=found.path,
        entries=tuple(_entry(entry) for entry in listing.entries),
        total_count=listing.total_count,
        truncated=listing.total_count > len(listing.entries),
    )


async def perform_download_file(scope: Scope, request: DownloadFile, path: str) -> DownloadFileResult:
    """Read one chunk of a file that stays pinned while it is downloaded."""
    host, own = scope.host, scope.own
    with await own.files.resolve(path, read=True) as found:
        await _require(host, found, "read")

        async def open_file() -> int:
            await trio.lowlevel.checkpoint()
            return os.dup(found.file())

        chunk = await own.transfers.downloads.read(
            found.path, offset=request.offset, chunk_bytes=request.chunk_size, open_file=open_file
        )
        filename = posixpath.basename(found.path)
        media = await host.media.of_descriptor(found.file(), filename)
    return DownloadFileResult(
        transfer_id=chunk.transfer_id,
        filename=filename,
        mime_type=media.mime_type,
        total_size=chunk.size_bytes,
        chunk_data=chunk.data,
        chunk_offset=chunk.offset,
        chunk_size=len(chunk.data),
        is_complete=chunk.is_complete,
        sha256=chunk.sha256,
    )


async def perform_upload_file(scope: Scope, request: UploadFile, path: str) -> UploadFileResult:
    """Take one chunk; the last one puts the file in place, at once and durably."""
    uploads = scope.own.transfers.uploads
    if request.transfer_id:
        progress = await uploads.resume(
            request.transfer_id, path, offset=request.chunk_offset, data=request.chunk_data, is_last=request.is_last
        )
    else:
        progress = await _begin_upload(scope, request, path)
    return UploadFileResult(
        transfer_id=progress.transfer_id,
        path=progress.path,
        bytes_received=progress.received_bytes,
        is_complete=progress.is_complete,
        sha256=progress.sha256,
    )


async def _begin_upload(scope: Scope, request: UploadFile, path: str) -> Progress:
    """Open the part file where the file will be. The upload is bound to the path as the client named it."""
    own = scope.own
    with await own.files.place(path) as place:
        await _require_place(scope.host, place)
        async with AsyncExitStack() as on_failure:
            part = await on_failure.enter_async_context(await own.files.part(place))
            destination = PartDestination(part)
            on_failure.pop_all()  # from here on it is the upload's to discard
    return await own.transfers.uploads.begin(
        path,
        destination,
        offset=request.chunk_offset,
        data=request.chunk_data,
        is_last=request.is_last,
    )


async def _require(host: Host, found: Resolved, purpose: Purpose) -> None:
    """Decide on the file that was pinned: its real path, its kind, its other names."""
    require_path(host, found.path, purpose)
    found.file()
    await require_no_blocked_link(host, found.facts)


async def _require_place(host: Host, place: Place) -> None:
    require_path(host, place.path, "write")
    place.check()
    existing: FileFacts | None = place.existing
    if existing is not None:
        await require_no_blocked_link(host, existing)


def _require_size(host: Host, size_bytes: int) -> None:
    limit = host.policy.file_limits.max_write_size
    if size_bytes > limit:
        raise BrokerError(
            ErrorCode.FILE_TOO_LARGE,
            f"content has {size_bytes} bytes and file_limits.max_write_size is {limit}; write less, or use upload_file",
            size_bytes=size_bytes,
            limit_bytes=limit,
        )


def _entry(entry: Entry) -> DirectoryEntry:
    match entry.kind:
        case "file":
            return DirectoryEntry(name=entry.name, type="file", size_bytes=entry.size_bytes)
        case "directory" | "symlink" as kind:
            return DirectoryEntry(name=entry.name, type=kind, size_bytes=None)
        case _:
            return DirectoryEntry(name=entry.name, type="other", size_bytes=None)


STEPS: Mapping[type, Step] = MappingProxyType(
    {
        ReadFile: Step(perform_read_file, inside=True),
        WriteFile: Step(perform_write_file, inside=True),
        ListDirectory: Step(perform_list_directory, inside=True),
        DownloadFile: Step(perform_download_file, inside=True),
        UploadFile: Step(perform_upload_file, inside=True),
    }
)
