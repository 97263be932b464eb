"""What becomes of freed memory: enough of it stays for the buffers of the next chunk.

A call that carries a chunk makes and frees half a dozen buffers of its size. glibc gives freed memory back to the
kernel soon, and the page faults of getting it again cost several times what filling the buffers does: they were a third
of a chunk's time. It learns from what is freed (mallopt(3), "dynamic mmap threshold"): blocks as large as the largest
mapped one that was ever freed come from the heap from then on, and twice as much stays with it.
"""

from __future__ import annotations

LESSON_BYTES = 8 * 1024 * 1024
"""Twice this is room for the buffers of a chunk of the default size. A larger chunk is a lesson itself."""


def keep_freed_memory() -> None:
    """Let the C library keep up to twice LESSON_BYTES that are free; one that is not glibc takes no notice."""
    lesson = bytes(LESSON_BYTES)  # zeros: mapped, and never touched
    del lesson
