"""A look, once a second, at what threads have handed over.

A thread that has done its work puts the outcome into a queue of the loop and wakes it by a byte in a socket. If that
byte is lost (the system call failed), the outcome waits for the next byte of anybody, and its caller with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

PULSE_S = 1.0


@asynccontextmanager
async def open_pulse() -> AsyncIterator[None]:
    """Look while this block lasts."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_beat)
        yield
        nursery.cancel_scope.cancel(reason="nobody waits for threads any more")


async def _beat() -> None:
    token = trio.lowlevel.current_trio_token()
    while True:
        await trio.sleep(PULSE_S)
        with suppress(OSError):  # this byte as well; the next one is a second away
            token.run_sync_soon(_look)


def _look() -> None:
    """Do nothing: that it is called is the look."""
