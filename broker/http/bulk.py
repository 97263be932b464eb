"""One long string on its way past the SDK: out of a request before it is parsed, into an answer after it is written.

A chunk of a file as base64 costs the SDK copies, a scan and an escape for every byte, and nobody there looks at it. So
the guard takes the long arguments out of the body of a `tools/call` and leaves markers; the endpoint gets the parsed
arguments and puts the strings back, before anybody decides on them. With a long result it is the other way round.

A body is taken apart where it lies: its own memory becomes that of its string, which no parser sees as a whole.

A marker is random and made when all that the client says in this request has come: nothing of it can be the marker.
Whatever is unusual about a body leaves it as it is. Pure.
"""

from __future__ import annotations

import codecs
import json
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
from pydantic_core import from_json

from broker.contract.encode import is_unicode
from broker.contract.long_text import CHARACTER_BYTES, Buffer, LongText, Text

BULK_KEY = "broker.bulk"
"""Where the `Bulk` of a request is found in its ASGI scope."""
BULK_BYTES = 64 * 1024
"""A shorter string is not worth it."""
REST_BYTES = 16 * 1024
"""Of a body beside its long string; it is parsed here once more."""
MAX_BACKSLASHES = 256
"""Looked at in front of a quote; where there are more, the string may not be found, and goes the ordinary way."""

SLICE_BYTES = 128 * 1024
"""Of a string; parsed at a time."""

_QUOTE_OR_ESCAPE = re.compile(rb'\\.|"', re.DOTALL)
_HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB]..", re.DOTALL)
_ESCAPE_BYTES = 6
"""One by a number; the others have two."""

Span: TypeAlias = tuple[int, int]
"""Where a string in a body begins and ends, with its quotes."""
Body: TypeAlias = bytes | bytearray


@attrs.define(eq=False)
class Bulk:
    """Strings that go past the SDK in one request and its answer."""

    when_parsed: Callable[[], None] = attrs.field(default=lambda: None, init=False)
    """What is done when the SDK has made arguments of the request."""
    _taken: dict[str, Text] = attrs.field(factory=dict, init=False)
    _held: tuple[bytes, bytes] | None = attrs.field(default=None, init=False)
    _is_told: bool = attrs.field(default=False, init=False)
    """Whether what is held stands in the text of the answer as well, and is escaped."""

    def take(self, body: Body) -> Body:
        """Return *body* with a marker instead of the long argument that has nearly all of it, or as it is.

        Where something is taken, a Buffer is used up: it becomes what was taken.
        """
        start, end = _long_string(body)
        if end - start < BULK_BYTES or len(body) - (end - start) > REST_BYTES:
            return body
        return self.take_all(body, [(start, end)])

    def take_all(self, body: Body, spans: Sequence[Span]) -> Body:
        """Return *body* with markers instead of the strings at *spans* (in order), all arguments, or as it is.

        With the markers it is JSON, and each a whole string in it. So what was there is a whole string too, if it is
        one by itself; and all around it means what it meant.
        """
        pieces, markers = _without(body, spans), [_new_marker() for _ in spans]
        rest = pieces[0] + b"".join(b'"%s"%s' % (m.encode(), p) for m, p in zip(markers, pieces[1:], strict=True))
        if not spans or not _calls_with(markers, rest) or not all(_is_string(body, *span) for span in spans):
            return body
        whole = body if isinstance(body, Buffer) else Buffer(body)
        for marker, (start, end) in reversed(list(zip(markers, spans, strict=True))):
            self._taken[marker] = _text(_cut_out(whole, start + 1, end - 1, alone=start == spans[0][0]))
        return rest

    def buffers(self) -> list[Buffer]:
        """Return what holds the long strings that were taken."""
        return [text.encode() for text in self._taken.values() if isinstance(text, LongText)]

    def drop(self) -> None:
        """Hold nothing of the request any more."""
        for text in self._taken.values():
            if isinstance(text, LongText):
                text.drop()

    def give_back(self, arguments: Mapping[str, object]) -> Mapping[str, object]:
        """Return the *arguments* as the client sent them, but for a long string, which is a `LongText`."""
        self.when_parsed()
        if not self._taken:
            return arguments
        taken = self._taken
        return {name: taken.get(value, value) if isinstance(value, str) else value for name, value in arguments.items()}

    def hold(self, structured: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
        """Return a result with a marker instead of its long one of *fields*, or as it is."""
        for name in fields:
            text = structured.get(name)
            if not isinstance(text, str) or len(text) < BULK_BYTES or not text.isascii():
                continue
            data, marker = text.encode(), _new_marker()
            if _string(b'"%s"' % data) == text:  # JSON writes it as itself
                self._held = marker.encode(), data
                return {**structured, name: marker}
        return structured

    def hold_told(self, structured: dict[str, Any]) -> dict[str, Any]:
        """Return a result with a marker instead of a long string, or as it is; the text may have the marker, too."""
        for name, text in structured.items():
            if self._held is None and isinstance(text, str) and len(text) >= BULK_BYTES and is_unicode(text):
                marker = _new_marker()
                self._held, self._is_told = (marker.encode(), text.encode()), True
                return {**structured, name: marker}
        return structured

    @property
    def held_bytes(self) -> int:
        """How many bytes are held of what goes into the answer."""
        return 0 if self._held is None else len(self._held[1])

    @property
    def holds(self) -> bool:
        """Whether something is to be put into the answer."""
        return self._held is not None

    def growth(self, body: bytes) -> int:
        """Return how much longer *body* is when it is filled."""
        return sum(map(len, self.fill(body))) - len(body)

    def fill(self, body: bytes) -> Iterable[bytes]:
        """Return *body* in pieces, with what was held in its place; what is escaped is made when its turn comes."""
        if self._held is None:
            return (body,)
        marker, data = self._held
        if self._is_told:
            return _told(body.split(marker), data)
        before, found, after = body.partition(marker)
        return (before, data, after) if found else (body,)


def _told(around: Sequence[bytes], data: bytes) -> Iterator[bytes]:
    """Yield what is *around* the markers, and *data* as JSON instead of each; in the text it is JSON within JSON."""
    for number, piece in enumerate(around):
        yield piece
        if number < len(around) - 1:
            in_text = piece.endswith(b'\\"')
            decoder = codecs.getincrementaldecoder("utf-8")()
            for at in range(0, len(data), SLICE_BYTES):
                escaped = json.dumps(decoder.decode(data[at : at + SLICE_BYTES]))[1:-1].encode()
                yield escaped.replace(b"\\", b"\\\\").replace(b'"', b'\\"') if in_text else escaped


def _without(body: Body, spans: Sequence[Span]) -> list[bytes]:
    """Return what is before, between and behind the *spans*."""
    edges = [0, *(edge for span in spans for edge in span), len(body)]
    return [bytes(body[start:end]) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _cut_out(body: Buffer, start: int, end: int, *, alone: bool) -> Buffer:
    """Return that part of *body* and cut the body off before it; if the part is *alone*, in the memory of the body."""
    if not alone:
        with memoryview(body) as view, view[start:end] as inside:
            part = Buffer(inside)
        del body[start:]
        return part
    del body[end:]
    del body[:start]
    return body


def _text(inside: Buffer) -> Text:
    """Return the text between the quotes of a string that is one, unescaped where it lies, since it only shrinks."""
    if inside.find(b"\\") >= 0:
        written = 0
        for start, end in _slices(inside, 0, len(inside)):
            piece = from_json(_quoted(inside, start, end)).encode()
            inside[written : written + len(piece)] = piece
            written += len(piece)
        del inside[written:]
    return LongText(inside) if len(inside) >= BULK_BYTES else inside.decode()


def _is_string(body: Body, start: int, end: int) -> bool:
    """Tell whether that part of *body* is one string of JSON."""
    if body[start : start + 1] != b'"' or body[end - 1 : end] != b'"':
        return False
    return all(_string(_quoted(body, *part)) is not None for part in _slices(body, start + 1, end - 1))


def _quoted(body: Body, start: int, end: int) -> bytes:
    return b'"' + body[start:end] + b'"'


def _slices(body: Body, start: int, end: int) -> Iterator[Span]:
    """Yield where pieces of the inside of a string begin and end that are the inside of one each."""
    while start < end:
        stop = start + SLICE_BYTES
        if stop < end:
            stop = start + _whole_length(bytes(body[start:stop]), body[stop])
        yield start, (start := min(stop, end))


def _whole_length(piece: bytes, following: int) -> int:
    """Return how much of *piece* can be parsed without the byte *following* it, and what comes then.

    No character is cut, no escape, and no pair of escapes that make one character.
    """
    stop = len(piece)
    escapes = piece.replace(rb"\\", b"..")  # now every backslash begins an escape
    last = escapes.rfind(b"\\", stop - _ESCAPE_BYTES)
    if last >= 0 and last + (_ESCAPE_BYTES if piece[last + 1 : last + 2] == b"u" else 2) > stop:
        stop = last
    elif following & 0xC0 == 0x80:
        stop = max(stop - CHARACTER_BYTES, 0) + _character_start(piece[-CHARACTER_BYTES:])
    before = stop - _ESCAPE_BYTES
    if before >= 0 and escapes[before : before + 1] == b"\\" and _HIGH_SURROGATE.match(piece, before):
        stop = before
    return stop or len(piece)  # a whole piece that nothing can be made of is no string's


def _character_start(tail: bytes) -> int:
    """Return where in *tail* the last byte is that continues no character."""
    return next((at for at in reversed(range(len(tail))) if tail[at] & 0xC0 != 0x80), len(tail))


def _long_string(body: Body) -> Span:
    """Find where the string begins and ends that has nearly all of *body*; two equal numbers if there is none.

    It is open where the beginning of the body ends, and the first quote at the end of the body that no backslash
    stands before closes it. Whether it is a string is for a parser to say.
    """
    start = -1
    for found in _QUOTE_OR_ESCAPE.finditer(body, 0, REST_BYTES):
        if found.group() == b'"':
            start = found.start() if start < 0 else -1
    if start < 0 or len(body) < BULK_BYTES:
        return 0, 0
    end = body.find(b'"', len(body) - REST_BYTES)
    while end > 0 and _is_escaped(body, end):
        end = body.find(b'"', end + 1)
    return start, max(start, end + 1)


def _is_escaped(body: Body, index: int) -> bool:
    before = body[index - MAX_BACKSLASHES : index]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 1


def _new_marker() -> str:
    return f"bulk:{secrets.token_hex(16)}"


def _string(json_bytes: bytes) -> str | None:
    """Return the string that a piece of JSON is, if it is one."""
    try:
        text = from_json(json_bytes)  # many times faster than `json`
    except ValueError:
        return None
    return text if isinstance(text, str) else None


def _calls_with(markers: Collection[str], body: bytes) -> bool:
    """Whether *body* is a request that the SDK will take for a `tools/call` with all *markers* as arguments.

    It must be without fault: the SDK may quote from a message that has one.
    """
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return False
    match message:
        case {
            "jsonrpc": "2.0",
            "id": request_id,
            "method": "tools/call",
            "params": {"name": str(), "arguments": dict() as arguments, **more},
            **others,
        }:
            as_usual = type(request_id) in {int, str} and not others and more.keys() <= {"_meta"}
            words = {value for value in arguments.values() if isinstance(value, str)}
            return as_usual and words.issuperset(markers)
        case _:
            return False
