"""Messages arrive whole or not at all, descriptors are neither lost nor leaked."""

from __future__ import annotations

import array
import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sandbox_births import open_fds
from test_sandbox_descriptors import descriptors_left

from sandbox import wire

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
