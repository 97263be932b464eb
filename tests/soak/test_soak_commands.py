"""Long runs leave the broker as it was: memory, descriptors, threads, processes."""

from __future__ import annotations

import attrs
import psutil
import pytest
import trio

from tests.support.live import LiveBroker, connect, new_session, ok, run, running_broker

pytestmark = [
    pytest.mark.soak,
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),  # the legacy client's, not ours
]

CLIENTS = 6
COMMANDS = 10_000
WARM_UP = 1_000
OUTPUT_BYTES = 10_000_000
OUTPUTS = 100  # of 10 MB each: a gigabyte
ROUNDS = 10
SESSIONS = 100
REST = 200
SPARE = 2  # processes: the spare, and what was left behind when it moved into namespaces; it is reaped at the birth
LOGS = 2  # each is open once more until it is synced
SETTLE_S = 25  # a thread of trio ends when it was idle for 10 s
MEMORY_SLACK_BYTES = 10 * 1024 * 1024


@attrs.frozen
class Held:
    """What the broker holds: its own memory, descriptors, threads, and the processes beneath it."""

    rss_bytes: int
    descriptors: int
    threads: int
    processes: int

    @classmethod
    def by(cls, broker: LiveBroker) -> Held:
        own = psutil.Process(broker.process.pid)
        return cls(own.memory_info().rss, own.num_fds(), own.num_threads(), len(broker.family()))

    def is_within(self, other: Held) -> bool:
        """Whether nothing that can be counted, which is all but the memory, is more than in *other*."""
        return (
            self.descriptors <= other.descriptors + LOGS
            and self.threads <= other.threads
            and self.processes <= other.processes
        )


async def settled(broker: LiveBroker, wanted: Held | None = None) -> Held:
    """What it holds when no session lives; with *wanted*, when idle threads and closed connections are gone as well.

    Waits while other calls pass, because nothing says when a thread has been idle for long enough.
    """

    def is_settled(held: Held) -> bool:
        return held.processes <= SPARE if wanted is None else held.is_within(wanted)

    deadline = trio.current_time() + SETTLE_S
    async with connect(broker) as client:
        while not is_settled(held := Held.by(broker)) and trio.current_time() < deadline:
            await ok(client, "get_system_info")
    return held


async def many(broker: LiveBroker, count: int, *argv: str) -> None:
    """*count* commands from several clients at once, in a session that ends with them; each must succeed."""
    left = iter(range(count))

    async def one_client(session_id: str) -> None:
        async with connect(broker) as client:
            for _number in left:
                answer = await ok(client, "execute_command", session_id=session_id, argv=list(argv))
                assert answer["exit_code"] == 0, answer.data

    async with connect(broker) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        async with trio.open_nursery() as nursery:
            for _client in range(CLIENTS):
                nursery.start_soon(one_client, session_id)
        await ok(client, "kill_session", session_id=session_id, force=True)


def check_countable(before: Held, after: Held) -> None:
    assert after.is_within(before), (before, after)


def check_same(before: Held, after: Held) -> None:
    check_countable(before, after)
    assert after.rss_bytes - before.rss_bytes < MEMORY_SLACK_BYTES, (before, after)


@pytest.mark.bounded(400)
async def test_ten_thousand_commands_leave_everything_where_it_was() -> None:
    with running_broker({"logging": {"max_size_mb": 1}}) as broker:
        await many(broker, WARM_UP, "true")
        before = await settled(broker)
        await many(broker, COMMANDS, "true")
        check_same(before, await settled(broker, before))


@pytest.mark.bounded(400)
async def test_a_gigabyte_of_output_leaves_everything_where_it_was() -> None:
    """How many large answers are in memory at once is chance, so single levels swing; their lowest must not rise."""
    with running_broker() as broker:
        (broker.workspace / "big").write_bytes(b"all work and no play\n" * (OUTPUT_BYTES // 21))
        before = [await output_and_rest(broker, OUTPUTS // ROUNDS) for _ in range(ROUNDS // 2)]
        after = [await output_and_rest(broker, OUTPUTS // ROUNDS) for _ in range(ROUNDS)]
        lowest_before, lowest_after = (min(levels, key=lambda held: held.rss_bytes) for levels in (before, after))
        assert lowest_after.rss_bytes - lowest_before.rss_bytes < MEMORY_SLACK_BYTES, (before, after)
        check_countable(before[0], await settled(broker, before[0]))


async def output_and_rest(broker: LiveBroker, outputs: int) -> Held:
    """Large answers, then small ones: what several large ones needed at once is given back by and by."""
    await many(broker, outputs, "cat", "big")
    await many(broker, REST, "true")
    return await settled(broker)


@pytest.mark.bounded(90)
async def test_sessions_that_came_and_went_leave_everything_where_it_was() -> None:
    with running_broker() as broker:
        await come_and_go(broker, SESSIONS // 5)
        before = await settled(broker)
        await come_and_go(broker, SESSIONS)
        check_same(before, await settled(broker, before))


async def come_and_go(broker: LiveBroker, count: int) -> None:
    """Sessions one after the other, each with a daemon that is left behind."""
    async with connect(broker) as client:
        for _number in range(count):
            session_id = await new_session(client, working_dir=str(broker.workspace))
            await run(client, session_id, "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &")
            await ok(client, "kill_session", session_id=session_id, force=True)
