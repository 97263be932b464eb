"""The head of a request on a transfer's URL: what it asks for. Pure: headers in, values out.

Uploads may go on in two dialects: `Content-Range` (curl -C, most tools) and `Upload-Offset` with `Upload-Complete`
(the IETF's resumable uploads, and near enough to tus). Downloads know one `Range` and `If-Range`; what this page does
not understand of them is ignored, as HTTP wants it, and the whole file is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import attrs

from broker.contract.errors import BrokerError, ErrorCode

_NUMBER = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class UnsatisfiableRange(Exception):
    """No byte of what was asked for exists; answered with 416."""


@attrs.frozen(kw_only=True)
class UploadHead:
    """A request with bytes of an upload.

    `offset`: where they belong. `total_bytes`: of the whole, where the request tells. `body_bytes`: of this request,
    None if that shows at its end. `is_part`: more is to come, even if nobody knows how much.
    """

    offset: int
    total_bytes: int | None
    body_bytes: int | None
    is_part: bool


def upload_head(method: str, raw_headers: Iterable[tuple[bytes, bytes]]) -> UploadHead:
    """Read the head of a PUT or PATCH.

    Raises:
        BrokerError: it contradicts itself, or cannot be understood (INVALID_ARGUMENTS).
    """
    headers = _last_of_each(raw_headers)
    body_bytes = None if "transfer-encoding" in headers else _number(headers, "content-length")
    offset, total_bytes = _number(headers, "upload-offset"), _number(headers, "upload-length")
    complete = _complete(headers)
    is_part = complete is False or (method == "PATCH" and complete is None)
    if ranged := headers.get("content-range"):
        start, end, whole = _content_range(ranged, body_bytes)
        offset = _agreed("offset", offset, start)
        total_bytes = _agreed("total size", total_bytes, whole)
        is_part = is_part or whole is None or end + 1 < whole
    if offset is None and method == "PATCH":
        raise _misunderstood("PATCH needs Upload-Offset or Content-Range")
    return UploadHead(offset=offset or 0, total_bytes=total_bytes, body_bytes=body_bytes, is_part=is_part)


def wanted_range(raw_headers: Iterable[tuple[bytes, bytes]], size_bytes: int, tag: str) -> tuple[int, int] | None:
    """Return the range that a GET wants: (start, stop) in bytes, *stop* not included, or None for the whole.

    Raises:
        UnsatisfiableRange: it begins behind the end.
    """
    headers = _last_of_each(raw_headers)
    if "if-range" in headers and headers["if-range"] != f'"{tag}"':
        return None  # the client's part is of another file: it gets this one from the start
    asked = _RANGE.fullmatch(headers.get("range", ""))
    if asked is None or asked[0] == "bytes=-":
        return None
    if not asked[1]:
        start, stop = max(0, size_bytes - int(asked[2])), size_bytes
    else:
        start = int(asked[1])
        stop = min(size_bytes, int(asked[2]) + 1) if asked[2] else size_bytes
        if asked[2] and int(asked[2]) < start:
            return None
    if start >= size_bytes:
        raise UnsatisfiableRange
    return start, stop


def _content_range(text: str, body_bytes: int | None) -> tuple[int, int, int | None]:
    """The first byte, the last byte, and the size of the whole if it is told."""
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None:
        raise _misunderstood("Content-Range must be `bytes FIRST-LAST/TOTAL`, or /* where the total is not known")
    start, end = int(match[1]), int(match[2])
    whole = None if match[3] == "*" else int(match[3])
    if end < start or (whole is not None and end >= whole):
        raise _misunderstood(f"Content-Range {match[0]!r} is no range of bytes")
    if body_bytes not in (None, end - start + 1):
        raise _misunderstood(f"Content-Range says {end - start + 1} bytes and Content-Length {body_bytes}")
    return start, end, whole


def _complete(headers: Mapping[str, str]) -> bool | None:
    match headers.get("upload-complete"):
        case None:
            return None
        case "?1":
            return True
        case "?0":
            return False
        case _:
            raise _misunderstood("Upload-Complete must be ?1 or ?0")


def _agreed(what: str, told: int | None, ranged: int | None) -> int | None:
    if told is not None and ranged is not None and told != ranged:
        raise _misunderstood(f"the headers tell two different values of the {what}: {told} and {ranged}")
    return told if ranged is None else ranged


def _number(headers: Mapping[str, str], name: str) -> int | None:
    if (text := headers.get(name)) is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise _misunderstood(f"{name} must be a number of bytes")
    return int(text)


def _last_of_each(raw_headers: Iterable[tuple[bytes, bytes]]) -> Mapping[str, str]:
    # Blanks and tabs are HTTP's own; what else Python would strip is no more understood than a letter.
    return {name.decode("latin-1").lower(): value.decode("latin-1").strip(" \t") for name, value in raw_headers}


def _misunderstood(message: str) -> BrokerError:
    return BrokerError(ErrorCode.INVALID_ARGUMENTS, message)
