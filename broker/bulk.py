"""One long string on its way past the SDK: out of a request before it is parsed, into an answer after it is written.

A chunk of a file as base64 costs the SDK copies, a scan and an escape for every byte, and nobody there looks at it. So
the guard takes one long argument out of the body of a `tools/call` and leaves a marker; the endpoint gets the parsed
arguments and puts the string back, before anybody decides on them. With a long result it is the other way round.

A marker is random and made when all that the client says in this request has come: nothing of it can be the marker.
Whatever is unusual about a body leaves it as it is. Pure.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Mapping
from typing import Any

import attrs
from pydantic_core import from_json

BULK_KEY = "broker.bulk"
"""Where the `Bulk` of a request is found in its ASGI scope."""
BULK_BYTES = 64 * 1024
"""A shorter string is not worth it."""
REST_BYTES = 16 * 1024
"""Of a body beside its long string; it is parsed here once more."""
MAX_BACKSLASHES = 256
"""Looked at in front of a quote; where there are more, the string may not be found, and goes the ordinary way."""

_QUOTE_OR_ESCAPE = re.compile(rb'\\.|"', re.DOTALL)


@attrs.define(eq=False)
class Bulk:
    """What goes past the SDK in one request and its answer."""

    _taken: tuple[str, str] | None = attrs.field(default=None, init=False)
    _held: tuple[bytes, bytes] | None = attrs.field(default=None, init=False)

    def take(self, body: bytes) -> bytes:
        """Return *body* with a marker instead of its long argument, or as it is.

        With the marker it is JSON, and the marker a whole string in it. So what was there is a whole string too, if it
        is one by itself; and all around it means what it meant.
        """
        start, end = _long_string(body)
        if end - start < BULK_BYTES or len(body) - (end - start) > REST_BYTES:
            return body
        marker = _new_marker()
        rest = b'%s"%s"%s' % (body[:start], marker.encode(), body[end:])
        if not _calls_with(marker, rest) or (text := _string(body[start:end])) is None:
            return body
        self._taken = marker, text
        return rest

    def give_back(self, arguments: Mapping[str, object]) -> Mapping[str, object]:
        """Return the *arguments* as the client sent them."""
        if self._taken is None:
            return arguments
        marker, text = self._taken
        return {name: text if value == marker else value for name, value in arguments.items()}

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

    @property
    def holds(self) -> bool:
        """Whether something is to be put into the answer."""
        return self._held is not None

    def growth(self, body: bytes) -> int:
        """Return how much longer *body* is when it is filled."""
        return sum(map(len, self.fill(body))) - len(body)

    def fill(self, body: bytes) -> tuple[bytes, ...]:
        """Return *body* in pieces, with what was held in its place."""
        if self._held is None:
            return (body,)
        marker, data = self._held
        before, found, after = body.partition(marker)
        return (before, data, after) if found else (body,)


def _long_string(body: bytes) -> tuple[int, int]:
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


def _is_escaped(body: bytes, index: int) -> bool:
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


def _calls_with(marker: str, body: bytes) -> bool:
    """Whether *body* is a request that the SDK will take for a `tools/call` with *marker* as an argument.

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
            return as_usual and marker in arguments.values()
        case _:
            return False
