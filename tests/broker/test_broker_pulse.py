"""A byte that wakes the loop may be lost; what a thread has done is answered all the same."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from trio._core._run import GLOBAL_RUN_CONTEXT

from broker.pulse import open_pulse


@contextmanager
def deaf_loop() -> Iterator[None]:
    """Have every byte that should wake the loop fail with EPIPE."""
    wakes = GLOBAL_RUN_CONTEXT.runner.entry_queue.wakeup.write_sock.fileno()
    kept = os.dup(wakes)
    dead, peer = socket.socketpair()
    peer.close()
    os.dup2(dead.fileno(), wakes)
    dead.close()
    try:
        yield
    finally:
        os.dup2(kept, wakes)
        os.close(kept)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_what_a_thread_has_done_is_answered_though_nobody_was_woken() -> None:
    done = trio.Event()

    async def wait() -> None:
        await trio.to_thread.run_sync(os.getpid)
        done.set()

    async with trio.open_nursery() as nursery:
        with deaf_loop():
            nursery.start_soon(wait)
            with trio.move_on_after(0.2):
                await done.wait()
            assert not done.is_set()  # the control: nothing looks
        async with open_pulse():
            await done.wait()
