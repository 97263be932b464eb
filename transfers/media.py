"""The kind of a file: by its first bytes, else by its name, and which of the two it was.

Who looks at bytes is given (`sandbox/sniffing.py`, for libmagic): a session chose them. Here is what was seen lately,
and what a name tells.
"""

from __future__ import annotations

import hashlib
import mimetypes
import os
import posixpath
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import attrs
import trio

from transfers.refusals import SourceUnreadable
from transfers.threads import run_in_thread

HEAD_BYTES = 4096
"""As many bytes as libmagic needs for all but a few exotic formats."""
UNKNOWN = "application/octet-stream"
KNOWN_HEADS = 1024
"""Beginnings whose type is remembered, by their digests: libmagic takes up to a millisecond for a page of text."""

Look: TypeAlias = Callable[[bytes], Awaitable[str | None]]
"""The MIME type of what begins with these bytes, or None where that cannot be said; answers in bounded time."""


@attrs.frozen(kw_only=True)
class MediaType:
    """A MIME type and who says so: "libmagic" (the content) or "name" (the file's name)."""

    mime_type: str
    found_by: str


@attrs.define(eq=False, kw_only=True)
class MediaTypes:
    """Answers for one broker. *look*: at the content; *limiter*: of threads for what reads a disk."""

    _look: Look
    _limiter: trio.CapacityLimiter
    _known: OrderedDict[bytes, str] = attrs.field(factory=OrderedDict, init=False)

    async def of_descriptor(self, fd: int, path: str) -> MediaType:
        """Look at the beginning of an open file; its offset stays where it is. *fd* remains the caller's.

        Raises:
            SourceUnreadable: the file at *path* cannot be read.
        """
        try:
            head = await run_in_thread(os.pread, fd, HEAD_BYTES, 0, limiter=self._limiter)
        except OSError as fault:
            raise SourceUnreadable(path, fault.strerror or str(fault)) from fault
        return await self.of_bytes(head, posixpath.basename(path))

    async def of_bytes(self, head: bytes, filename: str) -> MediaType:
        """Look at the beginning of a file that was read already; what was seen lately needs no second look."""
        await trio.lowlevel.checkpoint_if_cancelled()
        head = head[:HEAD_BYTES]
        digest = hashlib.blake2b(head, digest_size=16).digest()  # what was in a file is not kept
        found = self._known.pop(digest, None)
        if found is None and head:  # an empty file has nothing but its name
            found = await self._look(head)
        if found is None:  # the first time, the system's tables are read
            return await run_in_thread(_by_name, filename, limiter=self._limiter)
        self._known[digest] = found
        if len(self._known) > KNOWN_HEADS:
            self._known.popitem(last=False)
        return MediaType(mime_type=found, found_by="libmagic")


def _by_name(filename: str) -> MediaType:
    guessed, encoding = mimetypes.guess_type(filename)
    if encoding is not None:  # x.tar.gz: what is transferred is the compressed file
        guessed = {"gzip": "application/gzip", "xz": "application/x-xz", "bzip2": "application/x-bzip2"}.get(
            encoding, UNKNOWN
        )
    return MediaType(mime_type=guessed or UNKNOWN, found_by="name")
