"""A real limit on memory around the broker and all its sessions: what a session runs goes, everything else answers."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import psutil
import pytest

from sandbox.cgroup.group import Group
from sandbox.cgroup.place import find_base
from tests.sandbox.cgroup.test_walls_cgroup_guest import WHY_NOT
from tests.support.live import COMMANDS, broker_in, call, connect, live_folder, new_session, ok, run, write_config

MIB = 1 << 20
LIMIT_BYTES = 320 * MIB
"""For the broker (about 100 MiB) and two sessions, and a part of what one of them takes."""
TAKERS, TAKEN_BYTES = 12, 50 * MIB  # each smaller than the broker, which is what the kernel would take first
TAKE_IT_ALL = f"""
import os, time
for _ in range({TAKERS}):
    if not os.fork():
        taken = b"x" * {TAKEN_BYTES}
        time.sleep(900)
pid, status = os.wait()
print("ended by", os.waitstatus_to_exitcode(status), flush=True)
time.sleep(900)
"""
POLICY = {
    "allowed_commands": {**COMMANDS, "python3": {"executable": "/usr/bin/python3"}},
    "blocked_paths": [],  # none to look for in the system's directories, which takes an emulated machine minutes
}
pytestmark = [
    pytest.mark.bounded(120),
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),  # the client's, not ours
]


@attrs.frozen(kw_only=True)
class Limited:
    """A control group with LIMIT_BYTES of memory. `kills`: how many processes the kernel ended for want of it."""

    procs: Path
    kills: Callable[[], int]

    @property
    def python(self) -> tuple[str, ...]:
        """An interpreter that is in it from its first moment on."""
        return ("/bin/sh", "-c", 'echo $$ > "$0"; exec "$@"', str(self.procs), sys.executable)


def kills_in(file: Path) -> int:
    """The counter `oom_kill` of a file of such counters."""
    counters = dict(line.split() for line in file.read_text().splitlines())
    return int(counters["oom_kill"])


@contextlib.contextmanager
def unified() -> Iterator[Limited]:
    """A group of cgroup v2 below our own, which everything in that one has left meanwhile."""
    base = find_base("")
    home = base.create("tests")
    for pid in base.pids():
        home.join(pid)
    base.enable(frozenset({"memory"}))
    limited = base.create("limited")
    try:
        Path(limited.path, "memory.max").write_text(str(LIMIT_BYTES))
        Path(limited.path, "memory.swap.max").write_text("0")
        folder = Path(limited.path)
        yield Limited(procs=folder / "cgroup.procs", kills=lambda: kills_in(folder / "memory.events"))
    finally:
        limited.remove()
        Path(base.path, "cgroup.subtree_control").write_text("-memory")
        for pid in home.pids():
            Group(base.path).join(pid)
        home.remove()


V1 = Path("/sys/fs/cgroup/memory")


@contextlib.contextmanager
def of_version_1() -> Iterator[Limited]:
    """A group of the memory controller of cgroup v1, where a machine has that."""
    own = next(
        line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line
    )
    folder = V1 / own.strip("/") / f"remote-broker-test-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
        yield Limited(procs=folder / "cgroup.procs", kills=lambda: kills_in(folder / "memory.oom_control"))
    finally:
        with contextlib.suppress(OSError):  # after a failure processes of the broker may still be on their way out
            folder.rmdir()


@pytest.mark.guest
@pytest.mark.skipif(bool(WHY_NOT), reason=f"no delegated cgroup here: {WHY_NOT}")
@pytest.mark.bounded(800)  # emulated, a second of the machine may be ten
@pytest.mark.parametrize("time", [1, 2])
async def test_the_broker_outlives_what_takes_all_memory_in_a_guest(time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.live.START_BOUND_S", 600)
    with unified() as limited:
        await require_survival(limited)


def why_not_here() -> str:
    """Why no memory limit can be had on this machine itself."""
    if os.geteuid() != 0 or not os.access(V1, os.W_OK):
        return "no memory controller of cgroup v1 that this user may use; `nox -s guest` tries it with v2"
    return "" if psutil.swap_memory().total == 0 else "there is swap, which version 1 cannot always be told to leave"


@pytest.mark.long
@pytest.mark.once
@pytest.mark.skipif(bool(why_not_here()), reason=why_not_here())
@pytest.mark.parametrize("time", [1, 2])
async def test_the_broker_outlives_what_takes_all_memory(time: int) -> None:
    with of_version_1() as limited:
        await require_survival(limited)


async def require_survival(limited: Limited) -> None:
    with live_folder() as base:
        write_config(base, {}, POLICY)
        with broker_in(base, python=limited.python) as broker:
            async with connect(broker) as client:
                greedy, other = await new_session(client), await new_session(client)
                note = f"{broker.workspace}/note"
                await ok(client, "write_file", session_id=other, path=note, content="kept")
                begun = await ok(
                    client, "execute_command", session_id=greedy, argv=["python3", "-c", TAKE_IT_ALL], background=True
                )
                said = await call(
                    client, "read_output", session_id=greedy, command_id=begun["command_id"], wait_seconds=60
                )
                assert limited.kills() > 0, "the control: it was too much"
                assert "ended by -9" in said.data.get("data", "") or said.is_error, said.data
                assert broker.process.poll() is None, "the kernel ended the broker"
                # What is left of it takes up all there is until the next one who needs some.
                assert (await run(client, other, "echo", "here"))["stdout"] == "here\n"
                answer = await ok(client, "read_file", session_id=other, path=note)
                assert answer["content"] == "kept"
                await ok(client, "kill_session", session_id=greedy, force=True)
                again = await new_session(client)
                assert (await run(client, again, "echo", "again"))["stdout"] == "again\n"
            assert broker.stop() == 0
