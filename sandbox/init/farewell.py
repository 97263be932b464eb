"""Ask everything in a session to end, and wait for it, before it is killed. Broker side."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import trio

from sandbox.errors import ProcessNotFound
from sandbox.polled import close_descriptor, wait_ended

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandbox.init.init import Init


async def ask_to_end(init: Init) -> None:
    """Send SIGTERM to every process of the session's commands and wait until none is left.

    The caller bounds it, and kills those that stay.
    """
    asked: set[int] = set()
    while pids := await init.descendants():
        asked |= await _ask(init, pids - asked)
        # The others are none of the session's commands: a keeper that got ready for its next one meanwhile.
        if ours := pids & asked:
            await _wait_any(ours)


async def _ask(init: Init, pids: Iterable[int]) -> set[int]:
    """Signal those that are there; return them."""
    asked = set()
    for pid in pids:
        with suppress(ProcessNotFound):  # it ended by itself meanwhile, which is what we want
            await init.signal(pid, signal.SIGTERM)
            asked.add(pid)
    return asked


async def _wait_any(pids: Iterable[int]) -> None:
    """Return when one of the processes has ended."""
    with ExitStack() as stack:
        pidfds = []
        for pid in pids:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                return
            stack.callback(close_descriptor, pidfd)
            pidfds.append(pidfd)
        async with trio.open_nursery() as nursery:

            async def watch(pidfd: int) -> None:
                await wait_ended(pidfd)
                nursery.cancel_scope.cancel(reason="one has ended")

            for pidfd in pidfds:
                nursery.start_soon(watch, pidfd)
