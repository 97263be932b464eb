"""Messages arrive whole or not at all, descriptors are neither lost nor leaked."""

from __future__ import annotations

import array
import errno
import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from sandbox import wire
from sandbox.files.errors import FileError, NotFound, OpenerGone
from sandbox.files.opener_client import open_exchange
from sandbox.kernel import process, seccomp, syscalls
from tests.sandbox.init.test_sandbox_births import open_fds
from tests.sandbox.kernel.test_walls_seccomp import in_child, outcome
from tests.sandbox.test_sandbox_descriptors import descriptors_left

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


@pytest.mark.parametrize(("payload_bytes", "kind"), [(-2, b"J"), (-1, b"J"), (0, b"M"), (1, b"M"), (2, b"M")])
def test_what_fits_into_one_packet_takes_no_descriptor_and_all_else_one(
    ends: Ends, payload_bytes: int, kind: bytes
) -> None:
    message = {"x": "y" * (wire.INLINE_BYTES + payload_bytes - len('{"x": ""}'))}
    for _ in range(2):
        wire.send(ends[0], message)
    assert ends[1].recv(1, socket.MSG_PEEK) == kind
    assert wire.receive(ends[1]) == (message, [])
    assert len(ends[1].recv(wire.INLINE_BYTES + 10)) <= wire.INLINE_BYTES


def test_nothing_to_read_is_told_from_the_end(ends: Ends) -> None:
    with pytest.raises(BlockingIOError):
        wire.receive(ends[1])
    ends[0].close()
    assert wire.receive(ends[1]) is None


def test_a_peer_that_left_unread_messages_behind_is_gone(ends: Ends) -> None:
    wire.send(ends[1], {"unread": True})
    ends[0].close()
    assert wire.receive(ends[1]) is None


@pytest.mark.parametrize(
    "data",
    [b"", b"J[]", b"J{", b"J\xff", b"X{}", b"M", b"J" + b"[" * 60_000, b"J" + b" " * 70_000, b"J{}" + b" " * 70_000],
)
def test_what_is_no_message_breaks_the_wire(ends: Ends, data: bytes) -> None:
    rights = array.array("i", [ends[0].fileno()])
    ends[0].sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    with pytest.raises(wire.WireBroken):
        wire.receive(ends[1])


def test_a_message_that_announces_a_memory_file_and_brings_none_breaks_the_wire(ends: Ends) -> None:
    ends[0].send(b"M")
    with pytest.raises(wire.WireBroken):
        wire.receive(ends[1])


class Short(socket.socket):
    """One whose kernel is in trouble as often as `faults` says, and that counts how often it is asked."""

    faults: tuple[int, ...] = ()
    asked = 0

    def recvmsg(self, *arguments: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
        self.asked += 1
        if self.faults:
            number, *rest = self.faults
            self.faults = tuple(rest)
            raise OSError(number, os.strerror(number))
        return super().recvmsg(*arguments)


@pytest.mark.parametrize(
    ("faults", "asked", "raised"),
    [
        ((), 1, None),
        ((errno.ENOMEM, errno.ENOBUFS), 3, None),
        ((errno.ENOBUFS, errno.ENOMEM, errno.ENOMEM), 3, errno.ENOMEM),
        ((errno.EIO,), 1, errno.EIO),
        ((errno.ENOMEM, errno.EIO), 2, errno.EIO),
    ],
)
def test_a_message_for_which_there_is_no_memory_is_asked_for_again_and_stays_where_it_is(
    ends: Ends, faults: tuple[int, ...], asked: int, raised: int | None
) -> None:
    wire.send(ends[0], {"number": 1})
    with Short(fileno=os.dup(ends[1].fileno())) as short:
        short.faults = faults
        if raised is not None:
            with pytest.raises(OSError, match=os.strerror(raised)):
                wire.receive(short)
        assert short.asked == (asked if raised is not None else 0)
        assert wire.receive(short) == ({"number": 1}, [])
        assert short.asked == asked + (raised is not None)


@pytest.mark.parametrize(("number", "said"), [(errno.EINVAL, "done"), (errno.EACCES, "EACCES")])
def test_a_kernel_that_knows_no_seal_against_execution_is_asked_for_a_plain_memory_file(number: int, said: str) -> None:
    message = {"x": "y" * wire.INLINE_BYTES}

    def child() -> list[object]:
        process.prctl(process.SET_NO_NEW_PRIVS, 1)
        sealed = seccomp.Rule("memfd_create", seccomp.refuse(number), seccomp.has_any(1, wire.MFD_NOEXEC_SEAL))
        seccomp.install(seccomp.assemble(syscalls.this_machine(), (sealed,)))
        ours, theirs = wire.pair()
        theirs.setblocking(False)
        with ours, theirs:
            return [outcome(lambda: wire.send(ours, message)), outcome(lambda: check(wire.receive(theirs)))]

    def check(received: object) -> None:
        assert received == (message, [])

    assert in_child(child) == [said, "done" if said == "done" else "EAGAIN"]


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
    with descriptors_left(room), pytest.raises(wire.Truncated, match="without all of its") as caught:
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
