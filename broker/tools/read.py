"""read_file: a range of bytes or of lines, as text where it is text."""

from __future__ import annotations

import posixpath
from functools import partial

import attrs
import trio

from broker.contract.errors import BrokerError, ErrorCode
from broker.contract.files import ReadFile, ReadFileResult
from broker.scope import Scope
from broker.tools.lines import LineStart, ReadRange, count_lines, find_last_lines, find_line, first_lines
from broker.tools.rules import require_file
from broker.tools.text_part import MAX_CHARACTER_BYTES, NotInEncoding, TextPart, cut_text, decode_text, encoding_at
from sandbox.files.errors import TookTooLong
from transfers.media import HEAD_BYTES

FIND_LINE_S = 20.0
"""Seconds for which a line is looked for: several gigabytes."""
WIDE = frozenset({"utf-16", "utf-16-le", "utf-16-be"})
"""Encodings in which a newline is more than one byte."""


@attrs.frozen(kw_only=True)
class _Range:
    """What is read: where it begins, how many lines at most, and the number of the first where that is known."""

    offset: int
    line_count: int | None = None
    number: int | None = None
    in_lines: bool = False


async def perform_read_file(scope: Scope, request: ReadFile, path: str) -> ReadFileResult:
    """Read a range, never splitting a character."""
    host, own = scope.host, scope.own
    ceiling = host.policy.file_limits.max_read_size
    limit = min(request.limit or ceiling, ceiling)
    with await own.files.resolve(path, read=True) as found:
        await require_file(scope, found, "read")
        read = partial(own.files.read, found)
        part = await _range(request, read, found.facts.size_bytes, path)
        # The content stands in an answer twice: as structured content and as text.
        await scope.make_room(2 * min(limit, max(0, found.facts.size_bytes - part.offset)))
        # A few bytes more: a character that begins within the limit is read whole.
        data = await read(part.offset, limit + MAX_CHARACTER_BYTES - 1)
        head = data if part.offset == 0 else await read(0, HEAD_BYTES)
        size_bytes = max(found.facts.size_bytes, part.offset + len(data) if data else 0)
    media = await host.media.of_bytes(head[:HEAD_BYTES], posixpath.basename(found.path))
    at_end = part.offset + len(data) >= size_bytes
    if part.line_count is not None:
        data = first_lines(data, part.line_count)
    text = _text(request, data, limit, head, part, at_end=at_end)
    used = len(data[:limit]) if text is None else text.used_bytes
    next_offset = part.offset + used
    return ReadFileResult(
        content=data[:limit] if text is None else text.text,
        size_bytes=size_bytes,
        mime_type=media.mime_type,
        is_binary=text is None,
        truncated=next_offset < size_bytes,
        next_offset=next_offset if next_offset < size_bytes else None,
        encoding=None if text is None else request.encoding or "utf-8",
        start_line=part.number,
        line_count=count_lines(data[:used]) if part.in_lines else None,
    )


async def _range(request: ReadFile, read: ReadRange, size_bytes: int, path: str) -> _Range:
    """What to read: bytes as asked, or the bytes of the lines that were asked for."""
    if request.start_line is None and request.line_count is None:
        return _Range(offset=request.offset)
    _require_lines(request)
    start, count = request.start_line or 1, request.line_count
    with trio.move_on_after(FIND_LINE_S):
        found: LineStart
        if start < 0:
            found = await find_last_lines(read, -start, size_bytes)
        else:
            found = await find_line(read, start)
        return _Range(offset=found.offset, line_count=count, number=found.number, in_lines=True)
    raise TookTooLong(path, f"line {start} was not reached in {FIND_LINE_S:g} s; use offset and limit", "ETIMEDOUT")


def _require_lines(request: ReadFile) -> None:
    why = ""
    if request.offset:
        why = "offset counts bytes and start_line counts lines: give one of them"
    elif request.start_line == 0:
        why = "start_line counts from 1, or from the end when it is negative"
    elif request.encoding in WIDE:
        why = f"lines cannot be found in {request.encoding}: use offset and limit"
    if why:
        raise BrokerError(ErrorCode.INVALID_ARGUMENTS, f"invalid arguments: {why}")


def _text(request: ReadFile, data: bytes, limit: int, head: bytes, part: _Range, *, at_end: bool) -> TextPart | None:
    """The text of *data*, or None where it is to be base64."""
    if request.encoding is None:
        return cut_text(data, limit, starts_file=part.offset == 0, ends_file=at_end)
    if request.encoding == "binary":
        return None
    encoding = encoding_at(request.encoding, head, part.offset)
    try:
        return decode_text(data, limit, encoding, ends_file=at_end)
    except NotInEncoding as wrong:
        raise BrokerError(
            ErrorCode.INVALID_ARGUMENTS,
            f"the file is no {request.encoding} text: byte {part.offset + wrong.at} is wrong; leave encoding out, or "
            "read it as binary",
            offset=part.offset + wrong.at,
        ) from wrong
