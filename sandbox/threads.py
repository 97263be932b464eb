"""Work that blocks, in a thread, also while there is none to be had (outside the walls).

Where the kernel refuses a thread, Python raises a RuntimeError, which nobody expects of a call that reads a file. Here
it becomes an OSError, as such a shortage is everywhere else. `transfers/threads.py` is the same for its package,
which imports none of ours; nothing else calls `trio.to_thread` (test_architecture.py).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def run_in_thread(
    call: Callable[[*Ts], T],
    *args: *Ts,
    limiter: trio.CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
    or_here: bool = False,
) -> T:
    """Return what *call* returns, from a thread; arguments as of `trio.to_thread.run_sync`.

    Args:
        or_here: where there is no thread, call it in the loop's own, which waits for it meanwhile: for what is short
            and must be done, such as a kill.

    Raises:
        OSError: (EAGAIN) there is no thread to be had, and nothing of *call* happened.
    """
    begun = False

    def work() -> T:
        nonlocal begun
        begun = True
        return call(*args)

    try:
        return await trio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=abandon_on_cancel)
    except RuntimeError as refused:
        if begun:
            raise
        if not or_here:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from refused
    return call(*args)
