"""How many processes a session may have: in a user namespace of its own it is held to its own limit, by its own count.

Only a plain user's sessions have one. Where root runs the tests, a plain user runs them once more.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator

import attrs
import pytest
import trio

from sandbox.commands.values import Exited
from sandbox.kernel import rlimits
from sandbox.plan.limits import Limits
from sandbox.plan.plan import TASKS_TOGETHER
from tests.sandbox.init.test_sandbox_births import AS_ROOT, CAPABILITIES, PLAIN, World, open_world, plan_for
from tests.support.live import ROOT, live_folder
from tests.support.live_plain_user import plain_user

pytestmark = [pytest.mark.long, pytest.mark.once]

PYTHON = "/usr/bin/python3"
PIDS_MAX = 12
SLACK = 3
OTHERS = 30
TRIES = 100
RUN_S = 120
LIMITS = Limits(memory_max_bytes=1 << 30, pids_max=PIDS_MAX, file_size_max_bytes=1 << 30, open_files_max=512)
# Forks until the kernel refuses, says how many there are with itself, and holds them until its input ends.
GREEDY = f"""
import os, sys
end, hold = os.pipe()
have = 1
try:
    while have < {TRIES}:
        if os.fork() == 0:
            os.close(hold)
            os.read(end, 1)
            os._exit(0)
        have += 1
except BlockingIOError:
    pass
print(have, flush=True)
open("have", "w").write(str(have))
sys.stdin.read()
"""
THREADS = f"""
import _thread
_thread.stack_size(65536)
lock = _thread.allocate_lock()
lock.acquire()
have = 1
try:
    while have < {TRIES}:
        _thread.start_new_thread(lock.acquire, ())
        have += 1
except RuntimeError:
    pass
print(have, flush=True)
"""
own_count = pytest.mark.skipif(
    not CAPABILITIES.own_task_count, reason="root's sessions have no user namespace, or the kernel counts per user"
)


@pytest.fixture
def others() -> Iterator[None]:
    """Processes of the same user that are none of the session's."""
    with contextlib.ExitStack() as ends:
        for _ in range(OTHERS):
            process = ends.enter_context(subprocess.Popen(["/bin/sleep", "900"]))
            ends.callback(process.kill)
        yield


async def have(world: World, script: str = GREEDY, limits: Limits | None = None) -> int:
    """Return how many tasks a command could have."""
    ended = await world.run(PYTHON, "-I", "-S", "-c", script, stdin=b"", limits=limits)
    assert ended.how == Exited(0), ended
    return int(ended.stdout.data)


@contextlib.asynccontextmanager
async def holding(world: World) -> AsyncIterator[int]:
    """A command that takes all it can get until the end of this block; gives how many that is."""
    said = world.home / "have"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: world.run(PYTHON, "-I", "-S", "-c", GREEDY, timeout_s=RUN_S, stdin_stays=True))
        while not (said.exists() and said.read_text()):
            await trio.sleep(0.01)
        yield int(said.read_text())
        nursery.cancel_scope.cancel()


@own_count
@pytest.mark.usefixtures("launched", "others")
@pytest.mark.parametrize("script", [GREEDY, THREADS], ids=["processes", "threads"])
async def test_a_command_alone_has_what_it_may_have_whoever_else_its_user_is(script: str) -> None:
    async with open_world(limits=LIMITS) as world:
        for _ in range(3):
            assert PIDS_MAX <= await have(world, script) <= PIDS_MAX + SLACK


@own_count
@pytest.mark.usefixtures("others")
async def test_where_the_kernel_counts_per_user_there_has_to_be_room_for_all_of_them() -> None:
    """The control: no namespaces."""
    async with open_world(plan=plan_for(**PLAIN), limits=LIMITS) as world:
        assert await have(world) == TRIES


@own_count
async def test_a_rule_may_have_less_than_its_session_or_more() -> None:
    async with open_world(limits=LIMITS) as world:
        for few in (5, 2 * PIDS_MAX, 5):
            assert few <= await have(world, limits=Limits(pids_max=few)) <= few + SLACK
        assert PIDS_MAX <= await have(world) <= PIDS_MAX + SLACK


@own_count
@pytest.mark.usefixtures("launched")
async def test_commands_of_one_session_share_and_one_that_finds_nothing_left_still_begins() -> None:
    async with open_world(limits=LIMITS) as world, holding(world) as held:
        assert await have(world) + held <= PIDS_MAX + 2 * SLACK
        assert await have(world, limits=Limits(pids_max=PIDS_MAX // 2)) + held <= PIDS_MAX + 2 * SLACK


@own_count
async def test_a_small_limit_leaves_a_command_its_own_beside_what_runs_already() -> None:
    async with open_world(limits=attrs.evolve(LIMITS, pids_max=4 * PIDS_MAX)) as world:
        small = Limits(pids_max=PIDS_MAX)
        async with trio.open_nursery() as nursery:
            for _ in range(PIDS_MAX + SLACK):
                nursery.start_soon(lambda: world.run("/bin/sleep", "900", timeout_s=RUN_S))
            while len(await world.init.descendants()) < PIDS_MAX + SLACK:
                await trio.sleep(0.01)
            assert PIDS_MAX - SLACK <= await have(world, limits=small) <= PIDS_MAX + SLACK
            nursery.cancel_scope.cancel()


@own_count
async def test_sessions_of_one_user_do_not_share() -> None:
    async with open_world(limits=LIMITS) as world, world.launcher.open_init(world.walls) as init, holding(world):
        other = attrs.evolve(world, init=init)
        assert PIDS_MAX <= await have(other) <= PIDS_MAX + SLACK


@own_count
async def test_more_commands_than_there_may_be_processes_all_begin() -> None:
    ended = []
    async with open_world(limits=attrs.evolve(LIMITS, pids_max=2)) as world:

        async def run() -> None:
            ended.append((await world.run("/bin/sleep", "0.2")).how)

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(run)
    assert ended == [Exited(0)] * 20


@own_count
async def test_the_layer_says_so_and_only_where_it_is_true() -> None:
    for settings, counted in (({}, True), (PLAIN, False)):
        async with open_world(plan=plan_for(**settings)) as world:
            (rlimits_layer,) = (layer for layer in world.init.layers if layer.name == "rlimits")
            assert (TASKS_TOGETHER in rlimits_layer.detail) == counted
            assert ("processes per user" in rlimits_layer.detail) != counted


def test_root_is_not_told_that_its_sessions_have_a_count_of_their_own() -> None:
    assert not (AS_ROOT and (CAPABILITIES.own_task_count or plan_for().own_task_count))


def test_the_room_beside_a_command_is_ours_and_what_runs_but_never_more_than_the_session_has() -> None:
    assert rlimits.room_beside(10, 0) == 10
    assert rlimits.room_beside(1 << 20, None) == 1 << 20  # more than runs on this machine
    assert rlimits.room_beside(1, 0) == 1
    assert rlimits.room_beside(1, 1) == 2  # more than two run
    assert rlimits.room_beside(1, None) > 2


@pytest.mark.skipif(not AS_ROOT, reason="the tests above ran as a plain user")
@pytest.mark.bounded(RUN_S)
def test_all_of_this_holds_for_a_plain_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    with live_folder() as base:
        plain = plain_user(base)
        done = subprocess.run(
            [*plain.python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", __file__],
            cwd=ROOT,
            env={**plain.environment, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if "sessions have no user namespace" in done.stdout:
            pytest.skip("a plain user has no user namespace here, or the kernel counts per user")
