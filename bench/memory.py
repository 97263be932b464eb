"""What the broker and a session weigh, and that neither commands nor output make the broker grow."""

from __future__ import annotations

from pathlib import Path

import attrs
import psutil
import trio

from bench.client import open_connection
from bench.load import CLIENTS
from bench.table import MB, Row, at_most_row, missing_row
from tests.support.live import LiveBroker

IDLE_MB = 90
SESSION_MB = 10
FLAT_MB = 5
"""What "flat" means: less than this between a tenth of the calls and all of them."""
SESSIONS = 5
OUTPUT_BYTES = 10_000_000
REST = 300


@attrs.frozen(kw_only=True)
class Held:
    """What a process holds."""

    rss_mb: float
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Held:
        process = psutil.Process(pid)
        return cls(rss_mb=process.memory_info().rss / MB, descriptors=process.num_fds(), threads=process.num_threads())


def pss_bytes(pid: int) -> int:
    """The proportional share of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no Pss for {pid}")


def sessions_mb(broker: LiveBroker) -> float:
    """The proportional share of all sessions' processes; the spare, which has no children, is none."""
    inits = [child for child in psutil.Process(broker.process.pid).children() if child.children()]
    members = [member for init in inits for member in (init, *init.children(recursive=True))]
    return sum(pss_bytes(member.pid) for member in members) / MB


async def idle_row(broker: LiveBroker) -> Row:
    """The broker's own process, when it has answered its first call."""
    async with open_connection(broker.port) as connection:
        await connection.ok("get_system_info")
    return at_most_row("broker process, idle", Held.of(broker.process.pid).rss_mb, IDLE_MB, "MB RSS")


async def session_row(broker: LiveBroker) -> Row:
    """The share of one session: that of several, divided by their number."""
    what = f"one session, mean of {SESSIONS}"
    async with open_connection(broker.port) as connection:
        sessions = [(await connection.ok("create_session"))["session_id"] for _ in range(SESSIONS)]
        for session in sessions:  # one command each, so that every part of a session exists
            await connection.ok("execute_command", session_id=session, argv=["true"])
        try:
            share = sessions_mb(broker) / SESSIONS
        except PermissionError:
            return missing_row(what, "smaps_rollup of a non-dumpable process is root's to read")
        for session in sessions:
            await connection.ok("kill_session", session_id=session, force=True)
    return at_most_row(what, share, SESSION_MB, "MB PSS")


async def growth_rows(broker: LiveBroker, commands: int) -> list[Row]:
    """Growth over *commands* calls, then over their proportion of a gigabyte of output."""
    pid = broker.process.pid
    await _many(broker, commands // 10, ["true"])
    start = Held.of(pid)
    await _many(broker, commands - commands // 10, ["true"])
    after_calls = Held.of(pid)
    big = broker.workspace / "big"
    big.write_bytes(b"all work and no play\n" * (OUTPUT_BYTES // 21))
    outputs = max(60, commands // 100)
    await _output_and_rest(broker, 60, big)  # the first large answers need room, once
    before_output = Held.of(pid)
    await _output_and_rest(broker, outputs, big)
    end = Held.of(pid)
    by_output = end.rss_mb - before_output.rss_mb
    note = f"{end.descriptors - start.descriptors:+} fds, {end.threads - start.threads:+} threads, {end.rss_mb:.0f} MB"
    gigabytes = outputs * OUTPUT_BYTES / 1e9
    return [
        at_most_row(f"growth over {commands:,} commands", after_calls.rss_mb - start.rss_mb, FLAT_MB, "MB RSS"),
        at_most_row(f"growth over {gigabytes:g} GB of output", by_output, 2 * FLAT_MB, "MB RSS", note),
    ]


async def _output_and_rest(broker: LiveBroker, outputs: int, big: Path) -> None:
    """Large answers, then small ones: what several large ones needed at once is given back by and by."""
    await _many(broker, outputs, ["cat", str(big)])
    await _many(broker, REST, ["true"])


async def _many(broker: LiveBroker, commands: int, argv: list[str]) -> None:
    """Run so many commands from several clients at once."""
    left = commands

    async def one_client(session: str) -> None:
        nonlocal left
        async with open_connection(broker.port) as connection:
            while left > 0:
                left -= 1
                await connection.ok("execute_command", session_id=session, argv=argv)

    async with open_connection(broker.port) as first:
        session = (await first.ok("create_session"))["session_id"]
    async with trio.open_nursery() as nursery:
        for _client in range(CLIENTS):
            nursery.start_soon(one_client, session)
    async with open_connection(broker.port) as last:  # the first would have been closed as idle by now
        await last.ok("kill_session", session_id=session, force=True)
