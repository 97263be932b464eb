"""The hash of what a download did not hash while its bytes went out: a little of it here, all of a file elsewhere.

Bytes that go out are hashed on their way. What is missing at the end may be any number of gigabytes that nobody asked
to see; their hash is made where the session pays for it, if there is such a place: `Hashes` is handed in.
"""

from __future__ import annotations

from typing import Protocol

import attrs
import trio

from transfers import disk
from transfers.download_state import HASH_PIECE_BYTES, Answer, Changed, Download, HashRest, Told
from transfers.threads import run_in_thread

HASHED_HERE_BYTES = HASH_PIECE_BYTES
"""No more than that of a file is hashed here: one step, the time of two large chunks. It would take longer to begin
elsewhere, where a hash begins with the file, whatever of it was hashed here: a running hash cannot be handed over."""


class Hashing(Protocol):
    """The hash of one open file."""

    async def upto(self, fd: int, length: int) -> tuple[int, str]:
        """Return how many of the first *length* bytes there are, and their SHA-256, hexadecimal.

        Goes on where a call before was cut off, if that is still to be had.
        Raises: OSError, whose text says why there is none.
        """

    def close(self) -> None:
        """End the work at once. Safe to repeat."""


class Hashes(Protocol):
    """Where files are hashed."""

    def of(self, path: str) -> Hashing:
        """Begin the hash of one file, which the caller closes; *path* is for the text of an error."""


@attrs.define(eq=False)
class RestHash:
    """The hash of the rest of one file. `why_none` says why the last try did not bring it."""

    _path: str
    _hashes: Hashes | None
    _limiter: trio.CapacityLimiter
    why_none: str = attrs.field(default="", init=False)
    _hashing: Hashing | None = attrs.field(default=None, init=False)

    async def settle(
        self, download: Download, verdict: HashRest | Answer | Changed, pin: disk.Pin, within_s: float
    ) -> HashRest | Answer | Changed:
        """Hash what is missing, in *within_s* seconds; a HashRest is what is missing yet.

        Raises: OSError: the file cannot be read here.
        Cancellation: between two steps of HASH_PIECE_BYTES here, and at once elsewhere; what was begun there is ended.
            At the limit it only stops, and another call goes on.
        """
        self.why_none = ""
        left = True
        try:
            with trio.move_on_after(within_s), pin.use() as fd:
                if self._hashes is not None and download.missing_bytes > HASHED_HERE_BYTES:
                    verdict = await self._elsewhere(self._hashes, download, verdict, fd)
                else:
                    while isinstance(verdict, HashRest):
                        rest = await run_in_thread(disk.hash_rest, fd, verdict, limiter=self._limiter)
                        verdict = download.hashed(verdict, rest)
            left = False
        finally:
            if left:
                self.close()
        if isinstance(verdict, HashRest):
            self.why_none = self.why_none or f"the file was not hashed to its end in {within_s:g} s"
        return verdict

    async def _elsewhere(
        self, hashes: Hashes, download: Download, verdict: HashRest | Answer | Changed, fd: int
    ) -> HashRest | Answer | Changed:
        if self._hashing is None:
            self._hashing = hashes.of(self._path)
        try:
            length, sha256 = await self._hashing.upto(fd, download.identity.size_bytes)
        except OSError as fault:  # its bytes went out all the same: the answer goes without their hash, and says so
            self.why_none = fault.strerror or str(fault)
            return verdict
        identity = await run_in_thread(disk.identity_of, fd, limiter=self._limiter)
        return download.told(Told(identity=identity, length=length, sha256=sha256))

    def close(self) -> None:
        """End what is at work elsewhere. Safe to repeat."""
        hashing, self._hashing = self._hashing, None
        if hashing is not None:
            hashing.close()
