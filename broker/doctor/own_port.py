"""A port of the doctor's own, that is opened and minded as the broker's is, and behind which there is nothing to do.

It listens on a free port of 127.0.0.1 while the doctor runs, answers /healthz and knows no tool.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlsplit

import trio

from broker.access.peerwatch import PeerWatch
from broker.calls import Answer, Call
from broker.endpoint.adapter import build_server
from broker.endpoint.http import serve_http
from config.settings import HttpSettings

SETTINGS = HttpSettings(
    host="127.0.0.1", port=0, max_body_bytes=1024, body_timeout_s=1, max_calls_in_flight=1, max_connections=8
)


@asynccontextmanager
async def open_own_port(watch: PeerWatch) -> AsyncIterator[tuple[str, int]]:
    """Serve whom *watch* lets through, and yield the address.

    Raises:
        ListenFailed: there is no port to be had.
    """
    async with trio.open_nursery() as nursery:
        server = build_server(_NoTools(), {}, version="0", instructions="")
        serve = partial(serve_http, SETTINGS, server, stop=trio.Event(), end_work=_nothing, watch=watch)
        (url,) = await nursery.start(serve)
        parts = urlsplit(url)
        yield str(parts.hostname), parts.port or 0
        nursery.cancel_scope.cancel(reason="the doctor is done")


class _NoTools:
    """Whom a server without tools asks about calls."""

    async def handle(self, _call: Call) -> Answer:
        """Know no tool, which the endpoint puts into the protocol's words."""
        await trio.lowlevel.checkpoint()
        return Answer(structured={}, is_error=True)


async def _nothing() -> None:
    """End no work: there is none."""
    await trio.lowlevel.checkpoint()
