"""What kind of file it is: by its first bytes (libmagic), else by its name, and which of the two it was.

libmagic is a system library that may be missing, broken, or shadowed by another package called `magic`; that
is found out at the first question, in a worker thread, because loading it searches the disk.
"""

from __future__ import annotations

import hashlib
import importlib
import mimetypes
import os
import threading
from collections import OrderedDict
from typing import Any, Protocol

import attrs
import trio

HEAD_BYTES = 4096
"""As many bytes as libmagic needs for all but a few exotic formats."""
UNKNOWN = "application/octet-stream"
KNOWN_HEADS = 1024
"""Beginnings whose type is remembered, by their digests: libmagic takes up to a millisecond for a page of text."""


class _Sniffer(Protocol):
    def from_buffer(self, head: bytes, /) -> str: ...


@attrs.frozen(kw_only=True)
class MediaType:
    """A MIME type and who says so: "libmagic" (the content) or "name" (the file's name)."""

    mime_type: str
    found_by: str


@attrs.frozen(kw_only=True)
class _Library:
    sniffer: _Sniffer | None
    errors: tuple[type[Exception], ...]
    report: str


@attrs.define(eq=False, kw_only=True)
class MediaTypes:
    """Answers for one broker. *module_name*: the python-magic to load."""

    _limiter: trio.CapacityLimiter
    _module_name: str = "magic"
    _library: _Library | None = attrs.field(default=None, init=False)
    _loading: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _known: OrderedDict[bytes, MediaType] = attrs.field(factory=OrderedDict, init=False)

    async def of_descriptor(self, fd: int, filename: str) -> MediaType:
        """Look at the beginning of an open file; its offset stays where it is. *fd* remains the caller's.

        Raises:
            OSError: the file cannot be read.
        """
        return await trio.to_thread.run_sync(self._of_descriptor, fd, filename, limiter=self._limiter)

    async def of_bytes(self, head: bytes, filename: str) -> MediaType:
        """Look at the beginning of a file that was read already; what was seen lately needs no second look."""
        await trio.lowlevel.checkpoint_if_cancelled()
        head = head[:HEAD_BYTES]
        digest = hashlib.blake2b(head, digest_size=16).digest()  # what was in a file is not kept
        found = self._known.pop(digest, None)
        if found is None:
            found = await trio.to_thread.run_sync(self._of_bytes, head, filename, limiter=self._limiter)
        if found.found_by == "libmagic":  # a name is looked at faster than remembered, and is not part of the head
            self._known[digest] = found
            if len(self._known) > KNOWN_HEADS:
                self._known.popitem(last=False)
        return found

    async def report(self) -> str:
        """Say what the answers rest on: "libmagic 5.44", or why they come from names."""
        return (await trio.to_thread.run_sync(self._loaded, limiter=self._limiter)).report

    def _of_descriptor(self, fd: int, filename: str) -> MediaType:
        return self._of_bytes(os.pread(fd, HEAD_BYTES, 0), filename)

    def _of_bytes(self, head: bytes, filename: str) -> MediaType:
        library = self._loaded()
        if library.sniffer is None or not head:  # an empty file has nothing but its name
            return _by_name(filename)
        try:
            found = library.sniffer.from_buffer(head[:HEAD_BYTES])
        except library.errors:  # libmagic gives up on some malformed files
            return _by_name(filename)
        return MediaType(mime_type=found, found_by="libmagic")

    def _loaded(self) -> _Library:
        with self._loading:
            if self._library is None:
                self._library = _load(self._module_name)
            return self._library


def _load(module_name: str) -> _Library:
    try:
        module: Any = importlib.import_module(module_name)
        errors: type[Exception] = module.MagicException
        version = module.version()
    except (ImportError, AttributeError, NotImplementedError) as fault:
        return _Library(sniffer=None, errors=(), report=f"types are guessed from names: {fault}")
    try:
        sniffer = module.Magic(mime=True)
    except errors as fault:
        return _Library(sniffer=None, errors=(), report=f"types are guessed from names: libmagic: {fault}")
    return _Library(sniffer=sniffer, errors=(errors,), report=f"libmagic {version // 100}.{version % 100:02}")


def _by_name(filename: str) -> MediaType:
    guessed, encoding = mimetypes.guess_type(filename)
    if encoding is not None:  # x.tar.gz: what is transferred is the compressed file
        guessed = {"gzip": "application/gzip", "xz": "application/x-xz", "bzip2": "application/x-bzip2"}.get(
            encoding, UNKNOWN
        )
    return MediaType(mime_type=guessed or UNKNOWN, found_by="name")
