"""A sum of bytes with a queue before it: in order, bounded in time, and the slowest holder gives way."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from broker.contract.long_text import Buffer
from broker.memory.answers import AnswerRoom, NoRoomForAnswer
from broker.memory.budget import PATIENCE_S, SMALL_BYTES, ByteBudget, Hold

MUCH = 10 * SMALL_BYTES


async def reserved(budget: ByteBudget, size: int) -> Hold:
    hold = await budget.reserve(size, wait_s=60)
    assert hold is not None
    return hold


@pytest.mark.parametrize("in_thread", [False, True])
async def test_what_a_buffer_has_is_held_until_nobody_has_it(*, in_thread: bool) -> None:
    budget = ByteBudget(MUCH)
    buffers = [Buffer(MUCH // 2), Buffer(MUCH // 4)]
    budget.take_while_alive(buffers)
    both = budget.held
    assert both >= MUCH * 3 // 4
    kept = memoryview(buffers.pop())  # as a pipe keeps what is not read yet
    if in_thread:
        await trio.to_thread.run_sync(buffers.clear)
    buffers.clear()
    await wait_all_tasks_blocked()
    assert MUCH // 4 <= budget.held < both - MUCH // 2
    kept.release()
    del kept
    await wait_all_tasks_blocked()
    assert budget.held == 0


async def test_who_waits_gets_in_by_turn_as_soon_as_there_is_room() -> None:
    budget, order = ByteBudget(10), list[int]()
    first = await reserved(budget, 8)

    async def wait(size: int) -> None:
        await reserved(budget, size)
        order.append(size)

    async with trio.open_nursery() as nursery:
        for size in (6, 2, 2):  # the 2 would fit now, but then a stream of small ones would keep the 6 out
            nursery.start_soon(wait, size)
            await wait_all_tasks_blocked()
        assert order == []
        first.resize(4)
        await wait_all_tasks_blocked()
        assert order == [6]
        first.release()
        first.release()
    assert order == [6, 2, 2]
    assert budget.held == 10


async def test_who_finds_no_room_in_time_holds_nothing_and_lets_the_next_in(autojump_clock: MockClock) -> None:
    budget = ByteBudget(10)
    hold = await reserved(budget, 5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reserved, budget, 11)  # as much as there is
        await wait_all_tasks_blocked()
        assert await budget.reserve(5, wait_s=3) is None
        hold.release()
    assert budget.held == 10


async def test_who_is_cancelled_holds_nothing(autojump_clock: MockClock) -> None:
    budget = ByteBudget(10)
    with trio.CancelScope() as scope:
        scope.cancel()
        await reserved(budget, 10)  # there is room
    assert budget.held == 0
    hold = await reserved(budget, 10)
    with trio.move_on_after(1):
        await reserved(budget, 5)
    hold.release()
    assert budget.held == 0


async def test_the_slowest_gives_way_to_those_that_wait_and_nobody_else_does(autojump_clock: MockClock) -> None:
    budget, gone = ByteBudget(10), list[int]()
    holds = [await reserved(budget, 5) for _ in range(2)]
    for number, hold in enumerate(holds):

        def give_way(number: int = number, hold: Hold = hold) -> None:
            gone.append(number)
            hold.release()

        hold.keeps_pace(give_way)
        await trio.sleep(1)
    await trio.sleep(3 * PATIENCE_S)
    assert gone == [], "nobody waits"
    await reserved(budget, 5)
    assert gone == [0]
    holds[1].at_rest()
    assert await budget.reserve(5, wait_s=3 * PATIENCE_S) is None
    assert gone == [0]


async def test_quiet_is_when_nothing_has_been_held_for_a_while(autojump_clock: MockClock) -> None:
    budget, quiet = ByteBudget(10), list[float]()

    async def watch() -> None:
        await budget.wait_quiet(1)
        quiet.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await trio.sleep(100)
        assert quiet == []
        for _ in range(20):
            budget.take(5).release()
            await trio.sleep(0.5)
        assert quiet == []
        ended = trio.current_time()
    assert quiet[0] <= ended + 2


async def test_an_answer_holds_its_room_until_it_is_sent(autojump_clock: MockClock) -> None:
    budget, aborted = ByteBudget(MUCH), list[str]()
    one, two = AnswerRoom(budget, lambda: aborted.append("one")), AnswerRoom(budget, lambda: aborted.append("two"))
    await one.reserve(SMALL_BYTES)
    assert budget.held == 0
    await one.reserve(MUCH)
    one.sends(SMALL_BYTES)  # progress on its way: the answer is still to come
    assert budget.held == MUCH
    with pytest.raises(NoRoomForAnswer, match=str(MUCH)):
        await two.reserve(MUCH)
    assert aborted == []
    one.sends(MUCH)
    with pytest.raises(NoRoomForAnswer):
        await two.reserve(MUCH)
    assert aborted == ["one"]
    one.close()
    await two.reserve(MUCH)
    two.close()
    await two.reserve(MUCH)
    assert budget.held == 0, "nobody is there any more to send it to"
