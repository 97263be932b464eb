"""Exact replacement in a text, and the unified diff of it. Pure.

The places are known, so the diff is made from them in linear time, however large the text; the bytes around them
are not looked at as text, so that a file in any encoding keeps what it has.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

CONTEXT_LINES = 3
DIFF_CHARACTERS = 65_536
SHOWN_LINES = 10
NO_NEWLINE = "\n\\ No newline at end of file\n"


@attrs.frozen(kw_only=True)
class Edited:
    """The new content, and what a reviewer sees of it."""

    data: bytes
    diff: str
    diff_truncated: bool


@attrs.frozen(kw_only=True)
class _Change:
    """Lines `start` to `end` of the old text (from 0, end exclusive) become `new`."""

    start: int
    end: int
    new: tuple[bytes, ...]


def occurrences(data: bytes, old: bytes) -> tuple[int, ...]:
    """Where *old* occurs, from left to right, none overlapping another."""
    places, at = [], data.find(old)
    while at >= 0:
        places.append(at)
        at = data.find(old, at + len(old))
    return tuple(places)


def lines_of(data: bytes, places: tuple[int, ...]) -> tuple[int, ...]:
    """The line numbers, from 1, of the first few places."""
    return tuple(data.count(b"\n", 0, place) + 1 for place in places[:SHOWN_LINES])


def replace_exactly(data: bytes, old: bytes, new: bytes, places: tuple[int, ...], name: str) -> Edited:
    """Replace *old* by *new* at *places*, which are its occurrences; *name* is what the diff calls the file."""
    changes = tuple(_changes(data, old, new, places))
    lines = _lines(data)
    header = f"--- a/{name}\n+++ b/{name}\n"
    pieces, size = [header], len(header)
    truncated = False
    for hunk in _hunks(lines, changes):
        if size + len(hunk) > DIFF_CHARACTERS:
            truncated = True
            break
        pieces.append(hunk)
        size += len(hunk)
    return Edited(
        data=data.replace(old, new),
        diff="".join(pieces) if len(pieces) > 1 or truncated else "",
        diff_truncated=truncated,
    )


def _changes(data: bytes, old: bytes, new: bytes, places: tuple[int, ...]) -> Iterator[_Change]:
    """The line ranges that change, places on a common line together."""
    line, counted = 0, 0  # number of the line that begins at or before `counted`
    group: list[int] = []
    for place in places:
        if group and place > _end_of_line(data, group[-1] + len(old)):
            change, line, counted = _change(data, old, new, group, line, counted)
            yield from change
            group = []
        group.append(place)
    if group:
        change, _, _ = _change(data, old, new, group, line, counted)
        yield from change


def _change(
    data: bytes, old: bytes, new: bytes, group: list[int], line: int, counted: int
) -> tuple[list[_Change], int, int]:
    begin = data.rfind(b"\n", 0, group[0]) + 1
    # The line behind the last place belongs to it: without its newline, the two would become one.
    end = _end_of_line(data, group[-1] + len(old))
    first = line + data.count(b"\n", counted, begin)
    before = data[begin:end]
    old_lines, new_lines = _lines(before), _lines(before.replace(old, new))
    same_front = _common(old_lines, new_lines)
    same_back = _common(old_lines[same_front:][::-1], new_lines[same_front:][::-1])
    kept_old, kept_new = len(old_lines) - same_back, len(new_lines) - same_back
    change = _Change(start=first + same_front, end=first + kept_old, new=tuple(new_lines[same_front:kept_new]))
    changed = [change] if change.start < change.end or change.new else []
    return changed, first, begin


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


def _hunks(lines: list[bytes], changes: tuple[_Change, ...]) -> Iterator[str]:
    """Changes whose context would meet share a hunk."""
    shift, group = 0, list[_Change]()
    for change in changes:
        if group and change.start - group[-1].end > 2 * CONTEXT_LINES:
            yield _hunk(lines, group, shift)
            shift += sum(len(c.new) - (c.end - c.start) for c in group)
            group = []
        group.append(change)
    if group:
        yield _hunk(lines, group, shift)


def _hunk(lines: list[bytes], changes: list[_Change], shift: int) -> str:
    start = max(0, changes[0].start - CONTEXT_LINES)
    end = min(len(lines), changes[-1].end + CONTEXT_LINES)
    body, at = [], start
    for change in changes:
        body += [_row(" ", line) for line in lines[at : change.start]]
        body += [_row("-", line) for line in lines[change.start : change.end]]
        body += [_row("+", line) for line in change.new]
        at = change.end
    body += [_row(" ", line) for line in lines[at:end]]
    old_count = end - start
    new_count = old_count + sum(len(c.new) - (c.end - c.start) for c in changes)
    return f"@@ -{_span(start, old_count)} +{_span(start + shift, new_count)} @@\n" + "".join(body)


def _span(start: int, count: int) -> str:
    return f"{start + 1 if count else start},{count}"


def _row(sign: str, line: bytes) -> str:
    text = line.decode("utf-8", "replace")
    return f"{sign}{text}" if line.endswith(b"\n") else f"{sign}{text}{NO_NEWLINE}"
