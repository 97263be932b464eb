"""read_file: a range of bytes or of lines, as text where it is text.

The beginnings of lines are found from the front or from the back, without ever holding the whole file. A line ends in a
newline byte, which is what it is in every encoding but the 16-bit ones. Text is whole characters only, or the verdict
that a range is no text.
"""

from __future__ import annotations

import codecs
import posixpath
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

import attrs
import trio

from broker.contract.errors import BrokerError, ErrorCode
from broker.contract.files import ReadFile, ReadFileResult
from broker.scope import Scope
from broker.tools.rules import require_file
from sandbox.files.errors import TookTooLong
from transfers.media import HEAD_BYTES

FIND_LINE_S = 20.0
"""Seconds for which a line is looked for: several gigabytes."""
WIDE = frozenset({"utf-16", "utf-16-le", "utf-16-be"})
"""Encodings in which a newline is more than one byte."""
BLOCK_BYTES = 1024 * 1024
NEWLINE = b"\n"
MAX_CHARACTER_BYTES = 4

ReadRange: TypeAlias = Callable[[int, int], Awaitable[bytes]]
"""(offset, length) -> the bytes there, fewer only at the end of the file."""


@attrs.frozen(kw_only=True)
class _Range:
    """The range to read: where it begins, how many lines at most, and the number of the first where that is known."""

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
    """Find the range to read: bytes as asked, or the bytes of the lines that were asked for."""
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


# --- where lines begin


@attrs.frozen
class LineStart:
    """The beginning of a line, and its number where that is known."""

    offset: int
    number: int | None


async def find_line(read: ReadRange, number: int) -> LineStart:
    """Find where line *number* begins, counted from 1; the end of the file when it has fewer."""
    offset, missing = 0, number - 1
    while missing:
        block = await read(offset, BLOCK_BYTES)
        if not block:
            break
        count = block.count(NEWLINE)
        if count >= missing:
            offset += after_newline(block, missing)
            break
        missing -= count
        offset += len(block)
    return LineStart(offset, number)


async def find_last_lines(read: ReadRange, count: int, size_bytes: int) -> LineStart:
    """Find where the last *count* lines begin; a newline at the very end begins no line."""
    end, missing = size_bytes, count + 1
    if size_bytes and await read(size_bytes - 1, 1) != NEWLINE:
        missing = count
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        block = await read(start, end - start)
        there = block.count(NEWLINE)
        if there >= missing:
            return LineStart(start + after_newline(block, there - missing + 1), None)
        missing -= there
        end = start
    return LineStart(0, 1)


def after_newline(data: bytes, count: int) -> int:
    """Return the offset behind the *count*-th newline; there must be as many. Halves are counted, which is cheap."""
    if not count:
        return 0
    begin, end = 0, len(data)  # what is looked for lies between the two
    while end - begin > 1:
        middle = (begin + end) // 2
        there = data.count(NEWLINE, begin, middle)
        if there >= count:
            end = middle
        else:
            count -= there
            begin = middle
    return end


def first_lines(data: bytes, count: int) -> bytes:
    """Return the first *count* lines of *data*; all of it when there are not as many."""
    return data[: after_newline(data, count)] if data.count(NEWLINE) >= count else data


def count_lines(data: bytes) -> int:
    """Count the lines that begin in *data*."""
    return data.count(NEWLINE) + (not data.endswith(NEWLINE) and bool(data))


# --- bytes as text


@attrs.frozen
class TextPart:
    """Whole characters, and how many bytes of the range they and what precedes them take up."""

    text: str
    used_bytes: int


def cut_text(data: bytes, limit: int, *, starts_file: bool, ends_file: bool) -> TextPart | None:
    """Return the text that begins within the first *limit* bytes of *data*, or None when it is not UTF-8 text.

    Args:
        data: up to `limit + MAX_CHARACTER_BYTES - 1` bytes, so that the last character can be whole.
        starts_file: *data* is the beginning of the file; otherwise its first bytes may be the rest of a character
            that belongs to the range before, and are passed over.
        ends_file: nothing follows *data*, so half a character at its end is not text.
    """
    if b"\0" in data:
        return None
    start = 0 if starts_file else _rest_of_character(data)
    end = _whole_until(data, max(limit, start))
    try:
        text, used = codecs.utf_8_decode(data[start:end], "strict", ends_file or end < len(data))
    except UnicodeDecodeError:
        return None
    return TextPart(text, start + used)


def _rest_of_character(data: bytes) -> int:
    """Count the bytes at the beginning that continue a character that began before; a character has at most three."""
    count = 0
    while count < min(len(data), MAX_CHARACTER_BYTES - 1) and _continues(data[count]):
        count += 1
    return count


def _whole_until(data: bytes, limit: int) -> int:
    """The end of the last character that begins before *limit*."""
    end = min(limit, len(data))
    for _ in range(MAX_CHARACTER_BYTES - 1):
        if end < len(data) and _continues(data[end]):
            end += 1
    return end


def _continues(byte: int) -> bool:
    return byte & 0b1100_0000 == 0b1000_0000


class NotInEncoding(Exception):
    """The bytes are no text in the encoding they were declared to be in; `at` is the first wrong byte."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


def decode_text(data: bytes, limit: int, encoding: str, *, ends_file: bool) -> TextPart:
    """Return the characters in the first *limit* bytes of *data*, which begins with a whole one; at least one if any.

    Raises:
        NotInEncoding: see there.
    """
    for end in range(limit, limit + MAX_CHARACTER_BYTES):
        last = end >= len(data)
        decoder = codecs.getincrementaldecoder(encoding)("strict")
        try:
            text = decoder.decode(data[:end], final=last and ends_file)
        except UnicodeDecodeError as error:
            raise NotInEncoding(error.start) from error
        used = min(end, len(data)) - len(decoder.getstate()[0])
        if used or last:
            return TextPart(text, used)
    raise NotInEncoding(0)


def encoding_at(encoding: str, head: bytes, offset: int) -> str:
    """Return the encoding in the middle of a file, where no byte order mark is: that of the mark at its *head*."""
    if offset == 0 or encoding not in ("utf-16", "utf-8-sig"):
        return encoding
    if encoding == "utf-8-sig":
        return "utf-8"
    return "utf-16-be" if head.startswith(codecs.BOM_UTF16_BE) else "utf-16-le"
