"""Transfers over a URL: perform_* opens one, tells of it and ends it. The bytes go through `broker/http/`.

Everything is decided when it is opened, as the other file tools do: on the path as it is written and on the real path
of what was pinned. The URL then stands for that descriptor, whatever is renamed or linked meanwhile.
"""

from __future__ import annotations

import math
import os
import posixpath
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import trio

from broker.contract.errors import BrokerError, ErrorCode
from broker.contract.names import shown_path
from broker.contract.transfers import (
    CancelTransfer,
    CancelTransferResult,
    FinishTransfer,
    FinishTransferResult,
    LeftOut,
    OpenTransfer,
    OpenTransferResult,
    StatTransfer,
    StatTransferResult,
)
from broker.contract.urls import TRANSFERS_PATH, curl_line
from broker.decisions import Subject, require_path
from broker.scope import Host, Scope, Step
from broker.session.archives import ArchiveSink, ArchiveSource
from broker.session.resources import PartDestination
from broker.session.urls import RawDownload, RawUpload
from broker.tools.rules import full_disk_told, in_turn, require_file, require_not_own, require_place, tree_spec
from sandbox.files.errors import Exists
from sandbox.files.files import EntryPlace
from transfers.filestreams import FileSink, open_file_source
from transfers.refusals import TooLarge
from transfers.ticket import TicketState
from transfers.upload_state import Declared

if TYPE_CHECKING:
    from sandbox.protocol.files import ArchiveLimits, Pack, UnpackAnywhere


async def perform_open_transfer(scope: Scope, request: OpenTransfer, path: str) -> OpenTransferResult:
    """Pin the file or start the part, and make the URL that stands for it."""
    if not scope.base_url:
        raise BrokerError(
            ErrorCode.TRANSFER_UNAVAILABLE,
            "this broker serves standard input and output, not HTTP, so there is no URL to open: use download_file or "
            "upload_file",
        )
    with scope.own.raw.room():
        transfer = await _OPENERS[request.direction, request.archive is not None](scope, request, path)
        token = scope.own.raw.add(transfer)
    return _opened(request, transfer, f"{scope.base_url}{TRANSFERS_PATH}{token}")


async def _open_archive_download(scope: Scope, request: OpenTransfer, path: str) -> RawDownload:
    source = await open_archive_source(scope, path, gzip=request.archive == "tar.gz")
    return RawDownload(
        ticket=scope.own.raw.new_ticket(),
        source=source,
        archive=source,
        filename=f"{posixpath.basename(source.path) or 'root'}.{request.archive}",
        **_whose(scope, source.path),
    )


async def _open_archive_upload(scope: Scope, request: OpenTransfer, path: str) -> RawUpload:
    max_bytes = scope.host.policy.file_limits.archive_max_bytes
    _require_fit(request, max_bytes)
    declared = Declared(size_bytes=request.size_bytes, sha256=request.sha256)
    sink = await open_archive_sink(scope, path, declared, gzip=request.archive == "tar.gz")
    return RawUpload(
        ticket=scope.own.raw.new_ticket(),
        sink=sink,
        archive=sink,
        size_bytes=request.size_bytes,
        max_bytes=max_bytes,
        **_whose(scope, sink.path),
    )


async def _open_download(scope: Scope, _: OpenTransfer, path: str) -> RawDownload:
    own = scope.own
    with await own.files.resolve(path, read=True) as found:
        await require_file(scope, found, "read")
        source = await open_file_source(found.path, os.dup(found.file()), own.raw.limiter, own.hashes)
    return RawDownload(
        ticket=own.raw.new_ticket(),
        source=source,
        filename=posixpath.basename(source.path),
        **_whose(scope, source.path),
    )


async def _open_upload(scope: Scope, request: OpenTransfer, path: str) -> RawUpload:
    own, max_bytes = scope.own, scope.host.policy.file_limits.max_write_size
    _require_fit(request, max_bytes)
    async with AsyncExitStack() as on_failure:
        with await own.files.place(path) as place:
            await require_place(scope, place)
            part = await on_failure.enter_async_context(await own.files.part(place))
            destination = PartDestination(part, in_turn(scope, place))
        on_failure.pop_all()  # from here on it is the upload's to discard
    begun = await own.transfers.uploads.begin(
        path,
        destination,
        offset=0,
        data=b"",
        is_last=False,
        declared=Declared(size_bytes=request.size_bytes, sha256=request.sha256),
        idle_s=math.inf,  # its URL expires instead
    )
    return RawUpload(
        ticket=own.raw.new_ticket(begun.transfer_id),
        sink=FileSink(own.transfers.uploads, begun.transfer_id),
        size_bytes=request.size_bytes,
        max_bytes=max_bytes,
        **_whose(scope, part.path),
    )


def _require_fit(request: OpenTransfer, max_bytes: int) -> None:
    if request.size_bytes is not None and request.size_bytes > max_bytes:
        raise TooLarge("upload", request.size_bytes, max_bytes)


_OPENERS: Mapping[
    tuple[str, bool], Callable[[Scope, OpenTransfer, str], Awaitable[RawDownload] | Awaitable[RawUpload]]
] = MappingProxyType(
    {
        ("download", False): _open_download,
        ("upload", False): _open_upload,
        ("download", True): _open_archive_download,
        ("upload", True): _open_archive_upload,
    }
)
"""By direction, and whether a directory goes through."""


async def open_archive_source(scope: Scope, path: str, *, gzip: bool) -> ArchiveSource:
    """Pin the directory *path* to pack it.

    Raises: Denied; WrongKind when it is no directory. Ownership: the caller closes the source.
    """
    files = scope.own.files
    found = await files.resolve(path, read=True)
    try:
        require_path(scope.host, found.path, "read")
        found.directory()
    except BaseException:
        found.close()
        raise
    spec: Pack = {**tree_spec(scope.host, found.path), **_caps(scope.host, gzip=gzip)}
    return ArchiveSource(found=found, archives=files.archives, spec=spec)


async def open_archive_sink(scope: Scope, path: str, declared: Declared, *, gzip: bool) -> ArchiveSink:
    """Pin the place *path*, a free name or an empty directory, to unpack there what was *declared*.

    Raises: Denied; Exists when something else has the name. Ownership: the caller aborts or closes the sink.
    """
    host, own = scope.host, scope.own
    quota = own.transfers.quota
    target = await own.files.names.entry(path)
    try:
        require_path(host, target.path, "make")
        _require_new_or_empty(scope, target)
    except BaseException:
        target.close()
        raise
    spec: UnpackAnywhere = {
        **tree_spec(host, target.path),
        **_caps(host, gzip=gzip),
        "new_path": target.path,
        "replace_empty": target.existing is not None,
        "mode": None if target.existing is None else target.existing.mode,
        "max_file_bytes": host.policy.file_limits.max_write_size,
        "reserve_bytes": host.policy.file_limits.min_free_bytes,
    }
    return ArchiveSink(
        target=target,
        archives=own.files.archives,
        quota=quota,
        declared=declared,
        spec=spec,
        full_disk_told=partial(full_disk_told, host),
        in_turn=in_turn(scope, target),
    )


def _require_new_or_empty(scope: Scope, target: EntryPlace) -> None:
    """Refuse what is there, but for a directory: it is replaced by the archive only if it is empty then."""
    there = target.existing
    if there is None:
        return
    if there.kind != "directory":
        sentence = f"{target.asked}: a {there.kind} has this name; an archive becomes a new directory"
        raise Exists(target.asked, sentence, "EEXIST")
    require_not_own(scope, target.path)


def _caps(host: Host, *, gzip: bool) -> ArchiveLimits:
    limits = host.policy.file_limits
    return {"max_entries": limits.archive_max_entries, "max_bytes": limits.archive_max_bytes, "gzip": gzip}


async def perform_stat_transfer(scope: Scope, request: StatTransfer, _: Subject) -> StatTransferResult:
    """Tell what is known of a transfer."""
    await trio.lowlevel.checkpoint()
    transfer = scope.own.raw.get(request.transfer_id)
    await transfer.look()
    return StatTransferResult(**_facts(transfer))


async def perform_finish_transfer(scope: Scope, request: FinishTransfer, _: Subject) -> FinishTransferResult:
    """Put an upload in place with what was received."""
    transfer = scope.own.raw.get(request.transfer_id)
    if isinstance(transfer, RawDownload):
        raise BrokerError(
            ErrorCode.INVALID_ARGUMENTS,
            "transfer_id: this is a download, which is complete by itself; cancel_transfer closes its URL",
        )
    if transfer.ticket.state is not TicketState.COMPLETE:
        async with transfer.used():
            await transfer.finish()
    return FinishTransferResult(**_facts(transfer))


async def perform_cancel_transfer(scope: Scope, request: CancelTransfer, _: Subject) -> CancelTransferResult:
    """Close a URL, end the request that uses it, throw away what was received."""
    transfer = scope.own.raw.get(request.transfer_id)
    if not transfer.ticket.is_over:
        transfer.end(TicketState.CANCELLED, "cancel_transfer was called")
    await transfer.release()
    return CancelTransferResult(**_facts(transfer))


def _whose(scope: Scope, path: str) -> dict[str, Any]:
    session = scope.session
    return {
        "path": shown_path(path),
        "session_id": session.id,
        "principal": scope.principal,
        "client": scope.client,
        "in_session": session.call,
    }


def _opened(request: OpenTransfer, transfer: RawDownload | RawUpload, url: str) -> OpenTransferResult:
    method: Literal["GET", "PUT"] = "GET" if isinstance(transfer, RawDownload) else "PUT"
    return OpenTransferResult(
        transfer_id=transfer.id,
        url=url,
        method=method,
        expires_at=transfer.expires_at(),
        curl=curl_line(method, transfer.path, url, request.archive),
        path=transfer.path,
        size_bytes=transfer.size_bytes,
    )


def _facts(transfer: RawDownload | RawUpload) -> dict[str, Any]:
    if isinstance(transfer, RawDownload):
        direction, done, next_offset = "download", transfer.source.sent_bytes, transfer.source.next_offset
    else:
        direction, done, next_offset = "upload", transfer.received_bytes, transfer.received_bytes
    return {
        "transfer_id": transfer.id,
        "direction": direction,
        "path": transfer.path,
        "state": transfer.ticket.state.value,
        "bytes_done": done,
        "next_offset": next_offset,
        "size_bytes": transfer.size_bytes,
        "sha256": transfer.sha256,
        "sha256_missing": transfer.why_no_sha256 or None,
        "expires_at": transfer.expires_at(),
        "error": transfer.ticket.why or transfer.trouble or None,
        **_archive_facts(transfer),
    }


def _archive_facts(transfer: RawDownload | RawUpload) -> dict[str, Any]:
    if transfer.archive is None or (summary := transfer.archive.summary) is None:
        return {}
    return {
        "archive_entries": summary.files + summary.directories,
        "left_out_count": summary.left_out_count,
        "left_out": tuple(LeftOut(path=shown_path(path), reason=why) for path, why in summary.left_out),
    }


STEPS = (
    Step(OpenTransfer, perform_open_transfer, completed="TRANSFER_OPENED", failed="FILE_FAILED"),
    Step(StatTransfer, perform_stat_transfer),
    Step(FinishTransfer, perform_finish_transfer),
    Step(CancelTransfer, perform_cancel_transfer),
)
