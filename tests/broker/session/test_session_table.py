"""The table of sessions: admission, ownership, ends that are remembered, the wall; checked against a dict."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from trio.testing import MockClock, wait_all_tasks_blocked

from broker.session.session import EndReason, Session, SessionClosed
from broker.session.supervisor import (
    CreationCut,
    CreationFailed,
    SessionEnd,
    SessionExpired,
    SessionLimitReached,
    SessionNotFound,
    Supervisor,
    SupervisorSettings,
    open_supervisor,
)
from sandbox.errors import BirthCut, BirthFailed

ME = "me"


@asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    yield


async def never(own: None) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def table(
    *, idle_s: float = 1800, max_concurrent: int = 4, ends: list[SessionEnd] | None = None
) -> AsyncIterator[Supervisor[None]]:
    log = [] if ends is None else ends
    limits = SupervisorSettings(idle_s=idle_s, max_concurrent=max_concurrent)
    async with open_supervisor(limits, wait_lost=never, on_end=log.append, drain_s=5) as supervisor:
        yield supervisor


async def test_minted_ids_are_unguessable_and_distinct() -> None:
    async with table() as supervisor:
        ids = {(await supervisor.create(ME, None, nothing)).id for _ in range(4)}
        assert len(ids) == 4
        assert all(len(minted) >= 22 for minted in ids)


async def test_a_session_does_not_exist_for_another_principal() -> None:
    async with table() as supervisor:
        mine = await supervisor.create(ME, "shared-name", nothing)
        with pytest.raises(SessionNotFound):
            supervisor.get("other", "shared-name")
        theirs = await supervisor.create("other", "shared-name", nothing)
        assert supervisor.get(ME, "shared-name") is mine
        assert supervisor.get("other", "shared-name") is theirs
        assert supervisor.of(ME) == (mine,)


async def test_an_id_in_use_is_refused_and_free_again_after_the_end() -> None:
    async with table() as supervisor:
        first = await supervisor.create(ME, "x", nothing)
        with pytest.raises(CreationFailed, match="in use"):
            await supervisor.create(ME, "x", nothing)
        first.kill()
        await first.wait_closed()
        await wait_all_tasks_blocked()
        assert await supervisor.create(ME, "x", nothing) is not first


async def test_the_limit_counts_births_and_names_itself() -> None:
    async with table(max_concurrent=1) as supervisor, trio.open_nursery() as nursery:
        go = trio.Event()

        @asynccontextmanager
        async def slow() -> AsyncIterator[None]:
            await go.wait()
            yield

        nursery.start_soon(supervisor.create, ME, "slow", slow)
        await wait_all_tasks_blocked()
        with pytest.raises(SessionLimitReached, match=r"max_concurrent is 1"):
            await supervisor.create(ME, "second", nothing)
        with pytest.raises(SessionNotFound):
            supervisor.get(ME, "slow")
        go.set()


async def test_nobody_finds_a_session_before_it_may_be_where_it_is() -> None:
    async with table() as supervisor, trio.open_nursery() as nursery:
        entering, go = trio.Event(), trio.Event()

        async def enter(session: Session[None]) -> None:
            entering.set()
            await go.wait()

        nursery.start_soon(supervisor.create, ME, "x", nothing, enter)
        await entering.wait()
        with pytest.raises(SessionNotFound):
            supervisor.get(ME, "x")
        assert supervisor.of(ME) == ()
        go.set()
        await wait_all_tasks_blocked()
        assert supervisor.of(ME) == (supervisor.get(ME, "x"),)


async def test_a_session_that_may_not_be_where_it_is_ends_before_anybody_finds_it() -> None:
    async def refused(session: Session[None]) -> None:
        raise LookupError("not there")

    async def stay(session: Session[None]) -> None:
        await trio.sleep_forever()

    ends: list[SessionEnd] = []
    async with table(ends=ends) as supervisor:
        with pytest.raises(LookupError, match="not there"):
            await supervisor.create(ME, "x", nothing, refused)
        assert [(end.session_id, end.reason) for end in ends] == [("x", EndReason.KILLED)]
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(supervisor.create, ME, "y", nothing, stay)
                await wait_all_tasks_blocked()
                scope.cancel()
        assert supervisor.of(ME) == ()
        await wait_all_tasks_blocked()
        assert [end.session_id for end in ends] == ["x", "y"]


async def test_an_expired_session_says_so_and_a_killed_one_too(autojump_clock: MockClock) -> None:
    async with table(idle_s=10) as supervisor:
        await supervisor.create(ME, "idle", nothing)
        await trio.sleep(11)
        with pytest.raises(SessionExpired, match="10 s"):
            supervisor.get(ME, "idle")
        killed = await supervisor.create(ME, "killed", nothing)
        killed.kill()
        await killed.wait_closed()
        with pytest.raises(SessionClosed) as caught:
            supervisor.get(ME, "killed")
        assert caught.value.reason is EndReason.KILLED


async def test_a_failed_birth_reaches_the_caller_and_leaves_no_trace() -> None:
    @asynccontextmanager
    async def stillborn() -> AsyncIterator[None]:
        raise BirthFailed("landlock", "no rights")
        yield

    @asynccontextmanager
    async def cut() -> AsyncIterator[None]:
        raise BirthCut("start", "the interpreter ended without a word")
        yield

    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise ZeroDivisionError
        yield

    ends: list[SessionEnd] = []
    async with table(ends=ends) as supervisor:
        with pytest.raises(CreationFailed, match="landlock"):
            await supervisor.create(ME, "x", stillborn)
        with pytest.raises(CreationCut, match="call again"):
            await supervisor.create(ME, "x", cut)
        with pytest.RaisesGroup(ZeroDivisionError):
            await supervisor.create(ME, "x", broken)
        assert supervisor.of(ME) == ()
        await supervisor.create(ME, "x", nothing)
    assert [end.reason for end in ends] == [EndReason.DRAINING]


async def test_a_crash_ends_its_session_and_no_other() -> None:
    crash = trio.Event()

    @asynccontextmanager
    async def fragile() -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise ZeroDivisionError

    ends: list[SessionEnd] = []
    async with table(ends=ends) as supervisor:
        other = await supervisor.create(ME, "other", nothing)
        fragile_session = await supervisor.create(ME, "fragile", fragile)
        fragile_session.kill()
        await fragile_session.wait_closed()
        await wait_all_tasks_blocked()
        crash.set()
        assert [(end.session_id, end.reason) for end in ends] == [("fragile", EndReason.FAILED)]
        assert ends[0].crash is not None
        assert supervisor.get(ME, "other") is other


async def test_draining_refuses_new_sessions_and_ends_all() -> None:
    async with table() as supervisor:
        session = await supervisor.create(ME, "x", nothing)
        assert await supervisor.drain(5) == 0
        assert session.closed
        with pytest.raises(SessionClosed, match="stopping"):
            await supervisor.create(ME, "y", nothing)


async def test_a_session_that_the_stopping_broker_ends_at_its_birth_is_told_as_closed() -> None:
    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        await trio.sleep_forever()
        yield

    ends: list[SessionEnd] = []
    async with table(ends=ends) as supervisor, trio.open_nursery() as nursery:

        async def create() -> None:
            with pytest.raises(SessionClosed, match="stopping"):
                await supervisor.create(ME, "x", slow)

        nursery.start_soon(create)
        await wait_all_tasks_blocked()
        assert await supervisor.drain(5) == 0
    assert not ends


class SessionTable(RuleBasedStateMachine):
    """Open, call, kill and wait in any order, against a dict model, in virtual time."""

    keys = Bundle("keys")
    names = st.sampled_from(["a", "b", "c"])
    principals = st.sampled_from(["p", "q"])
    LIMIT = 3
    IDLE_S = 100.0

    @initialize()
    def start(self) -> None:
        self.now_s = 0.0
        self.model: dict[tuple[str, str], float] = {}
        self.log: list[tuple[str, tuple[str, str], float]] = []

    @rule(target=keys, principal=principals, name=names)
    def create(self, principal: str, name: str) -> tuple[str, str]:
        self.log.append(("create", (principal, name), self.now_s))
        return (principal, name)

    @rule(key=keys)
    def touch(self, key: tuple[str, str]) -> None:
        self.log.append(("touch", key, self.now_s))

    @rule(key=consumes(keys))
    def kill(self, key: tuple[str, str]) -> None:
        self.log.append(("kill", key, self.now_s))

    @rule(seconds=st.sampled_from([1.0, 60.0, 150.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @invariant()
    def live_sessions_are_those_of_the_model(self) -> None:
        if getattr(self, "log", None):
            trio.run(self.replay, clock=MockClock(autojump_threshold=0))

    async def replay(self) -> None:
        model: dict[tuple[str, str], float] = {}
        async with table(idle_s=self.IDLE_S, max_concurrent=self.LIMIT) as supervisor:
            start_s = trio.current_time()
            for step, key, at_s in self.log:
                await trio.sleep_until(start_s + at_s)
                model = {k: last for k, last in model.items() if at_s - last < self.IDLE_S}
                await getattr(self, f"do_{step}")(supervisor, model, key, at_s)
                live = {(p, s.id) for p in ("p", "q") for s in supervisor.of(p)}
                assert live == set(model)

    async def do_create(
        self, supervisor: Supervisor[None], model: dict[tuple[str, str], float], key: tuple[str, str], at_s: float
    ) -> None:
        try:
            await supervisor.create(*key, nothing)
        except CreationFailed:
            assert key in model
        except SessionLimitReached:
            assert len(model) == self.LIMIT
        else:
            assert key not in model
            model[key] = at_s

    async def do_touch(
        self, supervisor: Supervisor[None], model: dict[tuple[str, str], float], key: tuple[str, str], at_s: float
    ) -> None:
        try:
            session = supervisor.get(*key)
        except (SessionNotFound, SessionExpired, SessionClosed):
            assert key not in model
        else:
            await session.call(trio.lowlevel.checkpoint)
            model[key] = at_s

    async def do_kill(
        self, supervisor: Supervisor[None], model: dict[tuple[str, str], float], key: tuple[str, str], at_s: float
    ) -> None:
        if model.pop(key, None) is not None:
            session = supervisor.get(*key)
            session.kill()
            await session.wait_closed()
            await wait_all_tasks_blocked()


TestSessionTable = SessionTable.TestCase
TestSessionTable.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)
