"""Whose connections are served on the broker's own port: those of a session's own processes are not.

A command that may use the network reaches the port as every client does. Through it, it could open sessions, confirm
to itself, and leave behind a job that outlives its own session: so whoever is at the other end is looked up before a
byte is read. The answer holds for the connection, since a socket leaves a session only with the help of somebody
outside. Where in doubt the connection is refused. What this cannot tell is who asks a proxy outside to ask us.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import attrs
import trio

from broker.audit.audit import Event, EventType
from sandbox.init.launcher import Launcher
from sandbox.kernel import namespaces
from sandbox.machine.holders import Holders
from sandbox.machine.netpeers import Gone, NetPeers, PeersUnknown, choose_peers
from sandbox.plan.plan import LayerUnavailable, Plan, SessionUser
from sandbox.threads import run_in_thread

RECORD_S = 1.0
"""Between two records: a command could write gigabytes of them. The next one says how many there were."""
LIKELY = 8
"""Processes that connected before are looked at first when somebody connects."""
NOBODY = -1

OF_SESSION = "connections of a session's own processes are refused: what a command may do, its client decides"
CLOSED = "the other end of this connection was closed before it could be looked at: keep it open for the answer"
UNSEEN = (
    "which process holds the other end of this connection cannot be seen, so it may be a session's: connect from a "
    "process that the broker's user may look into, or over stdio, or run the broker as root or a user of its own"
)


class Ends(Protocol):
    """A connected socket, of trio or the standard library."""

    def getpeername(self) -> Any:
        """The address of the other end."""
        ...

    def getsockname(self) -> Any:
        """The address of this end."""
        ...


@attrs.frozen(kw_only=True)
class Stranger:
    """A caller that is refused: a sentence for it, and what is known of it."""

    why: str
    peer: str
    uid: int = NOBODY
    inode: int = 0
    pid: int = NOBODY


def open_watch(
    plan: Plan,
    user: SessionUser,
    launcher: Launcher,
    session_of: Callable[[int], str | None],
    record: Callable[[Event], object],
) -> PeerWatch:
    """The watch that this plan needs.

    Args:
        session_of: the session whose process it is.
        record: told of who is refused.

    Raises:
        LayerUnavailable: sessions share the network with the broker, and the kernel does not say who connects.
    """
    peers = None
    # Sessions with a network of their own, or whose filter lets no internet socket through, cannot reach the port.
    if plan.shares_network:
        try:
            peers = choose_peers()
        except PeersUnknown as unknown:
            why = f"commands that may use it could drive the broker through its own port, unknown to it ({unknown})"
            remedy = "serve on stdio, let the policy allow the network to no command, or load the module tcp_diag"
            raise LayerUnavailable(layer="network", why=why, remedy=remedy) from unknown
    holders = Holders(own_namespaces=bool(plan.spaces & namespaces.PID), filtered=plan.seccomp)
    return PeerWatch(peers, holders, user, launcher, session_of, record)


@attrs.define(eq=False)
class PeerWatch:
    """Looks at who connects. Without `_peers` nobody has to be kept out."""

    _peers: NetPeers | None
    _holders: Holders
    _user: SessionUser
    _launcher: Launcher
    _session_of: Callable[[int], str | None]
    _record_event: Callable[[Event], object]
    _likely: deque[int] = attrs.field(factory=lambda: deque(maxlen=LIKELY), init=False)
    _looking: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(1), init=False)
    _unrecorded: int = attrs.field(default=0, init=False)
    _recorded_at: float = attrs.field(default=float("-inf"), init=False)

    async def refuses(self, ends: Ends) -> str:
        """Why this connection is not served, or "" if it is."""
        if self._peers is None:
            return ""
        stranger = await self._stranger(self._peers, ends)
        if stranger is None:
            return ""
        await self._record(stranger)
        return stranger.why

    def settle(self) -> None:
        """Record how many have been refused since the last record."""
        if self._unrecorded:
            self._record_event(Event(event_type=EventType.CONNECTION_REFUSED, details={"refused": self._unrecorded}))
            self._unrecorded = 0

    async def _stranger(self, peers: NetPeers, ends: Ends) -> Stranger | None:
        peer = ""
        try:
            name = ends.getpeername()
            peer = f"{name[0]} port {name[1]}"
            owner = peers.owner(name, ends.getsockname())
        except Gone:
            return Stranger(why=CLOSED, peer=peer)
        except OSError as error:  # reset, or the kernel does not say
            return Stranger(why=f"{UNSEEN} ({error.strerror})", peer=peer)
        if owner is None or owner.uid != self._user.uid:
            await trio.lowlevel.checkpoint()
            return None
        found = Stranger(why=OF_SESSION, peer=peer, uid=owner.uid, inode=owner.inode)
        # A user that root chose for sessions alone is nobody else.
        return found if self._user.dedicated else await self._of_our_user(found)

    async def _of_our_user(self, found: Stranger) -> Stranger | None:
        """Tell the sessions' processes from the others of the user that all of them are."""
        if not self._launcher.has_sessions:
            await trio.lowlevel.checkpoint()
            return None
        likely = tuple(self._likely)
        holder = await run_in_thread(self._holders.find, found.inode, likely, limiter=self._looking, or_here=True)
        if holder is None:
            return attrs.evolve(found, why=UNSEEN)
        if not holder.apart:
            return attrs.evolve(found, pid=holder.pid)
        if holder.pid not in self._likely:
            self._likely.appendleft(holder.pid)
        return None

    async def _record(self, stranger: Stranger) -> None:
        self._unrecorded += 1
        now = trio.current_time()
        if now < self._recorded_at + RECORD_S:
            await trio.lowlevel.checkpoint()
            return
        self._recorded_at, refused, self._unrecorded = now, self._unrecorded, 0
        pid = stranger.pid
        if pid == NOBODY and stranger.inode:
            inside = await run_in_thread(self._holders.find_inside, stranger.inode, limiter=self._looking, or_here=True)
            pid = NOBODY if inside is None else inside
        known = {"uid": stranger.uid, "pid": pid}
        details = {name: number for name, number in known.items() if number != NOBODY}
        session_id = None if pid == NOBODY else self._session_of(pid)
        self._record_event(
            Event(
                event_type=EventType.CONNECTION_REFUSED,
                session_id=session_id,
                details={"why": stranger.why, "peer": stranger.peer, "refused": refused, **details},
            )
        )
