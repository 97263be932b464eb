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

from sandbox.machine.facts import FactSource

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


def spent(pid: int) -> tuple[float, float]:
    """Return the moment, and the seconds of processor that the process had until then; both from the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return time.monotonic(), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_usage_is_measured_between_questions_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    source = FactSource()
    with python(SPINNER) as spinner:
        before = spent(spinner.pid)
        await source.processes(pids=[spinner.pid])
        begun = spent(spinner.pid)
        assert spinner.stdout
        assert await trio.to_thread.run_sync(spinner.stdout.readline) == b"worked\n"
        monkeypatch.setattr(time, "sleep", None)  # no sampling interval, only work
        ended = spent(spinner.pid)
        (facts,) = await source.processes(pids=[spinner.pid])
        after = spent(spinner.pid)
        system = await source.system()
        # Between the two questions lies at least the inner span and at most the outer; a tick may be on either side.
        least = 100 * (ended[1] - begun[1] - 0.02) / (after[0] - before[0])
        most = 100 * (after[1] - before[1] + 0.02) / (ended[0] - begun[0])
        assert least <= facts.cpu_percent <= most
        assert facts.cpu_percent > 0
        assert system.cpu.usage_percent > 0
        again = await source.processes(pids=[spinner.pid])
        assert again[0].cpu_percent == facts.cpu_percent or spent(spinner.pid)[0] - ended[0] >= 0.1  # too soon


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
    gone: list[int] = []

    async def come_and_go() -> None:
        while True:
            gone.append((await trio.run_process(["/bin/true"])).returncode)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_and_go)
        async with trio.open_nursery() as listers:
            for _ in range(2):
                listers.start_soon(_list_while_some_go, source, gone)
        nursery.cancel_scope.cancel()


async def _list_while_some_go(source: FactSource, gone: list[int]) -> None:
    """List until ten times a process has ended meanwhile: however slow the machine is, that happens."""
    disturbed = 0
    while disturbed < 10:
        before = len(gone)
        assert os.getpid() in {facts.pid for facts in await source.processes_of(os.getuid())}
        disturbed += len(gone) > before
