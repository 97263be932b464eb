"""What becomes of freed memory: enough of it stays for the buffers of the next chunk.

A call that carries a chunk makes and frees half a dozen buffers of its size. glibc gives freed memory back to the
kernel soon, and the page faults of getting it again cost several times what filling the buffers does: they were a third
of a chunk's time. It learns from what is freed (mallopt(3), "dynamic mmap threshold"): blocks as large as the largest
mapped one that was ever freed come from the heap from then on, and twice as much stays with it.

What many large calls at once have used does not come back by itself: it lies between blocks that are still in use. So
it is given back once nothing large has been held for a while.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

from broker.bytebudget import ByteBudget
from sandbox.threads import run_in_thread

QUIET_S = 1.0
"""Seconds after the last large body or answer: chunks follow each other faster."""
LESSON_BYTES = 8 * 1024 * 1024
"""Twice this is room for the buffers of a chunk of the default size. A larger chunk is a lesson itself."""


def keep_freed_memory() -> None:
    """Let the C library keep up to twice LESSON_BYTES that are free; one that is not glibc takes no notice."""
    lesson = bytes(LESSON_BYTES)  # zeros: mapped, and never touched
    del lesson


async def give_back_when_quiet(budget: ByteBudget) -> None:
    """Give freed memory back to the kernel whenever *budget* has been in use and is quiet. Runs until cancelled."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    while trim is not None:
        await budget.wait_quiet(QUIET_S)
        with suppress(OSError):  # no thread to be had: the next time
            await run_in_thread(trim, 0)
