"""The cost of parsing a JSON body, known before anything parses it.

A string costs a parser about its length, however long it is. Everything else becomes objects: a million keys are
hundreds of times their bytes, and seconds in which nobody else is served. So what is no string is counted first, by
the fastest loops there are, a slice at a time, so that others have their turn between two.

Where a body is no JSON the count holds up to the first fault, and no parser builds anything behind it.
"""

from __future__ import annotations

import json

import attrs
import trio

MAX_ELEMENTS = 50_000
"""Values and names in a body. An honest call has hundreds at most: what is large about one are its strings."""
MAX_OUTSIDE_BYTES = 1024 * 1024
"""Bytes outside strings: numbers, punctuation, white space. One number of megabytes costs its square."""
SLICE_BYTES = 128 * 1024
"""Scanned at a time; under a millisecond."""
LONG_BYTES = SLICE_BYTES + 1
"""A string that long, with its quotes, reaches from one slice into the next, and is found where a slice ends."""
MAX_LONG_STRINGS = 16
"""More are not told; no tool takes so many."""


async def shape_of(body: bytes | bytearray) -> BodyShape:
    """Look at all of *body*, or as much as it takes to find fault with it; others are served between two slices."""
    shape = BodyShape()
    if len(body) <= MAX_ELEMENTS:  # one so short cannot be over
        return shape
    if not json.detect_encoding(bytes(body[:4])).startswith("utf-8"):
        # In another, a byte that looks like a quote need not be one.
        shape.other_fault = "a body this long must be JSON in UTF-8"
        return shape
    for start in range(0, len(body), SLICE_BYTES):
        shape.feed(bytes(body[start : start + SLICE_BYTES]))
        if shape.fault:
            break
        await trio.lowlevel.checkpoint()
    return shape


@attrs.define(eq=False)
class BodyShape:
    """Shape of a body as far as it was seen, fed slice by slice."""

    elements: int = attrs.field(default=1, init=False)
    outside_bytes: int = attrs.field(default=0, init=False)
    long_strings: list[tuple[int, int]] = attrs.field(factory=list, init=False)
    """Where strings of LONG_BYTES and more begin and end, with their quotes."""
    other_fault: str = attrs.field(default="", init=False)
    _seen: int = attrs.field(default=0, init=False)
    _opened_at: int = attrs.field(default=0, init=False)
    """Where the string began that the last slice ended in."""
    _in_string: bool = attrs.field(default=False, init=False)
    _escaped: bool = attrs.field(default=False, init=False)

    def feed(self, piece: bytes) -> None:
        """Look at the next *piece*."""
        if self._escaped:  # what a backslash at the end of the last piece made of the first byte
            piece = b"." + piece[1:]
        if b"\\" in piece:  # places stay what they are
            piece = piece.replace(rb"\\", b"..").replace(rb"\"", b"..")
        self._escaped = piece.endswith(b"\\")
        self._find_long(piece)
        parts = piece.split(b'"')
        outside = b"".join(parts[self._in_string :: 2])
        self._in_string ^= len(parts) % 2 == 0
        self.outside_bytes += len(outside)
        # One of these stands before every value and every name but the first.
        self.elements += sum(map(outside.count, (b",", b":", b"[", b"{")))

    def _find_long(self, piece: bytes) -> None:
        """Look for the end of a string that began in an earlier *piece*, and for the beginning of one that goes on."""
        first, last = piece.find(b'"'), piece.rfind(b'"')
        if self._in_string and first >= 0:
            end = self._seen + first + 1
            if end - self._opened_at >= LONG_BYTES and len(self.long_strings) < MAX_LONG_STRINGS:
                self.long_strings.append((self._opened_at, end))
        if last >= 0:
            self._opened_at = self._seen + last  # it opens one if the piece ends in one
        self._seen += len(piece)

    @property
    def fault(self) -> str:
        """Which limit it is over, "" while it is not."""
        if self.other_fault:
            return self.other_fault
        if self.elements > MAX_ELEMENTS:
            return (
                f"the body has more than {MAX_ELEMENTS} values and names (counted: {self.elements}), which is the "
                "limit; send long content as one string, and many things in several calls"
            )
        if self.outside_bytes > MAX_OUTSIDE_BYTES:
            return (
                f"the body has more than {MAX_OUTSIDE_BYTES} bytes outside strings (counted: {self.outside_bytes}), "
                "which is the limit; send long content as one string"
            )
        return ""
