"""A session: a trio nursery that owns everything one client started.

Owns, outermost first: the life cancel scope, the resources (the walls, files and transfers), the nursery. It must
not know what the resources are, nor MCP, policy or audit: it runs any async function, so its whole life can be
tested in virtual time.

Three things end a call: the caller's cancellation, the work's own end, the end of the session. In each of them the
waiting caller learns it here.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from enum import Enum
from typing import Generic, TypeVar, TypeVarTuple

import attrs
import trio

T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

WIND_DOWN_S = 10.0
"""Seconds a cancelled caller waits for its work to be gone: above the grace of any command, and bounded."""


class EndReason(Enum):
    """Why a session ended, as a person reads it."""

    KILLED = "it was killed"
    EXPIRED = "it was idle for longer than sessions.max_session_age"
    DRAINING = "the broker is stopping"
    LOST = "its init process ended"
    FAILED = "an internal error ended it"


class SessionClosed(Exception):
    """The session ended before the call did, or had ended already. *begun*: the call may have done something."""

    def __init__(self, session_id: str, reason: EndReason, *, begun: bool = False) -> None:
        done = "; what this call had begun may have been done" if begun else ""
        super().__init__(f"session {session_id} is closed: {reason.value}{done}; create a new session")
        self.session_id = session_id
        self.reason = reason


@attrs.define(eq=False)
class Work(Generic[T]):
    """Something that runs in a session; its outcome waits for whoever asks."""

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    done: trio.Event = attrs.field(factory=trio.Event)
    outcome: tuple[T] | Exception | None = None

    def unwrap(self, session: Session[R]) -> T:
        """Return its result or raise its error; raises SessionClosed if it had no time for either."""
        match self.outcome:
            case (value,):
                return value
            case Exception() as error:
                raise error
            case _:
                raise SessionClosed(session.id, session.ended, begun=True)


@attrs.define(eq=False)
class Session(Generic[R]):
    """One client's nursery on this machine; see the module for what it owns."""

    id: str
    idle_s: float
    _open_resources: Callable[[], AbstractAsyncContextManager[R]]
    _wait_lost: Callable[[R], Awaitable[None]]
    """Returns when the resources have failed under the session, which then ends; may sleep for ever."""
    born: bool = attrs.field(default=False, init=False)
    entered: bool = attrs.field(default=False, init=False)
    """It may be where it is, says the supervisor; nobody can call it before."""
    closed: bool = attrs.field(default=False, init=False)
    _ended: EndReason | None = attrs.field(default=None, init=False)
    _own: R | None = attrs.field(default=None, init=False)
    _life: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    _gone: trio.Event = attrs.field(factory=trio.Event, init=False)
    _busy: int = attrs.field(default=0, init=False)

    @property
    def ended(self) -> EndReason:
        """Why it is ending or over: what was told, else that it was idle, else that something broke."""
        return self._ended or (EndReason.EXPIRED if self._life.cancel_called else EndReason.FAILED)

    @ended.setter
    def ended(self, reason: EndReason) -> None:
        self._ended = reason

    @property
    def own(self) -> R:
        """The resources; they belong to the session, callers only borrow them inside `call`."""
        if self._own is None:
            raise SessionClosed(self.id, self.ended)
        return self._own

    async def run(self, *, task_status: trio.TaskStatus[Session[R]] = trio.TASK_STATUS_IGNORED) -> None:
        """Own everything this session has until it is killed or idle for `idle_s` seconds.

        Cancellation: the work is cancelled first, then the resources close; both are done when this returns.
        """
        try:
            with self._life:
                async with self._open_resources() as self._own:
                    await self._live(self._own, task_status)
        finally:
            self.closed = True
            self._own = None
            self._gone.set()

    async def _live(self, own: R, task_status: trio.TaskStatus[Session[R]]) -> None:
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._end_when_lost, own)
                self._mind_idle()
                self.born = True
                task_status.started(self)
                await trio.sleep_forever()
        finally:
            # A nursery takes no children once it is left, while the resources still close: refuse calls from here.
            self.closed = True
            self._nursery = None

    async def _end_when_lost(self, own: R) -> None:
        await self._wait_lost(own)
        self.kill(EndReason.LOST)

    async def call(self, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Run fn(*args) inside the session; return its result, or raise its error, here.

        Raises:
            SessionClosed: the session ended first, or had ended already.
        Cancellation: cancelling the caller cancels fn and waits, at most WIND_DOWN_S, until it is gone.
        """
        call = self.start(fn, *args)
        try:
            await call.done.wait()
        finally:
            if not call.done.is_set():
                call.scope.cancel(reason="the caller left")
                with trio.move_on_after(WIND_DOWN_S, shield=True):
                    await call.done.wait()
        return call.unwrap(self)

    def start(self, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> Work[T]:
        """Have fn(*args) run inside the session, waited for or not; it is activity, and ends with the session.

        Raises:
            SessionClosed: the session has ended already.
        """
        nursery = self._nursery
        if self.closed or nursery is None:
            raise SessionClosed(self.id, self.ended)
        work: Work[T] = Work()
        try:
            nursery.start_soon(self._perform, work, fn, args)
        except RuntimeError as closed:  # broken: all its tasks are gone, and it has not left the nursery yet
            raise SessionClosed(self.id, self.ended) from closed
        self._busy += 1
        self._mind_idle()
        return work

    async def _perform(self, call: Work[T], fn: Callable[[*Ts], Awaitable[T]], args: tuple[*Ts]) -> None:
        try:
            with call.scope:
                # The session may have ended between start_soon and here: then nothing of fn may happen.
                await trio.lowlevel.checkpoint_if_cancelled()
                call.outcome = (await fn(*args),)
        except Exception as error:  # noqa: BLE001  a broad catch: the error belongs to the caller
            call.outcome = error
        finally:
            self._busy -= 1
            self._mind_idle()
            call.done.set()

    def kill(self, reason: EndReason = EndReason.KILLED) -> None:
        """Ask the session to end; it refuses new calls from now on. `wait_closed` tells when nothing is left."""
        self.refuse_calls(reason)
        self._life.cancel(reason=self.ended.value)

    def refuse_calls(self, reason: EndReason) -> None:
        """Take no further calls; those that run go on until `kill`."""
        if not self.closed:
            self.closed = True
            self.ended = reason

    async def wait_closed(self) -> None:
        """Return when the work, the resources and all processes of this session are gone."""
        await self._gone.wait()

    def _mind_idle(self) -> None:
        """Idle is a deadline, not a sweep: a running call is activity, the last one out starts the clock."""
        self._life.deadline = math.inf if self._busy else trio.current_time() + self.idle_s
