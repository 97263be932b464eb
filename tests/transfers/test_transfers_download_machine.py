"""The download machine against a bytes oracle: chunks in any order, repeats, several under way, changing files."""

from __future__ import annotations

import hashlib

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from transfers.digest import advanced
from transfers.download_state import Answer, BeyondEnd, Changed, Download, HashRest, Identity, Outcome, Read, Told

PIECE_BYTES = 7


@attrs.define(eq=False)
class File:
    """A file as the oracle knows it: its bytes, and a clock that moves with each change."""

    content: bytes
    mtime_ns: int = 1

    def identity(self) -> Identity:
        return Identity(size_bytes=len(self.content), mtime_ns=self.mtime_ns, ino=1, dev=1)

    def perform(self, step: Read | HashRest) -> Outcome:
        if isinstance(step, HashRest):
            data = self.content[step.hash_from : step.hash_from + step.length]
            return Outcome(identity=self.identity(), length=len(data), digest=advanced(step.before, data))
        data = self.content[step.offset : step.offset + step.length]
        new = data[step.hash_from - step.offset :] if step.hash_from is not None else b""
        return Outcome(identity=self.identity(), length=len(data), digest=advanced(step.before, new))


@attrs.define(eq=False)
class Case:
    file: File
    download: Download
    is_changed: bool = False


class DownloadMachine(RuleBasedStateMachine):
    cases = Bundle("cases")

    def __init__(self) -> None:
        super().__init__()
        self.under_way: list[tuple[Case, Read | HashRest]] = []
        self.all: list[Case] = []

    @rule(target=cases, content=st.binary(max_size=40))
    def open(self, content: bytes) -> Case:
        file = File(content)
        self.all.append(Case(file, Download(file.identity(), piece_bytes=PIECE_BYTES)))
        return self.all[-1]

    @rule(case=cases, offset=st.integers(-2, 45), chunk_bytes=st.integers(1, 20))
    def ask(self, case: Case, offset: int, chunk_bytes: int) -> None:
        step = case.download.ask(offset, chunk_bytes)
        size_bytes = case.download.identity.size_bytes
        if case.download.is_changed:
            assert step == Changed()
        elif not 0 <= offset <= size_bytes:
            assert step == BeyondEnd(offset=offset, size_bytes=size_bytes)
        else:
            assert isinstance(step, Read)
            assert step.length == len(range(size_bytes)[offset : offset + chunk_bytes])
            self.under_way.append((case, step))

    @rule(data=st.data())
    def disk_answers(self, data: st.DataObject) -> None:
        """Any of the steps under way is performed on the file as it is now."""
        if not self.under_way:
            return
        case, step = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        self.report(case, step, case.file.perform(step))

    @rule(case=cases, chunk_bytes=st.integers(1, 20))
    def download_in_order(self, case: Case, chunk_bytes: int) -> None:
        for offset in range(0, case.download.identity.size_bytes + 1, chunk_bytes):
            step = case.download.ask(offset, chunk_bytes)
            if isinstance(step, Read):
                self.report(case, step, case.file.perform(step))

    @rule(data=st.data())
    def answer_is_never_used(self, data: st.DataObject) -> None:
        """The read was cancelled, or failed: nothing needs undoing."""
        if self.under_way:
            self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))

    @rule(case=cases, content=st.binary(max_size=40))
    def file_is_written(self, case: Case, content: bytes) -> None:
        case.file = File(content, case.file.mtime_ns + 1)
        case.is_changed = True

    def report(self, case: Case, step: Read | HashRest, outcome: Outcome) -> None:
        if isinstance(step, Read):
            verdict = case.download.got(step, outcome)
            is_last = step.offset + step.length == case.download.identity.size_bytes
        else:
            verdict = case.download.hashed(step, outcome)
            is_last = True
        if case.is_changed:
            assert verdict == Changed()
        elif isinstance(verdict, HashRest):
            assert is_last
            assert 0 < verdict.length <= PIECE_BYTES
            self.under_way.append((case, verdict))
        else:
            whole = hashlib.sha256(case.file.content).hexdigest()
            assert verdict == Answer(sha256=whole if is_last else None)

    @invariant()
    def a_changed_file_is_never_recognised_again(self) -> None:
        for case in self.all:
            if case.is_changed:
                assert not case.download.recognises(case.file.identity())
            if case.download.is_changed:
                assert case.download.ask(0, 1) == Changed()


DownloadMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestDownloadMachine = DownloadMachine.TestCase


def test_bytes_read_in_order_are_hashed_once() -> None:
    file = File(b"0123456789")
    download = Download(file.identity())
    for offset in (0, 4, 8):
        step = download.ask(offset, 4)
        assert isinstance(step, Read)
        assert step.hash_from == offset
        verdict = download.got(step, file.perform(step))
        assert isinstance(verdict, Answer)
    assert verdict == Answer(sha256=hashlib.sha256(b"0123456789").hexdigest())


def test_rest_of_a_large_file_is_hashed_in_pieces() -> None:
    file = File(bytes(100))
    download = Download(file.identity(), piece_bytes=PIECE_BYTES)
    step = download.ask(99, 1)
    assert isinstance(step, Read)
    verdict = download.got(step, file.perform(step))
    pieces = 0
    while isinstance(verdict, HashRest):
        pieces += 1
        verdict = download.hashed(verdict, file.perform(verdict))
    assert pieces == -(-100 // PIECE_BYTES)
    assert verdict == Answer(sha256=hashlib.sha256(bytes(100)).hexdigest())


def test_file_that_ends_early_counts_as_changed_even_with_its_old_face() -> None:
    file = File(b"0123456789")
    download = Download(file.identity())
    step = download.ask(0, 10)
    assert isinstance(step, Read)
    short = Outcome(identity=file.identity(), length=9, digest=step.before)
    assert download.got(step, short) == Changed()
    assert download.ask(0, 10) == Changed()
    assert not download.recognises(file.identity())


@pytest.mark.parametrize("length", [9, 10], ids=["ends early", "has another face"])
def test_rest_of_another_file_counts_as_changed_too(length: int) -> None:
    file = File(b"0123456789")
    download = Download(file.identity())
    step = download.ask(8, 10)
    assert isinstance(step, Read)
    rest = download.got(step, file.perform(step))
    assert isinstance(rest, HashRest)
    if length == rest.length:
        file.mtime_ns += 1
    other = Outcome(identity=file.identity(), length=length, digest=rest.before)
    assert download.hashed(rest, other) == Changed()
    assert download.ask(0, 10) == Changed()


def test_a_hash_that_was_told_is_the_hash_of_the_file_whatever_was_hashed_here() -> None:
    file = File(b"0123456789")
    download = Download(file.identity())
    step = download.ask(0, 4)
    assert isinstance(step, Read)
    assert download.got(step, file.perform(step)) == Answer()
    assert download.missing_bytes == 6
    whole = Answer(sha256=hashlib.sha256(file.content).hexdigest())
    assert download.told(Told(identity=file.identity(), length=10, sha256=whole.sha256 or "")) == whole
    assert (download.missing_bytes, download.rest()) == (0, whole)


@pytest.mark.parametrize("length", [9, 10], ids=["ends early", "has another face"])
def test_a_hash_that_was_told_of_another_file_counts_for_nothing(length: int) -> None:
    file = File(b"0123456789")
    download = Download(file.identity())
    face = file.identity() if length == 9 else attrs.evolve(file.identity(), mtime_ns=2)
    assert download.told(Told(identity=face, length=length, sha256="of another")) == Changed()
    assert download.missing_bytes == 10
    assert download.ask(0, 10) == Changed()
    assert not download.recognises(file.identity())
