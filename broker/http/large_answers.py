"""A large answer on an event stream, said as plain JSON instead. Pure.

A handshake-era POST is answered on an event stream, and the SDK's Python client refuses an event above 1 MiB: a chunk
of a download in its default size would never arrive. The protocol lets a server answer any POST with plain JSON, for
which clients have no such limit. So an answer that is large, and the first thing on its stream, goes out as JSON.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

Message = MutableMapping[str, Any]

LARGE_EVENT_BYTES = 512 * 1024
"""Half of what the client takes, so that whatever it counts beside the data is within."""
EVENT_HEAD = b"event: message\r\ndata: "
EVENT_END = b"\r\n\r\n"
ANSWER_HEAD_BYTES = 512
"""Where an answer shows its "result" or "error": behind the version and the id."""
REPLACED_HEADERS = frozenset({b"content-type", b"content-length", b"cache-control", b"x-accel-buffering"})


def is_event_stream(start: Message) -> bool:
    """Whether a response that starts so is an event stream."""
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in start["headers"])


def lengthened(start: Message, growth: int) -> Message:
    """The same start of a response whose body is *growth* bytes longer; an event stream never says how long it is."""
    if not growth:
        return start
    length = b"content-length"
    headers = [(name, b"%d" % (int(value) + growth) if name == length else value) for name, value in start["headers"]]
    return {**start, "headers": headers}


def as_json(start: Message, first: Message, growth: int = 0) -> tuple[Message, Message] | None:
    """The same response as JSON: its start and its only body; None where it must stay an event stream.

    Args:
        start: the `http.response.start` of an event stream.
        first: the first `http.response.body` of it.
        growth: bytes that it is longer when it goes out.
    """
    event = first.get("body", b"")
    if len(event) + growth < LARGE_EVENT_BYTES or not (event.startswith(EVENT_HEAD) and event.endswith(EVENT_END)):
        return None
    answer = event[len(EVENT_HEAD) : -len(EVENT_END)]
    beginning = answer[:ANSWER_HEAD_BYTES]
    if b"\n" in answer or not (b'"result":' in beginning or b'"error":' in beginning):
        return None  # several data lines, or no answer: a notification or a question of the server's
    kept = [(name, value) for name, value in start["headers"] if name not in REPLACED_HEADERS]
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer)), *kept]
    return {**start, "headers": head}, {**first, "body": answer, "more_body": False}
