"""Commands that are spawned by a thread of their keeper: what the thread owes, and what the keeper's limits leave."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from sandbox.commands.values import Exited
from sandbox.kernel import processes
from sandbox.plan.limits import KEEPER_BYTES, KEEPER_FILES, Limits
from sandbox.protocol.commands import EXIT_NOT_STARTED, NO_ROOM
from tests.sandbox.init.test_sandbox_births import (
    ABI,
    PLAIN,
    World,
    all_armed,
    needs_namespaces,
    needs_root,
    needs_signal_scope,
    open_world,
    plan_for,
)
from tests.sandbox.test_sandbox_shortage import eventually, running

PYTHON = "/usr/bin/python3"
ROOT = Path(__file__).resolve().parents[4]
NOT_STARTED = EXIT_NOT_STARTED << 8
# A Spawn in a process of its own, as a keeper has it. What the script puts into `said` is the test's to judge.
STAND = f"""
import json, os, resource, sys
os.chdir("/")
sys.path.append({str(ROOT)!r})
from sandbox.kernel import process; from sandbox import wire
from sandbox.inside.keeper.spawned import Spawn
process.prctl(process.SET_NO_NEW_PRIVS, 1)
poked, poke = os.pipe()
ours, theirs = wire.pair()
spawn = Spawn(theirs, {ABI}, lambda: os.write(poke, b"!"))
def launch(program="/bin/sleep", argv=("sleep", "900"), cwd="/"):
    spec = {{"program": program, "argv": argv, "env": {{}}, "cwd": cwd, "exec_paths": None, "internet": True}}
    wire.send(ours, {{**spec, "fds": [], "room": None}})
def answer():
    received = wire.receive(ours)
    return received and [received[0], len(received[1])]
def end():
    ours.close()
    spawn.let_go()
    return os.waitpid(spawn.pid, 0)[1]
"""


def on_the_stand(script: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{STAND}{script}\nprint(json.dumps(said), flush=True)\nos._exit(0)"],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_was_spawned_is_handed_over() -> None:
    said = on_the_stand("""
launch(argv=("sleep", "0"))
said = [answer(), spawn.waits, end(), os.getcwd()]
""")
    assert said == [[{"started": True}, 1], False, 0, "/"]


def test_a_kill_before_there_is_a_process_keeps_it_from_being_one() -> None:
    """The order comes over another socket than the spec, so it may well be first."""
    said = on_the_stand("""
spawn.revoke()
launch()
said = [answer(), spawn.pid, spawn.waits, spawn.status]
""")
    assert said == [None, 0, False, signal.SIGKILL]


def test_a_signal_before_there_is_a_process_is_kept_for_it() -> None:
    said = on_the_stand("""
spawn.signal(15)
launch()
said = [answer(), end()]
""")
    assert said == [[{"started": True}, 1], signal.SIGTERM]


def test_a_spawn_that_nobody_needs_wakes_its_keeper() -> None:
    said = on_the_stand("""
ours.close()
said = [os.read(poked, 1).decode(), spawn.pid, spawn.status]
""")
    assert said == ["!", 0, 0]


@pytest.mark.parametrize(
    ("call", "stage", "number"),
    [
        ("launch(program='/nowhere')", "exec", errno.ENOENT),
        ("launch(program='/etc/passwd')", "exec", errno.EACCES),
        ("launch(argv=('x' * 3_000_000,))", "exec", errno.E2BIG),
        ("launch(argv=('a' + chr(0),))", "exec", None),
        ("launch(cwd='/nowhere')", "chdir", errno.ENOENT),
        ("launch(cwd='/etc/passwd')", "chdir", errno.ENOTDIR),
    ],
)
def test_a_stage_that_fails_is_named_and_the_keeper_woken(call: str, stage: str, number: int | None) -> None:
    said = on_the_stand(f"""
{call}
said = [answer()[0], os.read(poked, 1).decode(), spawn.pid, spawn.status, os.getcwd()]
""")
    news, *rest = said
    assert (news["stage"], news["errno"]) == (stage, number)
    assert rest == ["!", 0, NOT_STARTED, "/"]


def test_limits_that_leave_no_room_have_a_stage_of_their_own() -> None:
    said = on_the_stand("""
if os.getuid() == 0:
    os.setresuid(61_997, 61_997, 61_997)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
launch()
said = [answer()[0], os.read(poked, 1).decode(), spawn.status]
""")
    assert said[0]["stage"] == NO_ROOM
    assert said[0]["errno"] == errno.EAGAIN
    assert said[1:] == ["!", NOT_STARTED]


def test_a_keeper_without_a_thread_says_so() -> None:
    # The stand's own thread has begun by then: it cannot die of this, and leave a stack that the next one gets to use.
    said = on_the_stand("""
resource.setrlimit(resource.RLIMIT_DATA, (1, 1))
a, b = wire.pair()
try:
    Spawn(b, 0, print)
except OSError as error:
    said = error.errno
""")
    assert said == errno.EAGAIN


def test_a_thread_that_dies_before_it_begins_is_none() -> None:
    said = on_the_stand("""
import _thread
a, b = wire.pair()
start = _thread.start_new_thread
_thread.start_new_thread = lambda run, args: start(int, ("what ends the thread at once",))
sys.unraisablehook = lambda unraisable: None
try:
    Spawn(b, 0, print)
except OSError as error:
    said = error.errno
""")
    assert said == errno.EAGAIN


async def test_every_number_is_known_however_short_the_program() -> None:
    async with open_world() as world:
        pids = [(await world.run("/bin/true")).pid for _ in range(100)]
        assert all(pids)
        assert len(set(pids)) > 50


async def test_usual_commands_are_spawned_and_what_needs_more_is_forked() -> None:
    show = "ulimit -Hn; ulimit -Sn"
    async with open_world() as world:
        assert world.init.spawning is not None
        await world.run("/bin/true")
        assert world.init.spawning.size
        assert not world.init.forking.size
        for limits, files in (
            (None, 512),
            (Limits(open_files_max=512), 512),
            (Limits(open_files_max=1024), 1024),
            (Limits(open_files_max=128), 128),
            (None, 512),
        ):
            ended = await world.run("/bin/sh", "-c", show, limits=limits)
            assert ended.stdout.data.split() == [str(files).encode()] * 2
        assert world.init.forking.size


@pytest.mark.parametrize("limits", [{"memory_max_bytes": KEEPER_BYTES - 1}, {"open_files_max": KEEPER_FILES - 1}])
async def test_limits_that_are_too_small_for_a_keeper_have_all_commands_forked(limits: dict[str, int]) -> None:
    async with open_world(limits=Limits(**limits)) as world:
        assert world.init.spawning is None
        assert (await world.run("/bin/true")).how == Exited(0)


async def test_the_smallest_limits_that_hold_a_keeper_do() -> None:
    async with open_world(limits=Limits(memory_max_bytes=KEEPER_BYTES, open_files_max=KEEPER_FILES)) as world:
        assert world.init.spawning is not None
        env = {f"NAME_{number}": "x" * 1000 for number in range(1500)}
        for _ in range(3):
            assert (await world.run("/usr/bin/env", env=env)).stdout.total_bytes > 1_500_000
        assert world.init.forking.size == 0


BOMB = """
import _thread, time
_thread.stack_size(65536)
count = 0
try:
    while count < 3000:
        _thread.start_new_thread(time.sleep, (900,))
        count += 1
except RuntimeError:
    pass
open("up", "w").close()
time.sleep(900)
"""


@needs_root  # or the limit would count what else the user of this machine runs
@pytest.mark.parametrize("settings", [pytest.param(PLAIN, id="plain"), pytest.param({}, marks=needs_namespaces)])
async def test_a_bomb_that_uses_up_the_limits_of_its_session_leaves_the_next_command_a_way(
    settings: dict[str, Any],
) -> None:
    """Its keeper has the same limits, so that a command which can no longer be spawned is forked instead."""
    limits = Limits(memory_max_bytes=1 << 30, pids_max=64)
    async with open_world(plan=plan_for(**settings), limits=limits) as world:
        await world.run("/bin/true")
        async with running(world, PYTHON, "-I", "-c", BOMB):
            await eventually((world.home / "up").exists)
            assert world.init.forking.size == 0
            for _ in range(3):
                assert (await world.run("/bin/true")).how == Exited(0)
            assert world.init.forking.size >= 1
        for _ in range(2):
            assert (await world.run("/bin/true")).how == Exited(0)


@needs_root
async def test_no_directory_stays_in_use_by_a_keeper() -> None:
    async with open_world(plan=plan_for(**PLAIN)) as world:
        await world.run("/bin/true")
        (keeper,) = keepers(world)
        assert os.readlink(f"/proc/{keeper}/cwd") == "/"


@needs_signal_scope
async def test_a_command_finds_no_thread_of_its_keeper_that_it_could_signal() -> None:
    script = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
keeper = os.getppid()
while [int(name) for name in os.listdir(f'/proc/{keeper}/task')] != [keeper]:
    continue
for call in (lambda: libc.tgkill(keeper, keeper, 0), lambda: libc.kill(keeper, 0)):
    assert call() == -1 and ctypes.get_errno() == 1, ctypes.get_errno()
"""
    async with open_world() as world:
        assert (await world.run(PYTHON, "-I", "-c", script)).how == Exited(0)


def test_the_end_of_the_init_ends_a_keeper_that_is_not_ready_for_it() -> None:
    """It is forked with a handler of the init's, which does nothing, and told by a signal."""
    script = f"""
import os, signal, sys
sys.path.append({str(ROOT)!r})
from sandbox.inside.keeper import keeper; from sandbox.kernel import landlock; from sandbox import wire
from sandbox.inside.keeper.wakeup import Wakeup
ours, theirs = wire.pair()
Wakeup(theirs)
init_pid = os.getpid()
pid = os.fork()
if pid == 0:
    signal.set_wakeup_fd(-1)
    landlock.scope_signals = lambda abi: os.kill(os.getpid(), signal.SIGTERM)
    keeper.main(theirs.fileno(), abi=0, tasks_room=9, init_pid=init_pid, grouped=False, limits=None)
os._exit(os.waitpid(pid, 0)[1])
"""
    done = subprocess.run([sys.executable, "-I", "-c", script], check=False, timeout=20)
    assert done.returncode == signal.SIGTERM


def stopped(pid: int) -> bool:
    """Whether all of its threads are."""
    threads = Path("/proc").glob(f"{pid}/task/*/stat")
    return all(each.read_text().rpartition(")")[2].split()[0] == "T" for each in threads)


def keepers(world: World) -> list[int]:
    assert world.init.spawning is not None
    return [slot.keeper_pid for slot in world.init.spawning._free]


@pytest.mark.parametrize("settings", [pytest.param(PLAIN, id="plain"), pytest.param({}, marks=needs_namespaces)])
async def test_a_keeper_that_was_stopped_while_it_waited_costs_no_command(settings: dict[str, Any]) -> None:
    async with open_world(plan=plan_for(**settings)) as world, trio.open_nursery() as nursery:
        await world.run("/bin/true")
        await all_armed(world)
        (slot,) = world.pool._free
        ended = []

        async def run() -> None:
            ended.append(await world.run("/bin/sh", "-c", "echo ran"))

        os.kill(world.init.pid, signal.SIGSTOP)  # which would end the keeper at once, and have another one
        os.kill(slot.keeper_pid, signal.SIGSTOP)
        await eventually(lambda: stopped(slot.keeper_pid))
        nursery.start_soon(run)
        await eventually(lambda: slot in world.pool._busy)
        os.kill(world.init.pid, signal.SIGCONT)
        await eventually(lambda: ended)
        assert (ended[0].how, ended[0].stdout.data) == (Exited(0), b"ran\n")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM], ids=lambda each: each.name)
@pytest.mark.parametrize("settings", [pytest.param(PLAIN, id="plain"), pytest.param({}, marks=needs_namespaces)])
async def test_a_signal_to_its_keeper_ends_a_command(signum: signal.Signals, settings: dict[str, Any]) -> None:
    """What a command could do to its keeper, if it could signal it, is not to live longer for it."""
    async with open_world(plan=plan_for(**settings)) as world, trio.open_nursery() as nursery:
        ended = []

        async def run() -> None:
            ended.append(await world.run("/bin/sleep", "900", on_started=lambda _: up.set(), timeout_s=900))

        up = trio.Event()
        nursery.start_soon(run)
        await up.wait()
        (slot,) = world.pool._busy
        (sleeper,) = await world.init.descendants()
        os.kill(slot.keeper_pid, signum)
        await eventually(lambda: ended and processes.read_entry(sleeper) is None)
        assert (await world.run("/bin/true")).how == Exited(0)
