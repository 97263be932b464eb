"""The running SHA-256 of both machines, as the small part of hashlib's object that they use."""

from __future__ import annotations

import hashlib
from typing import Protocol, TypeAlias

Data: TypeAlias = bytes | bytearray | memoryview
"""Bytes that nobody changes meanwhile."""


class Digest(Protocol):
    """A running hash. It is shared between tasks and threads, so it is never updated: only copies are.

    Of bytes that pass through here anyway, each at most once. Of a file to be read for it: `downloads.RestHash`.
    """

    def copy(self) -> Digest:
        """Return an independent hash of the same bytes."""

    def update(self, data: Data, /) -> None:
        """Take in more bytes."""

    def digest(self) -> bytes:
        """Return the hash of everything so far."""

    def hexdigest(self) -> str:
        """Return the same in hexadecimal."""


def new_digest() -> Digest:
    """Return the SHA-256 of nothing."""
    return hashlib.sha256()


def advanced(digest: Digest, data: Data) -> Digest:
    """Return *digest* with *data* after it; *digest* itself stays as it was.

    Pure, but a mebibyte takes up to some milliseconds: the shell calls it in a worker thread.
    """
    after = digest.copy()
    after.update(data)
    return after
