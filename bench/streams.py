"""`python -m bench.streams`: how soon a client has the first byte of streamed output, and how fast output flows.

Beside a plain pipe read by this process in the same run; compare ratios, not runs. MiB are 2^20 bytes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from bench.client import Connection, open_connection
from bench.table import Row, render, yardstick_row
from tests.support.live import LiveBroker, running_broker

MIB = 1024 * 1024
SPILL_BYTES = 512 * MIB
WAIT_S = 30
FIRST_BYTE = "first byte: from the program's write to the answer of read_output"
PIPE_BYTE = "first byte through a plain pipe"
CALL = "list_commands (one call, no waiting)"


async def first_byte_rows(broker: LiveBroker, rounds: int) -> list[Row]:
    """A client waits in read_output; a program that reads from a FIFO says a line as soon as we do."""
    ours: list[float] = []
    calls: list[float] = []
    async with open_connection(broker.port) as connection:
        session = (await connection.ok("create_session", working_dir=str(broker.workspace)))["session_id"]
        with fifo(broker) as path:
            begun = await connection.ok(
                "execute_command", session_id=session, argv=["cat", path], background=True, timeout_seconds=60
            )
            named = {"session_id": session, "command_id": begun["command_id"]}
            writer = await trio.to_thread.run_sync(os.open, path, os.O_WRONLY)
            try:
                for index in range(rounds):
                    ours.append(await _one_byte(connection, named, writer, index))
                    start = time.perf_counter()
                    await connection.ok("list_commands", session_id=session)
                    calls.append(time.perf_counter() - start)
            finally:
                os.close(writer)
        await connection.ok("kill_session", session_id=session, force=True)
    pipe = [_pipe_byte() for _ in range(rounds)]
    return [yardstick_row(PIPE_BYTE, pipe), yardstick_row(CALL, calls), yardstick_row(FIRST_BYTE, ours)]


@contextmanager
def fifo(broker: LiveBroker) -> Iterator[str]:
    """A FIFO that the session user may read."""
    path = str(broker.workspace / "fifo")
    os.mkfifo(path)
    (broker.workspace / "fifo").chmod(0o644)
    try:
        yield path
    finally:
        os.unlink(path)


async def _one_byte(connection: Connection, named: dict[str, str], writer: int, index: int) -> float:
    """Seconds from our write to the answer; the write waits until the call must have arrived."""
    begun: list[float] = []

    async def speak() -> None:
        await trio.sleep(0.02)  # longer than a call takes: the server waits by now, which nothing else could tell us
        begun.append(time.perf_counter())
        os.write(writer, b"x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        page = await connection.ok("read_output", cursor=index, wait_seconds=WAIT_S, **named)
        ended = time.perf_counter()
    if page["next_cursor"] != index + 1:
        raise RuntimeError(f"expected one byte at {index}, got {page}")
    return ended - begun[0]


def _pipe_byte() -> float:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as cat:
        if cat.stdin is None or cat.stdout is None:
            raise RuntimeError("no pipes")
        cat.stdin.write(b"w")
        cat.stdout.read(1)
        start = time.perf_counter()
        cat.stdin.write(b"x")
        cat.stdout.read(1)
        taken = time.perf_counter() - start
        cat.stdin.close()
    return taken


async def throughput_rows(broker: LiveBroker, mebibytes: int) -> list[Row]:
    """One command says so much: all of it kept, most of it beyond the quota, and the same through a plain pipe."""
    kept = min(mebibytes, SPILL_BYTES // MIB - 1)
    plain = _plain_pipe(mebibytes)
    async with open_connection(broker.port) as connection:
        rates = {
            f"output of one command, {kept} MiB, all kept": await _rate(connection, broker, kept),
            f"output of one command, {2 * SPILL_BYTES // MIB} MiB, half dropped": await _rate(
                connection, broker, 2 * SPILL_BYTES // MIB
            ),
        }
    return [
        Row(what=f"plain pipe, {mebibytes} MiB", bound="", measured=f"{plain:.0f} MiB/s", share=None),
        *(
            Row(what=what, bound="", measured=f"{rate:.0f} MiB/s, {rate / plain:.2f} of the pipe", share=None)
            for what, rate in rates.items()
        ),
    ]


async def _rate(connection: Connection, broker: LiveBroker, mebibytes: int) -> float:
    session = (await connection.ok("create_session", working_dir=str(broker.workspace)))["session_id"]
    start = time.perf_counter()
    done = await connection.ok(
        "execute_command",
        session_id=session,
        argv=["head", "-c", str(mebibytes * MIB), "/dev/zero"],
        timeout_seconds=60,
    )
    taken = time.perf_counter() - start
    if done["next_cursor"] + done["dropped_bytes"] != mebibytes * MIB:
        raise RuntimeError(f"the counts do not add up: {done}")
    await connection.ok("kill_session", session_id=session, force=True)
    return mebibytes / taken


def _plain_pipe(mebibytes: int) -> float:
    start = time.perf_counter()
    with subprocess.Popen(["/usr/bin/head", "-c", str(mebibytes * MIB), "/dev/zero"], stdout=subprocess.PIPE) as head:
        if head.stdout is None:
            raise RuntimeError("no pipe")
        fd, size = head.stdout.fileno(), 0
        while piece := os.read(fd, 65536):
            size += len(piece)
    return size / MIB / (time.perf_counter() - start)


async def _measure(rounds: int, mebibytes: int) -> list[Row]:
    with running_broker({"output": {"spill_bytes": SPILL_BYTES}, "logging": {"level": "WARNING"}}) as broker:
        return [*await first_byte_rows(broker, rounds), *await throughput_rows(broker, mebibytes)]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    quick = parser.parse_args().quick
    print(render(trio.run(_measure, 20 if quick else 200, 128 if quick else 400)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
