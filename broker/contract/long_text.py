"""A long string of a call, as the UTF-8 that it will be written as, and nowhere as a `str`.

One emoji makes a `str` of four bytes a character, and its bytes, where they are wanted, are made beside it. Here they
are held once. The reader of the call owns them, and takes them away when the call is over, even if something still
refers to them.
"""

from __future__ import annotations

import base64
from binascii import a2b_base64
from contextlib import suppress
from typing import TypeAlias

import attrs

CHARACTER_BYTES = 4
"""A character of UTF-8 has no more."""
COUNTED_BYTES = 128 * 1024
"""At a time."""
CODED_BYTES, DECODED_BYTES = 128 * 1024, 96 * 1024
"""Of base64 at a time, and what they become."""
_CONTINUING = bytes(range(0x80, 0xC0))


class Buffer(bytearray):
    """Bytes of which can be told when nobody has them any more."""

    __slots__ = ("__weakref__",)


@attrs.define(eq=False, repr=False)
class LongText:
    """It has no lone surrogates: they have no UTF-8. Equal to the `str` that it is."""

    _data: Buffer
    size: int = attrs.field(init=False)
    """Bytes of UTF-8."""

    def __attrs_post_init__(self) -> None:
        self.size = len(self._data)

    def encode(self) -> Buffer:
        """Return the UTF-8 itself; nobody changes it."""
        return self._data

    def take_base64(self) -> Buffer:
        """Return what it is the base64 of, in the memory that it had, so that both are never held; it is empty then.

        Raises: ValueError as the base64 module does for a `str`, and it is as it was.
        """
        data = self._data
        if not data.isascii():
            raise ValueError("string argument should contain only ASCII characters")
        if not _decode_where_it_lies(data):
            data[:] = base64.b64decode(data, validate=True)  # what is wrong is said of the whole
        self.drop()
        return data

    def drop(self) -> None:
        """Hold nothing any more. Who has asked for the bytes before keeps them."""
        self._data = Buffer()

    def head(self, characters: int) -> str:
        """Return no more than the first *characters*."""
        return self._data[: CHARACTER_BYTES * characters].decode(errors="ignore")[:characters]

    def __len__(self) -> int:
        """Count the characters."""
        view = memoryview(self._data)
        pieces = (bytes(view[at : at + COUNTED_BYTES]) for at in range(0, len(view), COUNTED_BYTES))
        return sum(len(piece.translate(None, _CONTINUING)) for piece in pieces)

    def __bool__(self) -> bool:
        """Tell whether there is something."""
        return self.size > 0

    def __str__(self) -> str:
        """Return it as a `str`, however much that takes."""
        return self._data.decode()

    def __repr__(self) -> str:
        """Say what it is, and nothing of what is in it."""
        return f"<LongText of {self.size} bytes>"

    def __eq__(self, other: object) -> bool:
        """Compare the text."""
        if isinstance(other, LongText | str):
            return self._data == other.encode()
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # what can be taken away must be no key


def _decode_where_it_lies(data: Buffer) -> bool:
    """Make *data* what it is the base64 of, in its own memory; False: it is as it was, and not so simple."""
    done = end = 0
    with memoryview(data) as view, suppress(ValueError):
        for at in range(0, len(data), CODED_BYTES):
            piece = a2b_base64(view[at : at + CODED_BYTES], strict_mode=True)
            if len(piece) < DECODED_BYTES and at + CODED_BYTES < len(data):
                break  # there is padding before the end
            view[end : end + len(piece)] = piece
            done, end = at + CODED_BYTES, end + len(piece)
    if done >= len(data):
        del data[end:]  # it keeps the memory, by which its room is counted
        return True
    for at in reversed(range(0, done, CODED_BYTES)):
        data[at : at + CODED_BYTES] = base64.b64encode(data[at // 4 * 3 : at // 4 * 3 + DECODED_BYTES])
    return False


Text: TypeAlias = str | LongText
"""A string that may be long, where only its UTF-8 is wanted."""
Bytes: TypeAlias = bytes | Buffer
"""Bytes that came as base64, which may have been a long string."""
