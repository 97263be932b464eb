"""The upload machine against a bytes oracle: lost answers, repeats, gaps, failing disks, several at once."""

from __future__ import annotations

import hashlib

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from transfers.upload_state import (
    REMEMBERED_CHUNKS,
    Acknowledge,
    Commit,
    IllegalReportError,
    Refuse,
    State,
    Step,
    Sync,
    Upload,
    Verify,
    Why,
    Write,
)

MAX_BYTES = 40
chunks = st.binary(max_size=12)


@attrs.define(eq=False)
class Case:
    """One upload, what its disk holds, and what the client was told is received."""

    upload: Upload = attrs.field(factory=lambda: Upload(max_bytes=MAX_BYTES))
    disk: bytearray = attrs.field(factory=bytearray)
    received: bytes = b""
    sent: list[tuple[int, bytes]] = attrs.field(factory=list)
    under_way: Write | Sync | Commit | None = None
    is_replaced: bool = False
    is_broken: bool = False

    def accept(self, step: Step) -> None:
        match step:
            case Write() | Sync() | Commit():
                self.under_way = step
            case Acknowledge():
                self.under_way = None
                self.check(step)
            case _:
                pytest.fail(f"unexpected {step!r}")

    def check(self, answer: Acknowledge) -> None:
        whole = hashlib.sha256(self.received).hexdigest() if self.is_replaced else None
        assert answer == Acknowledge(received_bytes=len(self.received), sha256=whole)

    def refuses(self, step: Step, why: Why) -> None:
        expected = Why.LOST if self.is_broken else Why.BUSY if self.under_way else why
        assert step == Refuse(why=expected, expected_offset=len(self.received))


class UploadMachine(RuleBasedStateMachine):
    cases = Bundle("cases")

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Case] = []

    @precondition(lambda self: len(self.all) < 3)
    @rule(target=cases)
    def open(self) -> Case:
        self.all.append(Case())
        return self.all[-1]

    @rule(case=cases, data=chunks, is_last=st.booleans())
    def send_next(self, case: Case, data: bytes, *, is_last: bool) -> None:
        step = case.upload.offer(len(case.received), data, is_last=is_last)
        if case.is_broken or case.under_way:
            case.refuses(step, Why.BUSY)
        elif case.is_replaced and data:
            case.refuses(step, Why.OVER)
        elif len(case.received) + len(data) > MAX_BYTES:
            case.refuses(step, Why.TOO_LARGE)
        else:
            case.accept(step)
            if isinstance(step, Write):
                assert (step.offset, step.data, step.is_last) == (len(case.received), data, is_last)

    @rule(case=cases)
    def disk_succeeds(self, case: Case) -> None:
        match case.under_way:
            case Write() as write:
                case.disk[write.offset : write.offset + len(write.data)] = write.data
                case.received += write.data
                case.sent.append((write.offset, write.data))
                case.accept(case.upload.wrote(write, write.digest_after()))
            case Sync():
                case.accept(case.upload.synced())
            case Commit():
                case.is_replaced = True
                case.accept(case.upload.committed())

    @rule(case=cases)
    def disk_fails(self, case: Case) -> None:
        if case.under_way:
            case.upload.lost("disk full")
            case.is_broken, case.under_way = True, None
            case.upload.lost("the first reason counts")
            assert case.upload.why_lost == "disk full"

    @rule(case=cases)
    def step_is_cancelled(self, case: Case) -> None:
        if isinstance(case.under_way, Commit):
            case.is_broken = True
        case.under_way = None
        case.upload.withdraw()

    @rule(case=cases, which=st.integers(0, REMEMBERED_CHUNKS - 1), is_last=st.booleans())
    def answer_was_lost(self, case: Case, which: int, *, is_last: bool) -> None:
        """The client repeats a chunk that was received, perhaps with another idea of whether it is the last."""
        if not case.sent:
            return
        offset, data = case.sent[-1 - which % min(len(case.sent), REMEMBERED_CHUNKS)]
        step = case.upload.offer(offset, data, is_last=is_last)
        if case.is_broken or case.under_way:
            case.refuses(step, Why.BUSY)
            return
        assert isinstance(step, Verify)
        assert step.matches()
        step = case.upload.verified(step, same=True)
        is_end = offset + len(data) == len(case.received)
        if is_last and not is_end and not case.is_replaced:
            case.refuses(step, Why.OVERLAP)
        else:
            assert isinstance(step, Sync) == (is_last and not case.is_replaced)
            case.accept(step)

    @rule(case=cases, which=st.integers(0, REMEMBERED_CHUNKS - 1), is_last=st.booleans())
    def repeat_with_other_bytes(self, case: Case, which: int, *, is_last: bool) -> None:
        if not case.sent:
            return
        offset, data = case.sent[-1 - which % min(len(case.sent), REMEMBERED_CHUNKS)]
        step = case.upload.offer(offset, bytes(255 - byte for byte in data), is_last=is_last)
        if isinstance(step, Verify):
            assert not step.matches()
            step = case.upload.verified(step, same=False)
        case.refuses(step, Why.CONFLICT)

    @rule(case=cases, behind=st.integers(1, 5), data=chunks, is_last=st.booleans())
    def leave_a_gap(self, case: Case, behind: int, data: bytes, *, is_last: bool) -> None:
        case.refuses(case.upload.offer(len(case.received) + behind, data, is_last=is_last), Why.GAP)

    @rule(case=cases, data=st.data(), is_last=st.booleans())
    def overlap(self, case: Case, data: st.DataObject, *, is_last: bool) -> None:
        offset = data.draw(st.integers(-3, len(case.received) - 1))
        chunk = data.draw(chunks)
        if (offset, len(chunk)) not in {(known, len(sent)) for known, sent in case.sent}:
            case.refuses(case.upload.offer(offset, chunk, is_last=is_last), Why.OVERLAP)

    @precondition(lambda self: self.all)
    @rule(case=cases)
    def unasked_report_changes_nothing(self, case: Case) -> None:
        state = case.upload.state
        stray = Write(offset=0, data=b"x", is_last=True, before=hashlib.sha256())
        if state is not State.BROKEN:  # there a late report is answered with the loss
            with pytest.raises(IllegalReportError):
                case.upload.wrote(stray, stray.digest_after())
        for report, legal in ((case.upload.synced, State.SYNCING), (case.upload.committed, State.COMMITTING)):
            if state not in {legal, State.BROKEN}:
                with pytest.raises(IllegalReportError):
                    report()
        assert case.upload.state is state

    @invariant()
    def nothing_is_lost_or_mixed(self) -> None:
        for case in self.all:
            assert case.upload.received_bytes == len(case.received)
            assert case.disk == case.received
            assert (case.upload.state is State.COMPLETE) == case.is_replaced
            assert (case.upload.state is State.BROKEN) == case.is_broken
            assert case.upload.is_over == (case.is_replaced or case.is_broken)


UploadMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestUploadMachine = UploadMachine.TestCase


def write(upload: Upload, data: bytes, *, is_last: bool) -> Step:
    step = upload.offer(upload.received_bytes, data, is_last=is_last)
    assert isinstance(step, Write)
    return upload.wrote(step, step.digest_after())


def test_only_the_newest_chunks_are_remembered() -> None:
    upload = Upload(max_bytes=1000)
    for number in range(REMEMBERED_CHUNKS + 1):
        write(upload, bytes([number]), is_last=False)
    assert isinstance(upload.offer(1, b"\x01", is_last=False), Verify)
    assert upload.offer(0, b"\x00", is_last=False) == Refuse(why=Why.OVERLAP, expected_offset=REMEMBERED_CHUNKS + 1)


def test_upload_given_up_during_a_write_stays_lost_when_the_disk_reports() -> None:
    upload = Upload(max_bytes=10)
    step = upload.offer(0, b"abc", is_last=True)
    assert isinstance(step, Write)
    upload.lost("the session ended")
    assert upload.wrote(step, step.digest_after()) == Refuse(why=Why.LOST, expected_offset=0)


def test_upload_given_up_while_it_is_put_in_place_stays_lost() -> None:
    syncing, committing = Upload(max_bytes=10), Upload(max_bytes=10)
    for upload in (syncing, committing):
        assert write(upload, b"abc", is_last=True) == Sync()
    assert committing.synced() == Commit()
    for upload, report in ((syncing, syncing.synced), (committing, committing.committed)):
        upload.lost("the session ended")
        assert report() == Refuse(why=Why.LOST, expected_offset=3)


def test_upload_given_up_while_a_repeated_chunk_is_compared_stays_lost() -> None:
    upload = Upload(max_bytes=10)
    write(upload, b"abc", is_last=False)
    again = upload.offer(0, b"abc", is_last=False)
    assert isinstance(again, Verify)
    upload.lost("the session ended")
    assert upload.verified(again, same=True) == Refuse(why=Why.LOST, expected_offset=3)


def test_a_write_that_is_reported_twice_counts_once() -> None:
    upload = Upload(max_bytes=10)
    step = upload.offer(0, b"abc", is_last=False)
    assert isinstance(step, Write)
    upload.wrote(step, step.digest_after())
    with pytest.raises(IllegalReportError):
        upload.wrote(step, step.digest_after())
    assert upload.received_bytes == 3


def test_a_write_that_was_withdrawn_does_not_count() -> None:
    upload = Upload(max_bytes=10)
    step = upload.offer(0, b"abc", is_last=False)
    assert isinstance(step, Write)
    upload.withdraw()
    with pytest.raises(IllegalReportError):
        upload.wrote(step, step.digest_after())
    assert upload.received_bytes == 0


def test_last_chunk_whose_commit_never_began_is_finished_by_its_repetition() -> None:
    upload = Upload(max_bytes=10)
    assert write(upload, b"abc", is_last=True) == Sync()
    upload.withdraw()
    again = upload.offer(0, b"abc", is_last=True)
    assert isinstance(again, Verify)
    assert upload.verified(again, same=again.matches()) == Sync()
    assert upload.synced() == Commit()
    assert upload.committed() == Acknowledge(received_bytes=3, sha256=hashlib.sha256(b"abc").hexdigest())


def test_repeated_chunk_in_the_middle_cannot_be_called_the_last() -> None:
    upload = Upload(max_bytes=10)
    write(upload, b"abc", is_last=False)
    write(upload, b"def", is_last=False)
    again = upload.offer(0, b"abc", is_last=True)
    assert isinstance(again, Verify)
    assert upload.verified(again, same=True) == Refuse(why=Why.OVERLAP, expected_offset=6)


def test_empty_file_is_one_empty_last_chunk() -> None:
    upload = Upload(max_bytes=10)
    assert upload.offer(0, b"", is_last=True) == Sync()
    upload.synced()
    done = upload.committed()
    assert done == Acknowledge(received_bytes=0, sha256=hashlib.sha256(b"").hexdigest())
    assert upload.offer(0, b"", is_last=True) == done


def test_complete_upload_cannot_be_lost() -> None:
    upload = Upload(max_bytes=10)
    upload.offer(0, b"", is_last=True)
    upload.synced()
    upload.committed()
    with pytest.raises(IllegalReportError):
        upload.lost("too late")
    assert upload.state is State.COMPLETE


def test_a_repeated_last_chunk_does_not_finish_while_another_is_written() -> None:
    upload = Upload(max_bytes=10)
    write(upload, b"abc", is_last=False)
    again = upload.offer(0, b"abc", is_last=True)
    assert isinstance(again, Verify)
    assert isinstance(upload.offer(3, b"def", is_last=False), Write)
    assert upload.verified(again, same=True) == Refuse(why=Why.BUSY, expected_offset=3)
    assert upload.state is State.WRITING
