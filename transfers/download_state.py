"""One download as a machine: what to read, when the file counts as changed, and its running SHA-256. No IO.

The shell performs a `Read` and reports bytes and identity; when it was the last chunk and some bytes were
never hashed (chunks came out of order, or started in the middle), `HashRest` steps follow, a bounded piece
each. Asking changes nothing, so an effect that was never performed needs no undoing, and several may be
under way at once: only a report that continues the hash where it stands advances it.

A file that is not the one it was (size, modification time, inode) is CHANGED, and that is sticky: chunks
from before and after would be a torn copy. Starting anew at offset 0 is a new machine.
"""

from __future__ import annotations

import attrs

from transfers.digest import Digest, new_digest

HASH_PIECE_BYTES = 16 * 1024 * 1024
"""Bytes of the rest that are hashed in one step: some 10 to 50 ms, the time a cancellation may have to wait."""


@attrs.frozen(kw_only=True)
class Identity:
    """The properties that must stay the same of the file from the first chunk to the last."""

    size_bytes: int
    mtime_ns: int
    ino: int
    dev: int


@attrs.frozen(kw_only=True)
class Read:
    """Read *length* bytes at *offset*; hash those from *hash_from* on, if it is given, onto *before*."""

    offset: int
    length: int
    hash_from: int | None
    before: Digest = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class HashRest:
    """Hash *length* bytes at *hash_from* onto *before*; report `hashed`."""

    hash_from: int
    length: int
    before: Digest = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Outcome:
    """The finding of the shell: the file's identity afterwards, and the digest with the new bytes.

    *length* is less than was asked for when the file ended early.
    """

    identity: Identity
    length: int
    digest: Digest = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Told:
    """The SHA-256 of the first *length* bytes, by somebody who read them all, and the file's identity afterwards.

    *length* is less than the size when the file ended early.
    """

    identity: Identity
    length: int
    sha256: str


@attrs.frozen(kw_only=True)
class Answer:
    """The chunk may go out. With *sha256* (of the whole file) it was the last one."""

    sha256: str | None = None


@attrs.frozen
class Changed:
    """The file is not the one it was."""


@attrs.frozen(kw_only=True)
class BeyondEnd:
    """The offset is outside the file."""

    offset: int
    size_bytes: int


@attrs.define(eq=False)
class Download:
    """The download of the one file that *identity* names."""

    identity: Identity
    _piece_bytes: int = HASH_PIECE_BYTES
    is_changed: bool = attrs.field(default=False, init=False)
    _hashed_bytes: int = attrs.field(default=0, init=False)
    _digest: Digest = attrs.field(factory=new_digest, init=False)
    _told: str = attrs.field(default="", init=False)

    @property
    def missing_bytes(self) -> int:
        """Return how many bytes the running hash lacks; none when the hash of all of them was told."""
        return 0 if self._told else self.identity.size_bytes - self._hashed_bytes

    def ask(self, offset: int, chunk_bytes: int) -> Read | Changed | BeyondEnd:
        """Say how to read the chunk at *offset*: *chunk_bytes*, or less at the end of the file."""
        size_bytes = self.identity.size_bytes
        if self.is_changed:
            return Changed()
        if not 0 <= offset <= size_bytes:
            return BeyondEnd(offset=offset, size_bytes=size_bytes)
        length = min(chunk_bytes, size_bytes - offset)
        continues = offset <= self._hashed_bytes < offset + length
        return Read(
            offset=offset,
            length=length,
            hash_from=self._hashed_bytes if continues else None,
            before=self._digest,
        )

    def got(self, read: Read, outcome: Outcome) -> HashRest | Answer | Changed:
        """Report *read* performed."""
        if not self.took(read, outcome):
            return Changed()
        return self.rest() if read.offset + read.length == self.identity.size_bytes else Answer()

    def took(self, read: Read, outcome: Outcome) -> bool:
        """Report *read* performed, of a stream that asks for the `rest` itself; False when the file changed."""
        if outcome.length < read.length or not self.recognises(outcome.identity):
            self.is_changed = True
            return False
        self._advance(read.hash_from, read.offset + read.length, outcome.digest)
        return True

    def hashed(self, rest: HashRest, outcome: Outcome) -> HashRest | Answer | Changed:
        """Report a piece of the rest hashed."""
        if outcome.length < rest.length or not self.recognises(outcome.identity):
            self.is_changed = True
            return Changed()
        self._advance(rest.hash_from, rest.hash_from + rest.length, outcome.digest)
        return self.rest()

    def told(self, told: Told) -> Answer | Changed:
        """Report the whole file hashed by somebody else, whatever the running hash has of it."""
        if told.length < self.identity.size_bytes or not self.recognises(told.identity):
            self.is_changed = True
            return Changed()
        self._told = told.sha256
        return Answer(sha256=told.sha256)

    def recognises(self, identity: Identity) -> bool:
        """Tell whether *identity* is still the file's; asked of every chunk, and when it is opened once more."""
        return identity == self.identity and not self.is_changed

    def _advance(self, hash_from: int | None, end: int, digest: Digest) -> None:
        if hash_from == self._hashed_bytes:  # else another chunk's report came first and has these bytes
            self._hashed_bytes = end
            self._digest = digest

    def changed(self) -> None:
        """Say that the file is not the one it was, as another reader of it saw."""
        self.is_changed = True

    def rest(self) -> HashRest | Answer:
        """Say what is to be hashed yet, or the SHA-256 of the whole file."""
        if self.missing_bytes == 0:
            return Answer(sha256=self._told or self._digest.hexdigest())
        length = min(self.missing_bytes, self._piece_bytes)
        return HashRest(hash_from=self._hashed_bytes, length=length, before=self._digest)
