"""Messages arrive whole or not at all, descriptors are neither lost nor leaked."""

from __future__ import annotations

import array
import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from test_sandbox_births import open_fds
from test_sandbox_descriptors import descriptors_left

from sandbox import wire
from sandbox.exchange import open_exchange
from sandbox.file_errors import FileError, NotFound, OpenerGone

if TYPE_CHECKING:
    from collections.abc import Iterator

Ends = tuple[socket.socket, socket.socket]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture
def ends() -> Iterator[Ends]:
    before = open_fds()
    ours, theirs = wire.pair()
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs
    assert open_fds() == before


@given(message=st.dictionaries(st.text(st.characters()), VALUES, max_size=5))
def test_a_message_arrives_as_it_was_sent(message: wire.Message) -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        wire.send(ours, message)
        assert wire.receive(theirs) == (message, [])


@pytest.mark.parametrize("size", [0, wire.INLINE_BYTES - 20, wire.INLINE_BYTES, 5_000_000])
def test_messages_of_any_size_carry_their_descriptors(ends: Ends, size: int) -> None:
    read, write = os.pipe()
    wire.send(ends[0], {"text": "x" * size}, [write])
    os.close(write)
    received = wire.receive(ends[1])
    assert received is not None
    message, (fd,) = received
    assert len(message["text"]) == size
    assert not os.get_inheritable(fd)
    os.write(fd, b"through")
    assert os.read(read, 10) == b"through"
    os.close(read)
    os.close(fd)


def test_nothing_to_read_is_told_from_the_end(ends: Ends) -> None:
    with pytest.raises(BlockingIOError):
        wire.receive(ends[1])
    ends[0].close()
    assert wire.receive(ends[1]) is None


def test_a_peer_that_left_unread_messages_behind_is_gone(ends: Ends) -> None:
    wire.send(ends[1], {"unread": True})
    ends[0].close()
    assert wire.receive(ends[1]) is None


@pytest.mark.parametrize("data", [b"J[]", b"J{", b"J\xff", b"X{}", b"M", b"J" + b"[" * 60_000, b"J" + b" " * 70_000])
def test_what_is_no_message_breaks_the_wire(ends: Ends, data: bytes) -> None:
    rights = array.array("i", [ends[0].fileno()])
    ends[0].sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    with pytest.raises(wire.WireBroken):
        wire.receive(ends[1])


def test_too_many_descriptors_break_the_wire_and_are_closed(ends: Ends) -> None:
    rights = array.array("i", [ends[0].fileno()] * (wire.DESCRIPTORS + 5))
    ends[0].sendmsg([b"J{}"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    with pytest.raises(wire.WireBroken):
        wire.receive(ends[1])


def test_sending_to_nobody_raises_and_kills_nobody(ends: Ends) -> None:
    ends[1].close()
    with pytest.raises(BrokenPipeError):
        wire.send(ends[0], {"x": "y" * 100_000})


def test_what_is_longer_than_anybody_reads_is_not_sent(ends: Ends) -> None:
    wire.send(ends[0], {"x": "y" * (wire.PAYLOAD_BYTES - 9)})  # the longest
    assert wire.receive(ends[1]) is not None
    with pytest.raises(ValueError, match="longer"):
        wire.send(ends[0], {"x": "y" * (wire.PAYLOAD_BYTES - 8)})
    with pytest.raises(BlockingIOError):
        wire.receive(ends[1])


@pytest.mark.parametrize("room", [0, 1])
def test_descriptors_without_room_for_them_cost_one_message_and_not_the_wire(ends: Ends, room: int) -> None:
    for number in range(2):
        wire.send(ends[0], {"number": number}, [ends[0].fileno()] * 2)
    with descriptors_left(room), pytest.raises(wire.Truncated) as caught:
        wire.receive(ends[1])
    assert caught.value.message == {"number": 0}
    received = wire.receive(ends[1])
    assert received is not None
    assert received[0] == {"number": 1}
    for fd in received[1]:
        os.close(fd)


async def answered(body: wire.Message) -> FileError | None:
    """Ask one question of an opener that answers with *body* and a descriptor; return the refusal."""
    ours, theirs = wire.pair()

    async def answer() -> None:
        await trio.lowlevel.wait_readable(theirs)
        assert wire.receive(theirs)
        wire.send(theirs, body, [theirs.fileno()])

    with theirs:
        async with open_exchange(ours, answer_s=10) as exchange, trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            try:
                (await exchange.ask("look", "/a", {})).close()
            except FileError as error:
                return error
    return None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"n": "0"},
        {"n": [0]},
        {"n": 0, "piece": 7},
        {"n": 0, "refused": ""},
        {"n": 0, "refused": "", "errno": 2},
        {"n": 0, "refused": [], "errno": 2, "why": ""},
        {"n": 0, "refused": "", "errno": "2", "why": ""},
        {"n": 0, "refused": "", "errno": 1 << 40, "why": ""},
        {"n": 0, "refused": "", "errno": 2, "why": 7},
        {"n": 0, "refused": "", "errno": 2, "why": "", "led_to": None},
    ],
    ids=str,
)
async def test_an_answer_that_no_opener_gives_ends_the_exchange_and_raises_nothing_else(body: wire.Message) -> None:
    before = open_fds()
    assert isinstance(await answered(body), OpenerGone)
    assert open_fds() == before


async def test_an_answer_that_openers_give_is_taken() -> None:
    """The control."""
    assert await answered({"n": 0, "anything": "else"}) is None
    refused = await answered({"n": 0, "refused": "", "errno": 2, "why": "", "led_to": "/b"})
    assert isinstance(refused, NotFound)
