"""Where the lines of a file begin, in bytes: from the front, from the back, without ever holding the whole file.

A line ends in a newline byte, which is what it is in every encoding but the 16-bit ones. Knows no file: the caller
gives a function that reads a range.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import attrs

ReadRange: TypeAlias = Callable[[int, int], Awaitable[bytes]]
"""(offset, length) -> the bytes there, fewer only at the end of the file."""

BLOCK_BYTES = 1024 * 1024
NEWLINE = b"\n"


@attrs.frozen
class LineStart:
    """Where a line begins, and its number where that is known."""

    offset: int
    number: int | None


async def find_line(read: ReadRange, number: int) -> LineStart:
    """Where line *number* begins, counted from 1; the end of the file when it has fewer."""
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
    """Where the last *count* lines begin; a newline at the very end begins no line."""
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
    """The offset behind the *count*-th newline; there must be as many. Counting halves is cheap, however many."""
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
    """The first *count* lines of *data*; all of it when there are not as many."""
    return data[: after_newline(data, count)] if data.count(NEWLINE) >= count else data


def count_lines(data: bytes) -> int:
    """How many lines begin in *data*."""
    return data.count(NEWLINE) + (not data.endswith(NEWLINE) and bool(data))
