"""Ask the kernel who is at the other end of a TCP connection, where that end is on this machine. Outside the walls.

sock_diag says it in 20 microseconds, /proc/net/tcp in milliseconds; so nothing here needs a thread. An end that is
closed says uid 0 and inode 0, which is nobody: a `SocketOwner` comes of an established connection alone.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    LookUp = Callable[["_End", "_End"], tuple[int, "SocketOwner"] | None]
    """State and owner of the socket that has the first as its own end and the second as its other; None: no such."""

ESTABLISHED = 1
RTN_LOCAL = 2
_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_ROUTE, _RTM_GETROUTE, _RTM_NEWROUTE = 0, 26, 24
_NLMSG_ERROR, _NLM_F_REQUEST = 2, 1
_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_REQUEST = struct.Struct("=BBBBI")  # inet_diag_req_v2 up to the socket's id
_ANSWER_BYTES = 8192
_ANY_COOKIE = 0xFFFFFFFF


class PeersUnknown(Exception):
    """Lack of an answer: this kernel does not say who holds the other end. The text says what was tried."""


@attrs.frozen
class SocketOwner:
    """Maker of the other end (`uid`, as we see it), and what it is called among the descriptors of its holders."""

    uid: int
    inode: int


class Gone(Exception):
    """Answer that the other end is of this machine and closed, or half closed: nobody says whose it was."""


@attrs.frozen
class _End:
    """One end of a connection. `address`: packed; a v4-mapped one is of IPv4. `scope`: of a link-local one."""

    family: int
    address: bytes
    port: int
    scope: int

    @classmethod
    def of(cls, name: tuple[Any, ...]) -> _End:
        """Take what getsockname or getpeername says."""
        address: ipaddress.IPv4Address | ipaddress.IPv6Address | None
        address = ipaddress.ip_address(name[0].partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        scope = name[3] if len(name) > 2 and address.is_link_local else 0
        return cls(family, address.packed, name[1], scope)


@attrs.frozen
class NetPeers:
    """Way of asking that works here; `choose_peers` finds it."""

    _look_up: LookUp

    def owner(self, peer: tuple[Any, ...], own: tuple[Any, ...]) -> SocketOwner | None:
        """Return whose the other end of a connection is; None: it is not in our network namespace.

        Args:
            peer: what getpeername says at this end.
            own: what getsockname says.

        Raises:
            Gone: it was, and is no more.
            OSError: the kernel does not say.
        """
        there, here = _End.of(peer), _End.of(own)
        found = self._look_up(there, here)
        if found is None:
            if _is_local(there):
                raise Gone
            return None
        state, owner = found
        if state != ESTABLISHED or not owner.inode:
            raise Gone
        return owner


def choose_peers() -> NetPeers:
    """Find the way of asking that this kernel answers rightly, tried on a connection of our own.

    Raises:
        PeersUnknown: none does.
    """
    failures = []
    for way, look_up in (("sock_diag", _by_sock_diag), ("/proc/net/tcp", _by_proc)):
        try:
            _try(NetPeers(look_up))
        except Gone:
            failures.append(f"{way} does not find our own connection")
        except (OSError, ValueError, IndexError, struct.error, PeersUnknown) as error:
            failures.append(f"{way}: {error}")
        else:
            return NetPeers(look_up)
    raise PeersUnknown("; ".join(failures))


def _try(peers: NetPeers) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        ours = stack.enter_context(socket.create_connection(listener.getsockname()))
        accepted = stack.enter_context(listener.accept()[0])
        names = accepted.getpeername(), accepted.getsockname()
        owner = peers.owner(*names)
        # What descends from somebody else's user namespace may be told other numbers than its own.
        if owner != SocketOwner(os.geteuid(), os.fstat(ours.fileno()).st_ino):
            raise PeersUnknown(f"it takes our own connection for {owner}")
        ours.close()
        with contextlib.suppress(Gone):
            raise PeersUnknown(f"it takes a closed connection for {peers.owner(*names)}")


def _by_sock_diag(own: _End, other: _End) -> tuple[int, SocketOwner] | None:
    address = own.address.ljust(16, b"\0") + other.address.ljust(16, b"\0")
    ports = struct.pack("!HH", own.port, other.port)
    tail = struct.pack("=III", own.scope, _ANY_COOKIE, _ANY_COOKIE)
    question = _REQUEST.pack(own.family, socket.IPPROTO_TCP, 0, 0, _ANY_COOKIE) + ports + address + tail
    try:
        answer = _ask(_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _SOCK_DIAG_BY_FAMILY, question)
    except FileNotFoundError:  # no such socket; or no such module, which the trial finds out
        return None
    uid, inode = struct.unpack_from("=II", answer, 64)  # of inet_diag_msg
    return answer[1], SocketOwner(uid, inode)


def _by_proc(own: _End, other: _End) -> tuple[int, SocketOwner] | None:
    """Read the tables of all sockets; a v4-mapped end is in that of IPv6, so IPv4 needs both."""
    ends = {(_in_table(a), _in_table(b)) for a, b in ((own, other), (_mapped(own), _mapped(other)))}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as lines:
                rows = [line.split() for line in lines][1:]
        except FileNotFoundError:  # a kernel without IPv6
            continue
        for row in rows:
            if (row[1], row[2]) in ends:
                return int(row[3], 16), SocketOwner(int(row[7]), int(row[9]))
    return None


def _in_table(end: _End) -> str:
    """Write an end as those tables do: words of 32 bits in the machine's order."""
    words = struct.unpack(f"={len(end.address) // 4}I", end.address)
    return f"{''.join(f'{word:08X}' for word in words)}:{end.port:04X}"


def _mapped(end: _End) -> _End:
    if end.family == socket.AF_INET6:
        return end
    return attrs.evolve(end, family=socket.AF_INET6, address=b"\0" * 10 + b"\xff\xff" + end.address)


def _is_local(end: _End) -> bool:
    """Tell whether packets to *end* stay on this machine; yes where that is not to be known."""
    message = struct.pack("=BBBBBBBBI", end.family, len(end.address) * 8, 0, 0, 0, 0, 0, 0, 0)
    message += struct.pack("=HH", 4 + len(end.address), 1) + end.address  # RTA_DST
    if end.scope:
        message += struct.pack("=HHI", 8, 4, end.scope)  # RTA_OIF
    try:
        return _ask(_ROUTE, _RTM_GETROUTE, _RTM_NEWROUTE, message)[7] == RTN_LOCAL
    except OSError:  # a container without netlink; a bind succeeds for every address with net.*.ip_nonlocal_bind
        return _can_bind(end)


def _can_bind(end: _End) -> bool:
    host = ipaddress.ip_address(end.address).compressed
    with socket.socket(end.family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((host, 0) if end.family == socket.AF_INET else (host, 0, 0, end.scope))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


def _ask(protocol: int, kind: int, expected: int, question: bytes) -> bytes:
    """Ask the kernel one thing; return the body of its answer. Raises OSError: what it says instead."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as netlink:
        netlink.setblocking(False)  # the answer is there when the question is sent
        head = _HEADER.pack(_HEADER.size + len(question), kind, _NLM_F_REQUEST, 1, 0)
        netlink.sendto(head + question, (0, 0))
        answer, (sender, _) = netlink.recvfrom(_ANSWER_BYTES)
    length, answered, _, _, _ = _HEADER.unpack_from(answer)
    if answered == _NLMSG_ERROR:
        number = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        raise OSError(number, os.strerror(number))
    if sender != 0 or answered != expected:
        raise OSError(f"an answer of kind {answered} from {sender}")
    return answer[_HEADER.size : length]
