"""The beginning and the end of a stream, kept in memory while it flows by. Pure.

What an answer carries of a long output: where it began, where it stands, and exactly how much lies between.
"""

from __future__ import annotations

import codecs

import attrs

CHARACTER_BYTES = 4  # of one character in UTF-8, at most


@attrs.frozen(kw_only=True)
class Excerpt:
    """A stream as text: whole characters of its beginning and end; `omitted_bytes` lie between."""

    head: str
    tail: str
    omitted_bytes: int
    total_bytes: int


class Ends:
    """The first and the last bytes of one stream, together at most `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        """Keep half of *limit_bytes* of the beginning, the rest of the end."""
        self.total_bytes = 0
        self._limit_bytes = limit_bytes
        self._head_bytes = limit_bytes // 2
        self._tail_bytes = limit_bytes - self._head_bytes
        self._head = bytearray()
        self._tail = bytearray()

    def add(self, data: bytes) -> None:
        """Take in what came."""
        self.total_bytes += len(data)
        if (room := self._head_bytes - len(self._head)) > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data[-self._tail_bytes :]
        if len(self._tail) > 2 * self._tail_bytes:  # not at every piece: a million little ones would each move it
            del self._tail[: -self._tail_bytes]

    def head(self) -> bytes:
        """Return what is kept of the beginning, and all of a stream that is no longer than the limit."""
        return bytes(self._head if self._cut else self._head + self._tail)

    def tail(self, limit_bytes: int) -> bytes:
        """Return the last bytes, at most *limit_bytes* of those that are kept."""
        last = self._tail if self._cut else self._head + self._tail
        return bytes(last[-limit_bytes:])

    def excerpt(self) -> Excerpt:
        """Return both ends as text; a character that a cut went through is left out with what lies between."""
        if not self._cut:
            text = bytes(self._head + self._tail).decode("utf-8", "replace")
            return Excerpt(head=text, tail="", omitted_bytes=0, total_bytes=self.total_bytes)
        head = whole_characters(bytes(self._head))
        tail = bytes(self._tail[-self._tail_bytes :])
        tail = tail[rest_of_character(tail) :]
        return Excerpt(
            head=head.decode("utf-8", "replace"),
            tail=tail.decode("utf-8", "replace"),
            omitted_bytes=self.total_bytes - len(head) - len(tail),
            total_bytes=self.total_bytes,
        )

    @property
    def _cut(self) -> bool:
        return self.total_bytes > self._limit_bytes


def whole_characters(data: bytes) -> bytes:
    """Return *data* without the beginning of a character at its end; bytes that are no UTF-8 at all stay."""
    for length in range(1, min(CHARACTER_BYTES, len(data) + 1)):
        lead = data[-length]
        if lead & 0b1100_0000 == 0b1000_0000:  # continues a character: look for its first byte
            continue
        return data[:-length] if _begins_character(data[-length:]) else data
    return data


def _begins_character(piece: bytes) -> bool:
    """Tell whether more bytes could make *piece* one character."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    try:
        return decoder.decode(piece) == "" and bool(piece)
    except UnicodeDecodeError:
        return False


def rest_of_character(data: bytes) -> int:
    """Count the bytes at the beginning that continue a character which began before; at most three can."""
    count = 0
    while count < min(len(data), CHARACTER_BYTES - 1) and data[count] & 0b1100_0000 == 0b1000_0000:
        count += 1
    return count
