"""Exact replacement in a text, and the unified diff of it. Pure.

The places are known, so the diff is made from them: it looks at what is around each until it is full, and takes linear
time and little memory, however large the text. The bytes around them are not looked at as text, so that a file in any
encoding keeps what it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TypeAlias

import attrs

CONTEXT_LINES = 3
DIFF_CHARACTERS = 65_536
CHARACTER_BYTES = 4
"""A character of UTF-8 has no more, and of bytes that are no text fewer."""
GROUP_BYTES = 1024 * 1024
"""Places that share lines, further apart than this: their diff would be cut, so it is not made."""
SHOWN_LINES = 10
COPIED_BYTES = 64 * 1024
"""A longer text that is put in is not copied to its places: with what is kept around them it is the new content."""
Bytes: TypeAlias = bytes | bytearray
Pieces: TypeAlias = tuple[bytes | bytearray | memoryview, ...]
NO_NEWLINE = "\n\\ No newline at end of file\n"


@attrs.frozen(kw_only=True)
class Edited:
    """The new content, and what a reviewer sees of it."""

    pieces: Pieces
    """Of the new content, in their order."""
    diff: str
    diff_truncated: bool


@attrs.frozen(kw_only=True)
class _Change:
    """Lines `start` to `end` of the old text (from 0, end exclusive), its bytes `at` to `behind`, become `new`."""

    start: int
    end: int
    at: int
    behind: int
    new: tuple[bytes, ...]

    @property
    def shift(self) -> int:
        """The number of lines that are added."""
        return len(self.new) - (self.end - self.start)

    @property
    def size_bytes(self) -> int:
        """The size of all that the diff shows of it."""
        return self.behind - self.at + sum(map(len, self.new))


class _TooLong(Exception):
    """The next part does not fit into the diff."""


def occurrences(data: bytes, old: Bytes) -> Iterator[int]:
    """Yield where *old* occurs, from left to right, none overlapping another; `data.count(old)` of them."""
    at = data.find(old)
    while at >= 0:
        yield at
        at = data.find(old, at + len(old))


def lines_of(data: bytes, old: Bytes) -> tuple[int, ...]:
    """Return the line numbers, from 1, of the first few places of *old*."""
    return tuple(data.count(b"\n", 0, place) + 1 for place in islice(occurrences(data, old), SHOWN_LINES))


def replace_exactly(data: bytes, old: Bytes, new: Bytes, name: str) -> Edited:
    """Replace every *old* by *new*; *name* is what the diff calls the file."""
    header = f"--- a/{name}\n+++ b/{name}\n"
    pieces, size = [header], len(header)
    truncated = False
    try:
        for hunk in _hunks(data, _changes(data, old, new)):
            truncated = size + len(hunk) > DIFF_CHARACTERS
            if truncated:
                break
            pieces.append(hunk)
            size += len(hunk)
    except _TooLong:
        truncated = True
    return Edited(
        pieces=_pieces(data, old, new),
        diff="".join(pieces) if len(pieces) > 1 or truncated else "",
        diff_truncated=truncated,
    )


def _pieces(data: bytes, old: Bytes, new: Bytes) -> Pieces:
    if len(new) <= COPIED_BYTES:
        return (data.replace(old, new),)
    kept, pieces, at = memoryview(data), list[bytes | bytearray | memoryview](), 0
    for place in occurrences(data, old):
        pieces += [kept[at:place], new]
        at = place + len(old)
    return (*pieces, kept[at:])


def _changes(data: bytes, old: Bytes, new: Bytes) -> Iterator[_Change]:
    """The line ranges that change, places on a common line together."""
    line, counted = 0, 0  # number of the line that begins at `counted`
    for first, end in _groups(data, old):
        # The line behind the last place belongs to it: without its newline, the two would become one.
        begin = data.rfind(b"\n", 0, first) + 1
        line, counted = line + data.count(b"\n", counted, begin), begin
        change = _large(data, old, new, line, begin, end) or _change(data[begin:end], old, new, line, begin)
        if change.size_bytes:
            yield change


def _groups(data: bytes, old: Bytes) -> Iterator[tuple[int, int]]:
    """Places on a common line: where the first is, and where the line ends that the last one ends in."""
    first, end = -1, -1
    for place in occurrences(data, old):
        if first >= 0 and place > end:
            yield first, end
            first = -1
        if first < 0:
            first = place
        elif place - first > GROUP_BYTES:
            raise _TooLong
        behind = place + len(old)
        if behind >= end:
            end = _end_of_line(data, behind)
    if first >= 0:
        yield first, end


def _large(data: bytes, old: Bytes, new: Bytes, line: int, begin: int, end: int) -> _Change | None:
    """The change of those lines if it is too long for a diff, whatever they have in common: it is not made then."""
    growth = data.count(old, begin, end) * (len(new) - len(old))
    if growth <= CHARACTER_BYTES * DIFF_CHARACTERS:
        return None
    too_long = bytes(CHARACTER_BYTES * DIFF_CHARACTERS + 1)
    return _Change(start=line, end=line + data.count(b"\n", begin, end), at=begin, behind=end, new=(too_long,))


def _change(before: bytes, old: Bytes, new: Bytes, line: int, begin: int) -> _Change:
    """Find the change of the lines *before*, the first of which has the number *line* and begins at *begin*."""
    old_lines, new_lines = _lines(before), _lines(before.replace(old, new))
    same_front = _common(old_lines, new_lines)
    same_back = _common(old_lines[same_front:][::-1], new_lines[same_front:][::-1])
    kept_old, kept_new = len(old_lines) - same_back, len(new_lines) - same_back
    return _Change(
        start=line + same_front,
        end=line + kept_old,
        at=begin + sum(map(len, old_lines[:same_front])),
        behind=begin + sum(map(len, old_lines[:kept_old])),
        new=tuple(new_lines[same_front:kept_new]),
    )


def _end_of_line(data: bytes, at: int) -> int:
    end = data.find(b"\n", at)
    return len(data) if end < 0 else end + 1


def _common(one: list[bytes], other: list[bytes]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def _lines(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    last = lines.pop()
    return [line + b"\n" for line in lines] + ([last] if last else [])


def _hunks(data: bytes, changes: Iterator[_Change]) -> Iterator[str]:
    """Changes whose context would meet share a hunk."""
    shift, size_bytes, group = 0, 0, list[_Change]()
    for change in changes:
        if group and change.start - group[-1].end > 2 * CONTEXT_LINES:
            yield _hunk(data, group, shift)
            shift += sum(earlier.shift for earlier in group)
            size_bytes, group = 0, []
        size_bytes += change.size_bytes
        if size_bytes > CHARACTER_BYTES * DIFF_CHARACTERS:
            raise _TooLong
        group.append(change)
    if group:
        yield _hunk(data, group, shift)


def _hunk(data: bytes, changes: list[_Change], shift: int) -> str:
    before, after = _lines_before(data, changes[0].at), _lines_after(data, changes[-1].behind)
    body = [_row(" ", line) for line in before]
    for number, change in enumerate(changes):
        if number:
            body += [_row(" ", line) for line in _lines(data[changes[number - 1].behind : change.at])]
        body += [_row("-", line) for line in _lines(data[change.at : change.behind])]
        body += [_row("+", line) for line in change.new]
    body += [_row(" ", line) for line in after]
    start = changes[0].start - len(before)
    old_count = changes[-1].end + len(after) - start
    new_count = old_count + sum(change.shift for change in changes)
    return f"@@ -{_span(start, old_count)} +{_span(start + shift, new_count)} @@\n" + "".join(body)


def _lines_before(data: bytes, at: int) -> list[bytes]:
    """The last lines before *at*, where a line begins, as many as are context."""
    begin = at
    for _ in range(CONTEXT_LINES):
        begin = data.rfind(b"\n", 0, max(0, begin - 1)) + 1
    return _lines(data[begin:at])


def _lines_after(data: bytes, at: int) -> list[bytes]:
    end = at
    for _ in range(CONTEXT_LINES):
        end = _end_of_line(data, end)
    return _lines(data[at:end])


def _span(start: int, count: int) -> str:
    return f"{start + 1 if count else start},{count}"


def _row(sign: str, line: bytes) -> str:
    text = line.decode("utf-8", "replace")
    return f"{sign}{text}" if line.endswith(b"\n") else f"{sign}{text}{NO_NEWLINE}"
