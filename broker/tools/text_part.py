"""A range of bytes as text: whole UTF-8 characters only, or the verdict that it is no text. Pure."""

from __future__ import annotations

import codecs

import attrs

MAX_CHARACTER_BYTES = 4


@attrs.frozen
class TextPart:
    """Whole characters, and how many bytes of the range they and what precedes them take up."""

    text: str
    used_bytes: int


def cut_text(data: bytes, limit: int, *, starts_file: bool, ends_file: bool) -> TextPart | None:
    """The text that begins within the first *limit* bytes of *data*, or None when it is not UTF-8 text.

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
    """How many bytes at the beginning continue a character that began before; a character has at most three such."""
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
    """The characters in the first *limit* bytes of *data*, which begins with a whole one; at least one if any.

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
    """The encoding in the middle of a file, where no byte order mark is: that of the mark at its *head*."""
    if offset == 0 or encoding not in ("utf-16", "utf-8-sig"):
        return encoding
    if encoding == "utf-8-sig":
        return "utf-8"
    return "utf-16-be" if head.startswith(codecs.BOM_UTF16_BE) else "utf-16-le"
