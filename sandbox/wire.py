"""Messages between the broker and the processes of a session: JSON and descriptors over SOCK_SEQPACKET.

Blocking-agnostic and stdlib only, so that both sides share it: on a non-blocking socket every call raises
BlockingIOError instead of waiting. A payload too long for one packet travels as a memfd.
"""

from __future__ import annotations

import array
import errno
import json
import os
import socket

MFD_NOEXEC_SEAL = 0x8  # Python knows the name from 3.13 on
TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from sandbox.protocol.commands import Legal

    Message = dict[str, Any]  # of the opener and its workers, whose messages have no types yet

INLINE_BYTES = 64 * 1024  # one packet holds about 212 KB with the default buffers; this leaves room for several
PAYLOAD_BYTES = 16 * 1024 * 1024  # more than execve takes (argv and environment are 6 MiB at most)
DESCRIPTORS = 8
RECEIVE_TRIES = 3
_SHORT_OF_MEMORY = (errno.ENOMEM, errno.ENOBUFS)  # the message stays where it is, and can be asked for again
_INT_BYTES = array.array("i").itemsize
_ANCILLARY_BYTES = socket.CMSG_SPACE((DESCRIPTORS + 1) * _INT_BYTES)


class WireBroken(Exception):
    """The peer sent something that is no message. The connection is of no further use."""


class Truncated(WireBroken):
    """Descriptors of a message did not arrive: there were no numbers left for them. What comes next may be whole.

    `message` is what it said, if that came.
    """

    def __init__(self, message: Message | None) -> None:
        """Keep what came."""
        super().__init__("a message came without all of its descriptors")
        self.message = message


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected ends, both blocking and close-on-exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, message: Mapping[str, object], fds: Sequence[int] = ()) -> None:
    """Send one message with copies of *fds*; the caller keeps its own.

    Raises:
        BlockingIOError: the socket is non-blocking and its buffer is full. Nothing was sent.
        BrokenPipeError, ConnectionResetError: the peer is gone.
        ValueError: *message* is longer than any peer reads. Nothing was sent.
    """
    # ASCII on purpose: a name that is no UTF-8 travels as the lone surrogate escapes Python reads it as.
    payload = json.dumps(message).encode("ascii")
    if len(payload) <= INLINE_BYTES - 1:
        _send(sock, b"J" + payload, fds)
        return
    if len(payload) > PAYLOAD_BYTES:
        raise ValueError(f"a message of {len(payload)} bytes is longer than the {PAYLOAD_BYTES} that are read of one")
    memfd = _open_memfd()
    try:
        with open(memfd, "wb", closefd=False) as file:
            file.write(payload)
        _send(sock, b"M", (memfd, *fds))
    finally:
        os.close(memfd)


def _send(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """Receive one message and the descriptors it carries; None means that the peer is gone.

    Ownership: the caller closes the descriptors. They are close-on-exec from the first moment on
    (`socket.recv_fds` drops the flag that does this, so it is not used here).

    Raises:
        BlockingIOError: the socket is non-blocking and there is nothing to read.
        Truncated: this process has no room for its descriptors (EMFILE), and those that came are closed.
        WireBroken: what came is no message; descriptors that came with it are closed.
        OSError: there was no memory for it, each of RECEIVE_TRIES times. It can still be received.
    """
    try:
        data, ancillary, flags = _received(sock)
    except ConnectionResetError:  # the peer died with unread messages: as much an end as EOF is
        return None
    fds = _descriptors(ancillary)
    if not data and not fds:
        return None
    try:
        return _decode(data, fds, flags), fds
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def hear(sock: socket.socket, legal: Legal) -> tuple[Any, list[int]] | None:
    """Receive one message, as `receive` does, if it is *legal*. `sandbox/protocol/` has the type of each kind.

    Raises:
        WireBroken: also where such a message may not come now, or not with so many descriptors; these are closed.
    """
    received = receive(sock)
    if received is not None and len(received[1]) not in legal.get(kind_of(received[0]), ()):
        for fd in received[1]:
            os.close(fd)
        raise WireBroken("a message came that may not be sent now")
    return received


def kind_of(message: Mapping[str, object]) -> str:
    """Return what `op` says, or the first key of a message without it."""
    kind = message.get("op", next(iter(message), ""))
    return kind if isinstance(kind, str) else ""


def _received(sock: socket.socket) -> tuple[bytes, list[tuple[int, int, bytes]], int]:
    for left in reversed(range(RECEIVE_TRIES)):
        try:
            data, ancillary, flags, _ = sock.recvmsg(INLINE_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        except OSError as fault:
            if not left or fault.errno not in _SHORT_OF_MEMORY:
                raise
        else:
            return data, ancillary, flags
    raise AssertionError("the last try returns or raises")


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % _INT_BYTES])
    return list(fds)


def _decode(data: bytes, fds: list[int], flags: int) -> Message:
    if flags & socket.MSG_TRUNC:
        raise WireBroken("a message came truncated")
    payload = data[1:]
    if flags & socket.MSG_CTRUNC:
        raise Truncated(_parse(payload) if data[:1] == b"J" else None)
    if data[:1] == b"M" and fds:
        payload = _read_memfd(fds.pop(0))
    elif data[:1] != b"J":
        raise WireBroken("a message of an unknown kind came")
    return _parse(payload)


def _parse(payload: bytes) -> Message:
    try:
        message = json.loads(payload.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise WireBroken("a message came that is no JSON") from error
    if not isinstance(message, dict):
        raise WireBroken("a message came that is no object")
    return message


def _open_memfd() -> int:
    """Open a memory file that can never be executed: the session's filter refuses any other kind."""
    try:
        return os.memfd_create("message", os.MFD_CLOEXEC | MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("message", os.MFD_CLOEXEC)  # before Linux 6.3, which does not know the flag


def _read_memfd(memfd: int) -> bytes:
    """Read the payload by position: the offset is shared with the sender, who is at the end."""
    try:
        return os.pread(memfd, min(os.fstat(memfd).st_size, PAYLOAD_BYTES), 0)
    except OSError as error:
        raise WireBroken("a message came with something that is no memory file") from error
    finally:
        os.close(memfd)
