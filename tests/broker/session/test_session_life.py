"""A session's whole life in virtual time: it takes any async function, so no process is needed here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from broker.session.session import EndReason, Session, SessionClosed

IDLE_S = 1800.0


@attrs.define(eq=False)
class Own:
    """Stands for what a session owns; says when it was closed."""

    lost: trio.Event = attrs.field(factory=trio.Event)
    log: list[str] = attrs.field(factory=list)


@attrs.define(eq=False)
class Stage:
    own: Own
    session: Session[Own]


@asynccontextmanager
async def live_session(idle_s: float = IDLE_S) -> AsyncIterator[Stage]:
    own = Own()

    @asynccontextmanager
    async def open_own() -> AsyncIterator[Own]:
        try:
            yield own
        finally:
            own.log.append("resources closed")

    session = Session(id="s", idle_s=idle_s, open_resources=open_own, wait_lost=lambda own: own.lost.wait())
    async with trio.open_nursery() as nursery:
        await nursery.start(session.run)
        yield Stage(own, session)
        session.kill()


async def answer(value: int) -> int:
    await trio.sleep(0)
    return value


async def test_a_call_returns_what_the_work_returned() -> None:
    async with live_session() as stage:
        assert await stage.session.call(answer, 42) == 42


async def test_an_error_of_the_work_reaches_the_caller_and_the_session_lives_on() -> None:
    async def fail() -> None:
        raise LookupError("mine")

    async with live_session() as stage:
        with pytest.raises(LookupError, match="mine"):
            await stage.session.call(fail)
        assert await stage.session.call(answer, 1) == 1


async def test_a_busy_session_outlives_its_idle_time_and_an_idle_one_does_not(autojump_clock: MockClock) -> None:
    async with live_session() as stage:
        await stage.session.call(trio.sleep, IDLE_S * 3)
        assert not stage.session.closed
        started_s = trio.current_time()
        await stage.session.wait_closed()
        assert trio.current_time() - started_s == pytest.approx(IDLE_S)
        assert stage.session.ended is EndReason.EXPIRED


async def test_every_call_moves_the_idle_deadline(autojump_clock: MockClock) -> None:
    async with live_session() as stage:
        for _ in range(5):
            await trio.sleep(IDLE_S * 0.9)
            await stage.session.call(answer, 0)
        assert not stage.session.closed


async def test_kill_answers_every_waiting_caller_with_a_typed_error() -> None:
    closed: list[EndReason] = []

    async def wait_in(session: Session[Own]) -> None:
        with pytest.raises(SessionClosed) as caught:
            await session.call(trio.sleep_forever)
        closed.append(caught.value.reason)

    async with live_session() as stage, trio.open_nursery() as clients:
        for _ in range(3):
            clients.start_soon(wait_in, stage.session)
        await wait_all_tasks_blocked()
        stage.session.kill(EndReason.DRAINING)
        await stage.session.wait_closed()
    assert closed == [EndReason.DRAINING] * 3


async def test_resources_close_after_the_last_work_is_gone() -> None:
    async def work(log: list[str], *, name: str = "work ended") -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            log.append(name)

    async with live_session() as stage, trio.open_nursery() as clients:

        async def client() -> None:
            with pytest.raises(SessionClosed, match="may have been done"):
                await stage.session.call(work, stage.own.log)

        clients.start_soon(client)
        await wait_all_tasks_blocked()
        stage.session.kill()
        await stage.session.wait_closed()
        assert stage.own.log == ["work ended", "resources closed"]


async def test_a_killed_session_refuses_calls_at_once() -> None:
    async with live_session() as stage:
        stage.session.kill()
        with pytest.raises(SessionClosed) as caught:
            await stage.session.call(answer, 1)
        assert "may have been done" not in str(caught.value)


async def test_losing_the_resources_ends_the_session() -> None:
    async with live_session() as stage:
        stage.own.lost.set()
        await stage.session.wait_closed()
        assert stage.session.ended is EndReason.LOST


async def test_a_session_that_breaks_is_not_said_to_have_been_idle() -> None:
    broken, told = trio.Event(), trio.Event()

    @asynccontextmanager
    async def open_own() -> AsyncIterator[Own]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_break, broken)
            try:
                yield Own()
            finally:
                with trio.move_on_after(5, shield=True):
                    await told.wait()

    session = Session(id="s", idle_s=IDLE_S, open_resources=open_own, wait_lost=lambda own: own.lost.wait())
    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(session.run)
            broken.set()
            with pytest.raises(SessionClosed) as caught:
                await session.call(trio.sleep_forever)
            assert caught.value.reason is EndReason.FAILED
            with pytest.raises(SessionClosed) as caught:  # while the resources still close
                await session.call(answer, 1)
            assert caught.value.reason is EndReason.FAILED
            told.set()


async def _break(when: trio.Event) -> None:
    await when.wait()
    raise OSError("out of buffers")


async def test_cancelling_the_caller_cancels_the_work_and_waits_until_it_is_gone() -> None:
    ended = False

    async def work() -> None:
        nonlocal ended
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            ended = True

    async with live_session() as stage:
        with trio.CancelScope() as caller:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stage.session.call, work)
                await wait_all_tasks_blocked()
                caller.cancel()
        assert ended
        assert not stage.session.closed


async def test_work_that_ignores_cancellation_delays_its_caller_only_so_long(autojump_clock: MockClock) -> None:
    async def stubborn() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(1000)

    async with live_session() as stage:
        started_s = trio.current_time()
        with trio.move_on_after(1):
            await stage.session.call(stubborn)
        assert trio.current_time() - started_s == pytest.approx(11)


@pytest.mark.parametrize("steps", range(12))
async def test_nothing_of_a_call_remains_however_early_it_is_cancelled(steps: int) -> None:
    running = 0

    async def work() -> None:
        nonlocal running
        running += 1
        try:
            for _ in range(5):
                await trio.lowlevel.checkpoint()
        finally:
            running -= 1

    async with live_session() as stage, trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def client(session: Session[Own], fn: Callable[[], Awaitable[None]]) -> None:
            with scope:
                await session.call(fn)

        nursery.start_soon(client, stage.session, work)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        scope.cancel()
    assert running == 0
