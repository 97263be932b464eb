"""Facts of the machine and of processes, with /proc and real processes as the oracle."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from sandbox.facts import FactSource, ProcessFacts

SPINNER = """
import time
print("ready", flush=True)
while time.process_time() < 1: pass
print("worked", flush=True)
while True: pass
"""
SLEEPER = "import sys; print('ready', flush=True); sys.stdin.read()"


@contextmanager
def python(code: str, **options: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-I", "-S", "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, **options) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


async def test_the_machine_is_described_as_the_kernel_does() -> None:
    source = FactSource()
    facts = await source.system()
    proc = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert facts.memory.total_bytes == int(proc["MemTotal"].split()[0]) * 1024
    assert 0 < facts.memory.available_bytes <= facts.memory.total_bytes
    assert facts.hostname == socket.gethostname()
    assert facts.platform.startswith("Linux")
    assert facts.cpu.count == os.cpu_count()
    assert 0 <= facts.cpu.usage_percent <= 100
    assert abs(facts.uptime_s - float(Path("/proc/uptime").read_text().split()[0])) < 5
    root = next(disk for disk in facts.disks if disk.mount_point == "/")
    status = os.statvfs("/")
    assert root.total_bytes == status.f_blocks * status.f_frsize
    assert 0 <= root.used_percent <= 100
    assert len({disk.mount_point for disk in facts.disks}) == len(facts.disks)


async def test_usage_is_measured_between_questions_without_waiting() -> None:
    source = FactSource()
    with python(SPINNER) as spinner:
        await source.processes(pids=[spinner.pid])
        assert spinner.stdout
        assert await trio.to_thread.run_sync(spinner.stdout.readline) == b"worked\n"
        started = time.perf_counter()
        (facts,) = await source.processes(pids=[spinner.pid])
        system = await source.system()
        assert time.perf_counter() - started < 1  # no sampling interval, only work
        assert 20 < facts.cpu_percent <= 110  # the machine may be shared
        assert system.cpu.usage_percent > 0
        again = await source.processes(pids=[spinner.pid])
        assert again[0].cpu_percent == facts.cpu_percent or again[0].cpu_percent > 20  # too soon to say anew


async def test_processes_are_described_and_the_vanished_left_out() -> None:
    source = FactSource()
    with python(SLEEPER) as sleeper, python(SLEEPER) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        (facts,) = await source.processes(pids=[sleeper.pid, other.pid, 2**22 + 1])
        assert (facts.pid, facts.parent_pid, facts.uid) == (sleeper.pid, os.getpid(), os.getuid())
        assert facts.cmdline[1:4] == ("-I", "-S", "-c")
        assert facts.name == Path(f"/proc/{sleeper.pid}/comm").read_text().strip()
        assert facts.status == "sleeping"
        assert facts.memory_rss_bytes > 1_000_000
        assert abs(facts.started_at_s - time.time()) < 60


async def test_a_zombie_is_a_process_without_a_command_line() -> None:
    with python(SLEEPER) as process:
        pidfd = os.pidfd_open(process.pid)
        process.send_signal(signal.SIGKILL)
        await trio.lowlevel.wait_readable(pidfd)
        os.close(pidfd)
        (facts,) = await FactSource().processes(pids=[process.pid])
        assert (facts.status, facts.cmdline) == ("zombie", ())


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
async def test_processes_of_a_user_are_all_of_his_and_no_other() -> None:
    source = FactSource()
    uid = 61191
    with python("import os; os.setuid(61191)\n" + SLEEPER) as his, python(SLEEPER) as ours:
        found = await source.processes_of(uid)
        assert [facts.pid for facts in found] == [his.pid]
        assert ours.pid in {facts.pid for facts in await source.processes_of(os.getuid())}


async def test_processes_that_come_and_go_disturb_nobody() -> None:
    source = FactSource()

    async def come_and_go(scope: trio.CancelScope) -> None:
        for _ in range(60):
            await trio.run_process(["/bin/true"])
        scope.cancel()

    listed: list[tuple[ProcessFacts, ...]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_and_go, nursery.cancel_scope)
        for _ in range(2):
            nursery.start_soon(_list_for_ever, source, listed)
    assert listed
    assert all(os.getpid() in {facts.pid for facts in listing} for listing in listed)


async def _list_for_ever(source: FactSource, listed: list[tuple[ProcessFacts, ...]]) -> None:
    while True:
        listed.append(await source.processes_of(os.getuid()))
