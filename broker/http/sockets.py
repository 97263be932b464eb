"""The sockets the broker listens on: our own, because Hypercorn's cannot give up on a stalled client.

Options set on a listening socket are inherited by every connection accepted from it. TCP_USER_TIMEOUT ends
a connection whose peer stops reading or vanishes; without it one such client holds a task, and Hypercorn's
shutdown, for ever.
"""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from functools import partial

from sandbox.shortage import shortage_of
from sandbox.threads import run_in_thread

BACKLOG = 128
_NOT_ON_THIS_MACHINE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


class ListenFailed(Exception):
    """No socket could be opened on the configured address; the text says why."""

    def __init__(self, host: str, port: int, why: OSError | None) -> None:
        reason = (shortage_of(why) or why.strerror or str(why)) if why else "the name has no address"
        super().__init__(f"cannot listen on {host!r} port {port}: {reason}")


async def open_listeners(host: str, port: int, *, stall_s: float) -> list[socket.socket]:
    """Listen on every address *host* stands for (`localhost` is two), on one port.

    Args:
        host: a name or an address.
        port: 0 lets the kernel choose; the same one is then used for every address.
        stall_s: seconds a connection may have data that its peer does not take before it is closed.

    Raises:
        ListenFailed: the name does not resolve, or an address of it is taken or not ours to bind.
    Ownership: the sockets are the caller's; if this raises, none is left open.
    """
    try:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        found = await run_in_thread(look_up, or_here=True)  # nobody is served yet
    except OSError as exc:  # socket.gaierror
        raise ListenFailed(host, port, exc) from exc
    sockets: list[socket.socket] = []
    refused: OSError | None = None
    with ExitStack() as on_failure:
        for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
            try:
                bound = _listen(family, (address[0], port, *address[2:]), stall_s)
            except OSError as exc:
                refused = exc
                if exc.errno in _NOT_ON_THIS_MACHINE:
                    continue  # `localhost` names ::1 also where IPv6 is switched off
                raise ListenFailed(host, port, exc) from exc
            sockets.append(on_failure.enter_context(bound))
            port = bound.getsockname()[1]
        if not sockets:
            raise ListenFailed(host, port, refused) from refused
        on_failure.pop_all()
    return sockets


def host_and_port(sock: socket.socket) -> str:
    """Return where *sock* listens, as it is written in a URL."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"


def _listen(family: int, address: tuple[object, ...], stall_s: float) -> socket.socket:
    """Open one listening socket; close it again if any step fails."""
    with ExitStack() as on_failure:
        sock = on_failure.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # restart while old connections linger
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_s * 1000))
        if family == socket.AF_INET6:
            # `::` takes IPv4 too; `localhost` gets a socket of its own for each family.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        sock.setblocking(False)
        sock.bind(address)
        sock.listen(BACKLOG)
        on_failure.pop_all()
    return sock
