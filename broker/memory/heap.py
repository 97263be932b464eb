"""Settings of the heap: of freed memory enough stays for the buffers of the next chunk.

A call that carries a chunk makes and frees half a dozen buffers of its size. glibc gives freed memory back to the
kernel soon, and the page faults of getting it again cost several times what filling the buffers does: they were a third
of a chunk's time. So blocks of a chunk's size come from the heap, and twice as much stays with it. Larger ones are
mapped and go back at once: by itself glibc would learn from each that is freed to keep the next (mallopt(3), "dynamic
mmap threshold"), up to 64 MiB. And all threads share one heap, or each would keep as much.

What many large calls at once have used does not come back by itself: it lies between blocks that are still in use. So
it is given back once nothing large has been held for a while.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

from broker.memory.budget import ByteBudget
from sandbox.threads import run_in_thread

QUIET_S = 1.0
"""Seconds after the last large body or answer: chunks follow each other faster."""
HEAP_BLOCK_BYTES = 8 * 1024 * 1024
"""Larger blocks are mapped. Twice this is room for the buffers of a chunk of the default size."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""See malloc.h of glibc."""


def keep_freed_memory() -> None:
    """Let the C library keep up to twice HEAP_BLOCK_BYTES that are free; only glibc is told. Call it before threads."""
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "gnu_get_libc_version"):
        c_library.mallopt(M_MMAP_THRESHOLD, HEAP_BLOCK_BYTES)
        c_library.mallopt(M_TRIM_THRESHOLD, 2 * HEAP_BLOCK_BYTES)
        c_library.mallopt(M_ARENA_MAX, 1)


async def give_back_when_quiet(budget: ByteBudget) -> None:
    """Give freed memory back to the kernel whenever *budget* has been in use and is quiet. Runs until cancelled."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    while trim is not None:
        await budget.wait_quiet(QUIET_S)
        with suppress(OSError):  # no thread to be had: the next time
            await run_in_thread(trim, 0)
