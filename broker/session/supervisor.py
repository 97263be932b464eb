"""The supervisor: who may have a session, which sessions live, and the one wall a crash cannot pass.

Owns the table of sessions and the nursery they run in. One broker has one supervisor, whatever MCP connections come
and go. It must not know what a session's resources are, nor MCP or wire codes.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Generic, TypeAlias, TypeVar

import attrs
import trio

from broker.session.session import EndReason, Session, SessionClosed
from sandbox.errors import BirthCut, BirthFailed

R = TypeVar("R")

SESSION_ID_BYTES = 16
"""Bytes of randomness in an id that we mint: 128 bits, so that it cannot be guessed."""
END_BOUND_S = 10.0
"""Seconds a session that may not be where it is may take to end while its creator waits."""
REMEMBERED_ENDS = 1024
"""How many ended sessions are remembered, so that a late caller is told why instead of "not found"."""

Key: TypeAlias = tuple[str, str]
"""(principal, session id): to any other principal a session does not exist."""


class SessionNotFound(Exception):
    """No such session for this principal."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"there is no session {session_id!r}; call create_session and use the session_id it returns")


class SessionExpired(Exception):
    """The session was idle for too long."""

    def __init__(self, session_id: str, idle_s: float) -> None:
        super().__init__(f"session {session_id!r} was idle for more than {idle_s:g} s and ended; create a new session")


class SessionLimitReached(Exception):
    """As many sessions live as may live at once."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} sessions are open and sessions.max_concurrent is {limit}; kill one you do not need")


class CreationFailed(Exception):
    """The session could not be born; nothing of it is left. `errno`: the kernel's number, if it refused something."""

    def __init__(self, why: str, errno: int | None = None) -> None:
        super().__init__(why)
        self.errno = errno


class CreationCut(CreationFailed):
    """Its process was ended or stopped while it was being born; that says nothing of the next one."""


@attrs.frozen(kw_only=True)
class SupervisorSettings:
    """`idle_s`: seconds without a call after which a session ends. `max_concurrent`: sessions at once."""

    idle_s: float = attrs.field(validator=attrs.validators.gt(0))
    max_concurrent: int = attrs.field(validator=attrs.validators.ge(1))


@attrs.frozen(kw_only=True)
class SessionEnd:
    """The end of a session as the audit is told of it. `crash`: what hit the wall, else None."""

    principal: str
    session_id: str
    reason: EndReason
    crash: ExceptionGroup[Exception] | None


def new_session_id() -> str:
    """An id that nobody guesses."""
    return secrets.token_urlsafe(SESSION_ID_BYTES)


@attrs.define(eq=False)
class Supervisor(Generic[R]):
    """Admission, ids, ownership and the table of live sessions."""

    settings: SupervisorSettings
    _nursery: trio.Nursery
    _wait_lost: Callable[[R], Awaitable[None]]
    _on_end: Callable[[SessionEnd], None]
    _live: dict[Key, Session[R]] = attrs.field(factory=dict, init=False)
    _ends: OrderedDict[Key, EndReason] = attrs.field(factory=OrderedDict, init=False)
    draining: bool = attrs.field(default=False, init=False)

    async def create(
        self,
        principal: str,
        session_id: str | None,
        open_resources: Callable[[], AbstractAsyncContextManager[R]],
        enter: Callable[[Session[R]], Awaitable[None]] | None = None,
    ) -> Session[R]:
        """Bring a session to life, under the client's own id or a minted one.

        Args:
            enter: runs inside the session before anybody else can find it; if it raises, the session ends.

        Raises:
            SessionLimitReached, CreationFailed (the id is taken, or a stage of the birth failed), SessionClosed (the
            broker is stopping); what *enter* raises.
        Cancellation: a birth that is cancelled leaves nothing.
        """
        key = (principal, session_id or new_session_id())
        self._admit(key)
        session = Session(
            id=key[1], idle_s=self.settings.idle_s, open_resources=open_resources, wait_lost=self._wait_lost
        )
        self._live[key] = session
        match await self._nursery.start(self._supervise, key, session):
            case Exception() as failure:
                raise failure
        await self._enter(session, enter)
        self._ends.pop(key, None)
        return session

    async def _enter(self, session: Session[R], enter: Callable[[Session[R]], Awaitable[None]] | None) -> None:
        try:
            if enter is not None:
                await session.call(enter, session)
            session.entered = True
        finally:
            if not session.entered:
                session.kill()
                with trio.move_on_after(END_BOUND_S, shield=True):
                    await session.wait_closed()

    def get(self, principal: str, session_id: str) -> Session[R]:
        """The live session of this principal.

        Raises:
            SessionNotFound, SessionExpired, SessionClosed: there is none, and why as far as we remember.
        """
        key = (principal, session_id)
        session = self._live.get(key)
        entered = session is not None and session.entered
        if session is not None and entered and not session.closed:
            return session
        # One that is ending says already why, though its end is not in the table of ends yet.
        match session.ended if session is not None and entered else self._ends.get(key):
            case None:
                raise SessionNotFound(session_id)
            case EndReason.EXPIRED:
                raise SessionExpired(session_id, self.settings.idle_s)
            case reason:
                raise SessionClosed(session_id, reason)

    def of(self, principal: str) -> tuple[Session[R], ...]:
        """The live sessions of this principal."""
        return tuple(s for key, s in self._live.items() if key[0] == principal and s.entered and not s.closed)

    @property
    def living(self) -> tuple[Session[R], ...]:
        """The live sessions of all principals."""
        return tuple(session for session in self._live.values() if session.entered and not session.closed)

    async def drain(self, bound_s: float) -> int:
        """Refuse new sessions, end all, wait at most `bound_s` seconds; return how many are still ending."""
        self.draining = True
        sessions = tuple(self._live.values())
        for session in sessions:
            session.kill(EndReason.DRAINING)
        with trio.move_on_after(bound_s):
            for session in sessions:
                await session.wait_closed()
        return len(self._live)

    def _admit(self, key: Key) -> None:
        if self.draining:
            raise SessionClosed(key[1], EndReason.DRAINING)
        if key in self._live:
            raise CreationFailed(f"session id {key[1]!r} is in use; use that session, kill it, or choose another id")
        if len(self._live) >= self.settings.max_concurrent:
            raise SessionLimitReached(self.settings.max_concurrent)

    async def _supervise(
        self,
        key: Key,
        session: Session[R],
        *,
        task_status: trio.TaskStatus[Session[R] | Exception] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run one session. The one wall: what a session raises ends that session and no other."""
        crash: ExceptionGroup[Exception] | None = None
        try:
            await session.run(task_status=task_status)
            if not session.born:
                task_status.started(SessionClosed(session.id, session.ended))
        except* BirthFailed as failures:
            task_status.started(_creation_failed(failures))
        except* Exception as failures:  # noqa: BLE001  a broad catch: the wall
            crash = failures
            session.ended = EndReason.FAILED
            if not session.born:
                task_status.started(failures)
        finally:
            if session.ended is EndReason.FAILED and crash is None:  # it was cancelled, by a stop that cannot wait
                session.ended = EndReason.DRAINING
            del self._live[key]
            if session.born:
                self._forget(key, session, crash)

    def _forget(self, key: Key, session: Session[R], crash: ExceptionGroup[Exception] | None) -> None:
        self._ends[key] = session.ended
        while len(self._ends) > REMEMBERED_ENDS:
            self._ends.popitem(last=False)
        self._on_end(SessionEnd(principal=key[0], session_id=key[1], reason=session.ended, crash=crash))


def _creation_failed(failures: ExceptionGroup[BirthFailed]) -> CreationFailed:
    why = "; ".join(str(failure) for failure in failures.exceptions)
    first = next(iter(failures.exceptions))
    if all(isinstance(failure, BirthCut) for failure in failures.exceptions):
        return CreationCut(f"the session could not be set up: {why}; call again")
    return CreationFailed(f"the session could not be set up: {why}", getattr(first, "errno", None))


@asynccontextmanager
async def open_supervisor(
    settings: SupervisorSettings,
    *,
    wait_lost: Callable[[R], Awaitable[None]],
    on_end: Callable[[SessionEnd], None],
    drain_s: float,
) -> AsyncIterator[Supervisor[R]]:
    """A supervisor with its nursery; on leaving, every session is ended and waited for, at most `drain_s` seconds.

    Ownership: sessions belong to this nursery; no session outlives the context.
    """
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(settings=settings, nursery=nursery, wait_lost=wait_lost, on_end=on_end)
        try:
            yield supervisor
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + drain_s):
                await supervisor.drain(drain_s)
            nursery.cancel_scope.cancel(reason="the supervisor closes")
