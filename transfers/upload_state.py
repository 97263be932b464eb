"""One upload as a machine: chunks come in, effects go out, no IO. Whatever changes its state is in here.

    READY --Write--> WRITING --wrote--> READY          (a chunk)
      |                 '------wrote--> SYNCING        (the last chunk)
      '--Sync--> SYNCING --synced--> COMMITTING --committed--> COMPLETE
    any but COMPLETE --lost--> BROKEN (sticky)
    WRITING, SYNCING --withdraw--> READY               (cancelled before anything was done, or there was no room)
    COMMITTING --withdraw--> BROKEN                    (anything may have been done)

The shell performs an effect and reports; count and digest advance only with the report, because performing
is a checkpoint at which anything may happen. A chunk that is refused changes nothing.

A client that lost an answer sends the chunk again. For the newest chunks the machine remembers the digest
before and after each: hashing the offered bytes onto the one must give the other, so nothing is hashed twice
unless a chunk really is repeated. A repeated *last* chunk finishes what its first attempt left unfinished.
"""

from __future__ import annotations

import enum
from collections import deque

import attrs

from transfers.digest import Data, Digest, advanced, new_digest

REMEMBERED_CHUNKS = 16
"""A client repeats the chunk whose answer it lost, or a few if it had several under way."""


class State(enum.Enum):
    """The state of an upload; the diagram above says what leads where."""

    READY = enum.auto()
    WRITING = enum.auto()
    SYNCING = enum.auto()
    COMMITTING = enum.auto()
    COMPLETE = enum.auto()
    BROKEN = enum.auto()


class Why(enum.Enum):
    """The reason why a chunk is refused; the value completes "the chunk at offset N ..."."""

    GAP = "leaves a gap"
    OVERLAP = "overlaps bytes that were received"
    CONFLICT = "differs from the bytes that were received there"
    BUSY = "came while another chunk is being written"
    OVER = "came after the last one"
    TOO_LARGE = "exceeds the size limit"
    LOST = "came after the upload was lost"
    BEYOND = "goes beyond the declared size"
    SHORT = "is called the last, and bytes are missing"
    DIGEST = "completes other bytes than were declared"


@attrs.frozen(kw_only=True)
class Declared:
    """Size and SHA-256 (lower-case hexadecimal) of the whole file, as far as they were told."""

    size_bytes: int | None = None
    sha256: str | None = None

    def has_room(self, size_bytes: int) -> bool:
        """Tell whether a file that was declared so may have so many bytes, or more to come."""
        return self.size_bytes is None or size_bytes <= self.size_bytes

    def is_short(self, size_bytes: int) -> bool:
        """Tell whether bytes are missing yet."""
        return self.size_bytes is not None and size_bytes < self.size_bytes

    def contradicts(self, digest: Digest) -> bool:
        """Tell whether the bytes are others than were declared."""
        return self.sha256 is not None and digest.hexdigest() != self.sha256


@attrs.frozen(kw_only=True)
class Write:
    """Write *data* at *offset* of the part file; report `wrote(this, digest_after())` or `lost`."""

    offset: int
    data: Data = attrs.field(repr=False)
    is_last: bool
    before: Digest = attrs.field(repr=False)

    def digest_after(self) -> Digest:
        """Return the running digest with this chunk in it (slow: for a worker thread)."""
        return advanced(self.before, self.data)


@attrs.frozen(kw_only=True)
class Verify:
    """Find out whether *data* is what was received at *offset* before; report `verified(this, matches())`."""

    offset: int
    data: Data = attrs.field(repr=False)
    is_last: bool
    before: Digest = attrs.field(repr=False)
    after: bytes = attrs.field(repr=False)

    def matches(self) -> bool:
        """Compare by digest (slow: for a worker thread)."""
        return advanced(self.before, self.data).digest() == self.after


@attrs.frozen
class Sync:
    """Force the part file to the disk; report `synced` or `lost`."""


@attrs.frozen
class Commit:
    """Replace the destination by the part file; report `committed` or `lost`."""


@attrs.frozen(kw_only=True)
class Acknowledge:
    """Say that the chunk is received. With *sha256* (of the whole file) the upload is complete."""

    received_bytes: int
    sha256: str | None = None


@attrs.frozen(kw_only=True)
class Refuse:
    """The chunk is refused and nothing changed."""

    why: Why
    expected_offset: int


Step = Write | Verify | Sync | Commit | Acknowledge | Refuse


class IllegalReportError(RuntimeError):
    """The shell reported what it was not asked for: a bug of the shell. Nothing changed."""


@attrs.frozen(kw_only=True)
class _Received:
    offset: int
    length: int
    before: Digest
    after: bytes


@attrs.define(eq=False, kw_only=True)
class Upload:
    """The upload of one file of at most *max_bytes* bytes, which must be what was *declared*."""

    max_bytes: int
    declared: Declared = attrs.field(factory=Declared)
    state: State = attrs.field(default=State.READY, init=False)
    received_bytes: int = attrs.field(default=0, init=False)
    why_lost: str = attrs.field(default="", init=False)
    is_in_doubt: bool = attrs.field(default=False, init=False)
    _digest: Digest = attrs.field(factory=new_digest, init=False)
    _under_way: Write | None = attrs.field(default=None, init=False)
    _newest: deque[_Received] = attrs.field(factory=lambda: deque(maxlen=REMEMBERED_CHUNKS), init=False)

    @property
    def is_over(self) -> bool:
        """Tell whether no chunk can change anything any more."""
        return self.state in {State.COMPLETE, State.BROKEN}

    @property
    def sha256_so_far(self) -> str:
        """The SHA-256 of what was received, hexadecimal."""
        return self._digest.hexdigest()

    def offer(self, offset: int, data: Data, *, is_last: bool) -> Step:
        """Take a chunk in: the next one, a repeated one, or one that does not fit."""
        if self.state in {State.WRITING, State.SYNCING, State.COMMITTING}:
            return self._refuse(Why.BUSY)
        if self.state is State.BROKEN:
            return self._refuse(Why.LOST)
        if offset > self.received_bytes:
            return self._refuse(Why.GAP)
        if offset == self.received_bytes:
            return self._next(data, is_last=is_last)
        return self._repeated(offset, data, is_last=is_last)

    def wrote(self, write: Write, digest: Digest) -> Step:
        """Report *write* done; *digest* includes its bytes."""
        if self.state is State.BROKEN:
            return self._refuse(Why.LOST)  # it was given up while the disk was busy
        if write is not self._under_way:
            raise IllegalReportError(f"not the write under way: {write!r}")
        received = _Received(offset=write.offset, length=len(write.data), before=self._digest, after=digest.digest())
        self._newest.append(received)
        self._digest = digest
        self._under_way = None
        self.received_bytes += received.length
        self.state = State.READY
        return self._finish() if write.is_last else self._answer()

    def verified(self, verify: Verify, *, same: bool) -> Step:
        """Report what comparing a repeated chunk gave."""
        if not same:
            return self._refuse(Why.CONFLICT)
        if self.state is State.BROKEN:
            return self._refuse(Why.LOST)
        if verify.is_last and not self.is_over:
            if self.state is not State.READY:
                return self._refuse(Why.BUSY)
            if verify.offset + len(verify.data) < self.received_bytes:
                return self._refuse(Why.OVERLAP)  # more was received behind what is now called the last
            return self._finish()
        return self._answer()

    def synced(self) -> Step:
        """Report the part file safe on the disk."""
        if self.state is State.BROKEN:
            return self._refuse(Why.LOST)
        self._leave(State.SYNCING)
        self.state = State.COMMITTING
        return Commit()

    def committed(self) -> Step:
        """Report the destination replaced."""
        if self.state is State.BROKEN:
            return self._refuse(Why.LOST)
        self._leave(State.COMMITTING)
        self.state = State.COMPLETE
        return self._answer()

    def withdraw(self) -> None:
        """Say that the step handed out last will not be reported. Harmless when there is none.

        A write or a sync was then never begun, or left nothing. A commit was, and nobody knows how far it came.
        """
        if self.state is State.COMMITTING:
            self.lost("it was cut off while the destination was replaced", in_doubt=True)
        if self.state in {State.WRITING, State.SYNCING}:
            self.state = State.READY
            self._under_way = None

    def lost(self, why: str, *, in_doubt: bool = False) -> None:
        """Say that the part file is spoiled or given up; only the first reason counts.

        *in_doubt*: the destination may have been replaced all the same.
        """
        if self.state is State.COMPLETE:
            raise IllegalReportError("a complete upload cannot be lost")
        if self.state is not State.BROKEN:
            self.state = State.BROKEN
            self.why_lost = why
            self.is_in_doubt = in_doubt
            self._under_way = None

    def _next(self, data: Data, *, is_last: bool) -> Step:
        if self.state is State.COMPLETE:
            # An empty chunk behind the end adds nothing: a finish of its own, or one that is repeated.
            return self._refuse(Why.OVER) if data else self._answer()
        if self.received_bytes + len(data) > self.max_bytes:
            return self._refuse(Why.TOO_LARGE)
        if not self.declared.has_room(self.received_bytes + len(data)):
            return self._refuse(Why.BEYOND)
        if not data:
            return self._finish() if is_last else self._answer()
        self.state = State.WRITING
        self._under_way = Write(offset=self.received_bytes, data=data, is_last=is_last, before=self._digest)
        return self._under_way

    def _repeated(self, offset: int, data: Data, *, is_last: bool) -> Step:
        for known in self._newest:
            if (known.offset, known.length) == (offset, len(data)):
                return Verify(offset=offset, data=data, is_last=is_last, before=known.before, after=known.after)
        return self._refuse(Why.OVERLAP)

    def _finish(self) -> Step:
        if self.declared.is_short(self.received_bytes):
            return self._refuse(Why.SHORT)
        if self.declared.contradicts(self._digest):
            self.lost(f"its SHA-256 is {self.sha256_so_far}, and {self.declared.sha256} was declared")
            return self._refuse(Why.DIGEST)
        self.state = State.SYNCING
        return Sync()

    def _answer(self) -> Acknowledge:
        sha256 = self.sha256_so_far if self.state is State.COMPLETE else None
        return Acknowledge(received_bytes=self.received_bytes, sha256=sha256)

    def _refuse(self, why: Why) -> Refuse:
        return Refuse(why=why, expected_offset=self.received_bytes)

    def _leave(self, expected: State) -> None:
        if self.state is not expected:
            raise IllegalReportError(f"reported from {self.state.name}, legal from {expected.name}")
