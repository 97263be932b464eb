"""Work that blocks, in a thread, also while there is none to be had.

Python says that the kernel refuses a thread by a RuntimeError, which nobody expects of a call that reads a file. Here
it becomes the OSError that such a shortage is everywhere else. `sandbox/threads.py` is the same for all other packages:
this one imports none of ours.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class NoThread(OSError):
    """There is no thread to be had (EAGAIN), and nothing of the work happened."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, os.strerror(errno.EAGAIN))


async def run_in_thread(
    call: Callable[[*Ts], T],
    *args: *Ts,
    limiter: trio.CapacityLimiter | None = None,
) -> T:
    """Return what *call* returns, from a thread; arguments as of `trio.to_thread.run_sync`.

    Raises:
        NoThread: nothing of *call* happened.
    """
    begun = False

    def work() -> T:
        nonlocal begun
        begun = True
        return call(*args)

    try:
        return await trio.to_thread.run_sync(work, limiter=limiter)
    except RuntimeError as refused:
        if begun:
            raise
        raise NoThread from refused
