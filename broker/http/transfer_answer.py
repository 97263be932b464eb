"""Answers about raw transfers: statuses of failures, and the headers of a file on its way out. Pure."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping
from types import MappingProxyType

from broker.contract.encode import printable
from broker.contract.errors import ErrorCode, Failure
from broker.http.asgi import Reply

Headers = tuple[tuple[bytes, bytes], ...]

NO_STORE: Headers = ((b"cache-control", b"no-store"),)
NOSNIFF: Headers = ((b"x-content-type-options", b"nosniff"),)
STATUSES: Mapping[ErrorCode, int] = MappingProxyType(
    {
        ErrorCode.INVALID_ARGUMENTS: 400,
        ErrorCode.POLICY_PATH_VIOLATION: 403,
        ErrorCode.FILE_ACCESS_DENIED: 403,
        ErrorCode.TRANSFER_NOT_FOUND: 404,
        ErrorCode.TRANSFER_STALLED: 408,
        ErrorCode.TRANSFER_OFFSET_MISMATCH: 409,
        ErrorCode.TRANSFER_BUSY: 409,
        ErrorCode.FILE_CHANGED: 409,
        ErrorCode.FILE_BUSY: 409,
        ErrorCode.TRANSFER_OVER: 410,
        ErrorCode.SESSION_CLOSED: 410,
        ErrorCode.FILE_TOO_LARGE: 413,
        ErrorCode.TRANSFER_MISMATCH: 422,
        ErrorCode.POLICY_RESOURCE_EXCEEDED: 503,
        ErrorCode.AUDIT_UNAVAILABLE: 503,
        ErrorCode.FILE_WRITE_ERROR: 507,
    }
)
"""Of failures; any other is 500."""
RETRY_AFTER_S = 1


def reply_of(failure: Failure) -> Reply:
    """A failure as small JSON, as the tools tell it."""
    status = STATUSES.get(failure.code, 500)
    headers = NOSNIFF
    if failure.retryable and status in {409, 503}:
        headers += ((b"retry-after", b"%d" % RETRY_AFTER_S),)
    expected = failure.details.get("expected_offset")
    if isinstance(expected, int):
        headers += ((b"upload-offset", b"%d" % expected),)
    return json_reply(status, failure.to_structured(), headers)


def json_reply(status: int, content: Mapping[str, object], headers: Headers = NOSNIFF) -> Reply:
    """A small JSON answer."""
    return Reply(status, json.dumps(content).encode() + b"\n", headers)


def file_headers(filename: str, size_bytes: int | None, tag: str) -> Headers:
    """Return the headers of a file, whatever part of it is sent.

    Always an attachment of unknown type: the content is whatever a command wrote, and no page of the broker's.
    """
    ranges = b"bytes" if tag else b"none"
    headers = (
        (b"content-type", b"application/octet-stream"),
        (b"content-disposition", _disposition(filename)),
        (b"accept-ranges", ranges),
        *NO_STORE,
        *NOSNIFF,
    )
    if tag:
        headers += ((b"etag", f'"{tag}"'.encode()),)
    if size_bytes is not None:
        headers += ((b"content-length", b"%d" % size_bytes),)
    return headers


def part_headers(filename: str, part: tuple[int, int], size_bytes: int, tag: str) -> Headers:
    """The same for a part of it."""
    start, stop = part
    content_range = (b"content-range", b"bytes %d-%d/%d" % (start, stop - 1, size_bytes))
    return (*file_headers(filename, stop - start, tag), content_range)


def offset_headers(received_bytes: int, size_bytes: int | None, *, complete: bool) -> Headers:
    """How far an upload is."""
    headers = (
        (b"upload-offset", b"%d" % received_bytes),
        (b"upload-complete", b"?1" if complete else b"?0"),
        *NOSNIFF,
    )
    return headers if size_bytes is None else (*headers, (b"upload-length", b"%d" % size_bytes))


def _disposition(filename: str) -> bytes:
    """RFC 6266: the name in plain ASCII for old clients, and exactly, in UTF-8, for the others."""
    shown = printable(filename)
    ascii_name = "".join(c if c.isascii() and c not in '"\\%' else "_" for c in shown)
    encoded = urllib.parse.quote(shown.encode("utf-8", "replace"), safe="")
    return f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{encoded}".encode("ascii")
