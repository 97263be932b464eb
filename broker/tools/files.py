"""Writing and transfers: perform_* takes a request and the path that was allowed, and returns the result.

Each follows one order: pin what is really there, decide on its real path, then use the same descriptor. What is
checked is what is used, whatever is renamed or linked meanwhile.
"""

from __future__ import annotations

import os
import posixpath
from contextlib import AsyncExitStack, nullcontext

import trio

from broker.contract.files import (
    DownloadFile,
    DownloadFileResult,
    ReadFile,
    UploadFile,
    UploadFileResult,
    WriteFile,
    WriteFileResult,
)
from broker.contract.names import shown_path
from broker.contract.trees import EditFile
from broker.scope import Scope, Step
from broker.session.resources import PartDestination
from broker.tools.edit import perform_edit_file
from broker.tools.read import perform_read_file
from broker.tools.rules import (
    held,
    in_turn,
    require_file,
    require_place,
    require_size,
    require_writable,
    told_what_it_makes,
    written,
)
from transfers.upload import Progress


async def perform_write_file(scope: Scope, request: WriteFile, path: str) -> WriteFileResult:
    """Replace a file at once, or append to it; durable when it returns, untouched when it fails."""
    host, files = scope.host, scope.own.files
    data = request.content.encode()
    require_size(host, len(data))
    async with held(scope, files.place, (path, "write")) as (place,):
        await require_writable(scope, place)
        appends = request.mode == "append"
        told = nullcontext() if appends and place.existing else told_what_it_makes(data)
        async with written(scope, place.fd, len(data)):
            with told:
                await (files.append(place, data) if appends else files.overwrite(place, data))
        return WriteFileResult(path=shown_path(place.path), bytes_written=len(data))


async def perform_download_file(scope: Scope, request: DownloadFile, path: str) -> DownloadFileResult:
    """Read one chunk of a file that stays pinned while it is downloaded."""
    host, own = scope.host, scope.own
    with await own.files.resolve(path, read=True) as found:
        await require_file(scope, found, "read")
        await scope.make_room(base64_bytes(min(request.chunk_size, max(0, found.facts.size_bytes - request.offset))))

        async def open_file() -> int:
            await trio.lowlevel.checkpoint()
            return os.dup(found.file())

        chunk = await own.transfers.downloads.read(
            found.path, offset=request.offset, chunk_bytes=request.chunk_size, open_file=open_file
        )
        media = await host.media.of_descriptor(found.file(), found.path)
    return DownloadFileResult(
        transfer_id=chunk.transfer_id,
        filename=shown_path(posixpath.basename(found.path)),
        mime_type=media.mime_type,
        total_size=chunk.size_bytes,
        chunk_data=chunk.data,
        chunk_offset=chunk.offset,
        chunk_size=len(chunk.data),
        is_complete=chunk.is_complete,
        sha256=chunk.sha256,
        sha256_missing=chunk.why_no_sha256 or None,
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
        path=shown_path(progress.path),
        bytes_received=progress.received_bytes,
        is_complete=progress.is_complete,
        sha256=progress.sha256,
    )


async def _begin_upload(scope: Scope, request: UploadFile, path: str) -> Progress:
    """Open the part file where the file will be. The upload is bound to the path as the client named it."""
    own = scope.own
    with await own.files.place(path) as place:
        await require_place(scope, place)
        async with AsyncExitStack() as on_failure:
            part = await on_failure.enter_async_context(await own.files.part(place))
            destination = PartDestination(part, in_turn(scope, place))
            on_failure.pop_all()  # from here on it is the upload's to discard
    return await own.transfers.uploads.begin(
        path,
        destination,
        offset=request.chunk_offset,
        data=request.chunk_data,
        is_last=request.is_last,
    )


STEPS = (
    Step(ReadFile, perform_read_file, paths={"path": "read"}, completed="FILE_READ", failed="FILE_FAILED"),
    Step(WriteFile, perform_write_file, paths={"path": "write"}, completed="FILE_WRITE", failed="FILE_FAILED"),
    Step(EditFile, perform_edit_file, paths={"path": "write"}, completed="FILE_EDIT", failed="FILE_FAILED"),
    Step(DownloadFile, perform_download_file, paths={"path": "read"}, completed="FILE_DOWNLOAD", failed="FILE_FAILED"),
    Step(UploadFile, perform_upload_file, paths={"path": "write"}, completed="FILE_UPLOAD", failed="FILE_FAILED"),
)


def base64_bytes(size: int) -> int:
    """Return how long so many bytes are in base64."""
    return (size + 2) // 3 * 4
