"""What a command said, by cursor: against an oracle that simply keeps everything."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sandbox.commands import transcript
from sandbox.commands.excerpt import Ends, rest_of_character, whole_characters
from sandbox.commands.transcript import STDERR, STDOUT, Extract, Transcript, View
from sandbox.protocol.commands import FRAME_HEADER

VIEWS: tuple[View, ...] = ("stdout", "stderr", "both")
streams = st.sampled_from([STDOUT, STDERR])
views = st.sampled_from(VIEWS)
# Long pieces matter as much as short ones: frames and checkpoints have sizes of their own.
pieces = st.binary(min_size=1, max_size=8) | st.integers(1, 200_000).map(
    lambda size: bytes(i % 251 for i in range(size))
)


class Log(RuleBasedStateMachine):
    """A transcript whose written part is `file`, and the pieces that it should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Transcript()
        self.file = bytearray()
        self.kept: list[tuple[int, bytes]] = []
        self.dropped = {STDOUT: 0, STDERR: 0}

    def oracle(self, view: View) -> bytes:
        wanted = {"stdout": (STDOUT,), "stderr": (STDERR,), "both": (STDOUT, STDERR)}[view]
        return b"".join(data for stream, data in self.kept if stream in wanted)

    def read(self, view: View, cursor: int, max_bytes: int, chunk: int) -> bytes:
        extract = Extract(view, cursor, max_bytes, self.log.locate(view, cursor))
        whole = bytes(self.file + self.log.pending)
        while not extract.satisfied and extract.position < len(whole):
            extract.feed(whole[extract.position : extract.position + chunk])
        return bytes(extract.data)

    @rule(stream=streams, data=pieces, room=st.just(1 << 40) | st.integers(0, 300))
    def say(self, stream: int, data: bytes, room: int) -> None:
        before = self.log.end.offset("both")
        used = self.log.append(stream, data, room)
        taken = self.log.end.offset("both") - before
        assert used <= max(room, 0)
        assert used >= taken
        self.kept.append((stream, data[:taken]))
        self.dropped[stream] += len(data) - taken

    @rule(part=st.floats(0, 1))
    def write(self, part: float) -> None:
        count = self.log.close_frame()
        self.file += self.log.pending[:count]
        self.log.wrote(count)

    @rule(view=views, at=st.floats(0, 1), max_bytes=st.integers(1, 300_000), chunk=st.sampled_from([7, 4096, 300_000]))
    def page(self, view: View, at: float, max_bytes: int, chunk: int) -> None:
        begin, end = self.log.base.offset(view), self.log.end.offset(view)
        cursor = begin + int(at * (end - begin))
        if chunk == 7:
            max_bytes = min(max_bytes, 500)
        assert self.read(view, cursor, max_bytes, chunk) == self.oracle(view)[cursor : cursor + max_bytes]

    @rule()
    def give_up(self) -> None:
        if self.log.sealed:  # else the machine would end early in every run
            self.log.give_up()
            self.file = bytearray(self.log.end.at)
            assert self.log.size == 0

    @invariant()
    def counts_are_exact(self) -> None:
        assert self.log.written + len(self.log.pending) == self.log.end.at
        assert self.log.dropped == self.dropped
        for view in VIEWS:
            assert self.log.end.offset(view) == len(self.oracle(view))

    @invariant()
    def the_index_is_sparse(self) -> None:
        assert len(self.log._points[0]) <= 2 + self.log.end.at // transcript.CHECKPOINT_BYTES


TestLog = Log.TestCase
TestLog.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)


def test_streams_that_alternate_byte_by_byte_cost_their_headers_and_no_memory() -> None:
    log = Transcript()
    for i in range(50_000):
        log.append(STDOUT if i % 2 else STDERR, b"x", 1 << 40)
    assert log.size == 50_000 * (FRAME_HEADER.size + 1)
    assert len(log._points[0]) <= 1 + log.size // transcript.CHECKPOINT_BYTES


def test_nothing_is_kept_after_the_first_byte_that_was_dropped() -> None:
    log = Transcript()
    log.append(STDOUT, b"0123456789", 8)
    log.append(STDERR, b"later", 1 << 20)
    assert (log.end.stdout, log.end.stderr, log.dropped) == (4, 0, {STDOUT: 6, STDERR: 5})


@given(data=st.lists(st.binary(max_size=40)), limit=st.integers(2, 60))
def test_both_ends_and_the_exact_count_between(data: list[bytes], limit: int) -> None:
    ends = Ends(limit)
    for piece in data:
        ends.add(piece)
    whole = b"".join(data)
    excerpt = ends.excerpt()
    assert excerpt.total_bytes == len(whole)
    if len(whole) <= limit:
        assert (excerpt.head, excerpt.tail, excerpt.omitted_bytes) == (whole.decode("utf-8", "replace"), "", 0)
    else:
        assert len(whole) - limit <= excerpt.omitted_bytes <= len(whole) - limit + 6
    assert ends.tail(5) == whole[-5:][-limit:] or limit < 10


@given(text=st.text(min_size=1), cut=st.integers(0, 400), limit=st.integers(8, 40))
def test_no_character_is_cut_in_two(text: str, cut: int, limit: int) -> None:
    data = text.encode()
    ends = Ends(limit)
    ends.add(data)
    excerpt = ends.excerpt()
    shown = len(excerpt.head.encode()) + len(excerpt.tail.encode())
    assert shown + excerpt.omitted_bytes == len(data)
    assert text.startswith(excerpt.head)
    assert text.endswith(excerpt.tail)
    head = whole_characters(data[:cut])
    assert text.startswith(head.decode())
    assert len(data[:cut]) - len(head) < 4
    data[cut:][rest_of_character(data[cut:]) :].decode()


def test_what_is_no_utf_8_is_not_held_back() -> None:
    for data in (b"\xff", b"a\xff\xfe", b"\x80\x80\x80\x80", b"ok\xe2\x28"):
        assert whole_characters(data) == data
    assert whole_characters(b"ab\xe2\x82") == b"ab"


def extract_all(view: View, log: Any) -> bytes:
    extract = Extract(view, 0, 1 << 30, log.locate(view, 0))
    extract.feed(bytes(log.pending))
    return bytes(extract.data)


def test_the_interleaved_view_keeps_the_order() -> None:
    log = Transcript()
    for stream, data in ((STDOUT, b"a"), (STDERR, b"b"), (STDOUT, b"c"), (STDOUT, b"d")):
        log.append(stream, data, 1 << 20)
    assert [extract_all(view, log) for view in VIEWS] == [b"acd", b"b", b"abcd"]
