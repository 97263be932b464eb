"""How a session's process is born, what it says of its walls, and that nothing of it stays.

`open_world` is what the other test_sandbox files stand on: a real launcher and a real init, as whoever runs
the tests is allowed to have them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from sandbox.commands.run import run_command
from sandbox.commands.values import Ended, ExecPlan, Exited, Times
from sandbox.errors import BirthCut, BirthFailed, SpawnFailed
from sandbox.init.init import Init
from sandbox.init.launcher import Launcher, open_launcher
from sandbox.init.spare import PACKAGE_PARENT, start_interpreter
from sandbox.kernel import processes
from sandbox.machine import capabilities
from sandbox.machine.claims import Claims
from sandbox.machine.programs import resolve_program
from sandbox.plan.limits import Limits
from sandbox.plan.plan import LAYERS, LayerUnavailable, Plan, SandboxSettings, SessionUser, Walls, make_plan
from sandbox.plan.users import choose_user
from tests.support.descriptors import open_descriptors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from sandbox.init.keeper_pool import SlotPool
    from sandbox.plan.spaces import NetworkUse

SETTINGS = SandboxSettings(
    unprivileged_user="",
    cgroup_base="data/cgroup",
    enable_cgroups=False,
    enable_namespaces=True,
    private_tmp=True,
    private_tmp_bytes=1 << 28,
    require=(),
)
CAPABILITIES = capabilities.probe()
PROGRAMS = (
    "/bin/sh",
    "/bin/true",
    "/bin/sleep",
    "/bin/cat",
    "/bin/ls",
    "/usr/bin/env",
    "/usr/bin/setsid",
    "/usr/bin/python3",
)
LIMITS = Limits(memory_max_bytes=1 << 30, pids_max=256, file_size_max_bytes=1 << 30, open_files_max=512)
AS_ROOT = os.geteuid() == 0
ABI = CAPABILITIES.landlock_abi

PLAIN: Mapping[str, Any] = MappingProxyType({"enable_namespaces": False})  # settings of a host that has none
needs_namespaces = pytest.mark.skipif(not CAPABILITIES.namespaces.present, reason=CAPABILITIES.namespaces.detail)
needs_root = pytest.mark.skipif(not AS_ROOT, reason="only root can become somebody else")
needs_landlock = pytest.mark.skipif(ABI < 1, reason="this kernel has no Landlock")
needs_signal_scope = pytest.mark.skipif(ABI < 6, reason=f"Landlock ABI 6 scopes signals, here is {ABI}")


@attrs.frozen(kw_only=True)
class World:
    """A launcher, an init inside its walls, and the directory it may write to."""

    launcher: Launcher
    init: Init
    walls: Walls

    @property
    def home(self) -> Path:
        return Path(self.walls.home)

    @property
    def pool(self) -> SlotPool:
        """Where the slots of usual commands are."""
        return self.init.spawning or self.init.forking

    async def run(
        self,
        *argv: str,
        timeout_s: float = 10,
        grace_s: float = 0.2,
        on_started: Callable[[int], None] | None = None,
        **fields: Any,
    ) -> Ended:
        return await run_command(
            self.init,
            self.exec_plan(*argv, **fields),
            Times(timeout_s=timeout_s, grace_s=grace_s, drain_s=0.3),
            output_bytes=1 << 20,
            on_started=on_started,
        )

    def exec_plan(self, *argv: str, **fields: Any) -> ExecPlan:
        return ExecPlan(**{"program": argv[0], "argv": argv, "env": {}, "cwd": self.walls.home, **fields})


@contextlib.contextmanager
def session_home() -> Iterator[tuple[SessionUser, str]]:
    """A user as the broker would choose it, and a home that this user can reach (pytest's own is 0700)."""
    top = Path(tempfile.mkdtemp(prefix="sandbox-test-"))
    top.chmod(0o755)
    try:
        with Claims() as claims:
            user = choose_user(SETTINGS, top, CAPABILITIES, claims)
            home = top / "home"
            home.mkdir(mode=0o700, exist_ok=True)
            if AS_ROOT:
                os.chown(home, user.uid, user.gid)
            yield attrs.evolve(user, home=str(home)), str(home)
    finally:
        shutil.rmtree(top)


def plan_for(abi: int = ABI, *, network: NetworkUse = "none", **settings: Any) -> Plan:
    capabilities = attrs.evolve(CAPABILITIES, landlock_abi=abi, landlock_detail=f"ABI {abi}")
    return make_plan(capabilities, attrs.evolve(SETTINGS, **settings), network=network)


def walls_for(user: SessionUser, home: str, **fields: Any) -> Walls:
    exec_paths = {path: None for name in PROGRAMS for path in resolve_program(name).exec_paths}
    return Walls(
        **{
            "user": user,
            "home": home,
            "working_dir": home,
            "read_paths": (),
            "write_paths": (),
            "exec_paths": tuple(exec_paths),
            "limits": LIMITS,
            **fields,
        }
    )


@contextlib.asynccontextmanager
async def open_world(*, plan: Plan | None = None, abi: int = ABI, **walls_fields: Any) -> AsyncIterator[World]:
    with session_home() as (user, home):
        walls = walls_for(user, home, **walls_fields)
        async with open_launcher(plan or plan_for(abi)) as launcher, launcher.open_init(walls) as init:
            yield World(launcher=launcher, init=init, walls=walls)


def survivors(token: str) -> list[int]:
    """The processes, of anybody, that carry *token* in their arguments and are no zombies."""
    found = []
    for entry in processes.entries():
        with contextlib.suppress(OSError):
            if token.encode() in Path(f"/proc/{entry.pid}/cmdline").read_bytes() and not entry.zombie:
                found.append(entry.pid)
    return found


async def wait_exit(*pids: int) -> None:
    """Wait until all of *pids* exited, whoever their parent is."""
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)


def everything_below(init: Init) -> list[int]:
    return [init.pid, *(entry.pid for entry in processes.descendants(init.pid))]


def open_fds() -> int:
    return len(open_descriptors())


def stray_fds(world: World) -> int:
    """Count the descriptors that are not the slots': those come and go with the pool's size."""
    slots = [slot for pool in world.init._pools for slot in pool._all()]
    return open_fds() - len(slots) - sum(slot.launch is not None for slot in slots)


async def all_armed(world: World) -> None:
    """Wait until every free slot has its leader ready, past its first steps as a copy of the keeper."""
    for slot in (slot for pool in world.init._pools for slot in pool._free):
        while slot.launch is None:
            await slot.wait_news()
        while slot.leader_pid and os.getsid(slot.leader_pid) != slot.leader_pid:
            await trio.lowlevel.checkpoint()


async def test_an_init_is_born_and_reports_every_layer() -> None:
    async with open_world() as world:
        states = {layer.name: layer.state for layer in world.init.layers}
        assert tuple(states) == LAYERS
        assert states["user"] == states["no_new_privs"] == "enforced"
        assert states["seccomp"] == ("enforced" if CAPABILITIES.seccomp.present else "unavailable")
        assert states["cgroup"] == "unavailable"
        assert states["pid_namespace"] == ("enforced" if CAPABILITIES.namespaces.present else "unavailable")
        assert all(layer.detail for layer in world.init.layers)


@needs_signal_scope
async def test_landlock_and_process_tree_are_enforced_where_the_kernel_can() -> None:
    async with open_world() as world:
        states = {layer.name: layer.state for layer in world.init.layers}
        assert states["landlock"] == states["process_tree"] == "enforced"


@pytest.mark.parametrize(("abi", "landlock"), [(0, "unavailable"), (1, "partial"), (5, "enforced")])
async def test_an_older_kernel_is_reported_as_what_it_gives(abi: int, landlock: str) -> None:
    if abi > ABI:
        pytest.skip(f"Landlock ABI {ABI} is older than {abi}")
    async with open_world(abi=abi) as world:
        states = {layer.name: layer.state for layer in world.init.layers}
        assert (states["landlock"], states["process_tree"]) == (landlock, "partial")
        assert (await world.run("/bin/true")).how == Exited(0)


def test_a_required_layer_that_cannot_be_had_refuses_the_start() -> None:
    settings = attrs.evolve(SETTINGS, require=("landlock",))
    with pytest.raises(LayerUnavailable, match="'landlock' is required") as caught:
        make_plan(attrs.evolve(CAPABILITIES, landlock_abi=0, landlock_detail="none"), settings)
    assert caught.value.layer == "landlock"


async def test_a_required_layer_that_does_not_hold_inside_fails_the_birth() -> None:
    plan = attrs.evolve(plan_for(0), require=("landlock",))
    with session_home() as (user, home):
        async with open_launcher(plan) as launcher:
            with pytest.raises(BirthFailed) as caught:
                async with launcher.open_init(walls_for(user, home)):
                    pytest.fail("born without a required wall")
    assert caught.value.stage == "landlock"


@needs_root
async def test_a_session_as_root_is_never_born() -> None:
    with session_home() as (user, home):
        walls = walls_for(attrs.evolve(user, uid=0, gid=0), home)
        async with open_launcher(plan_for()) as launcher:
            with pytest.raises(BirthFailed, match="never runs as root") as caught:
                async with launcher.open_init(walls):
                    pytest.fail("born as root")
    assert caught.value.stage == "user"


@needs_root
async def test_a_plain_plan_under_root_is_refused_rather_than_run_as_root() -> None:
    with session_home() as (user, home):
        async with open_launcher(attrs.evolve(plan_for(), switch_user=False)) as launcher:
            with pytest.raises(BirthFailed) as caught:
                async with launcher.open_init(walls_for(user, home)):
                    pytest.fail("born as root")
    assert caught.value.stage == "user"


async def test_a_killed_spare_is_replaced() -> None:
    with session_home() as (user, home):
        async with open_launcher(plan_for()) as launcher:
            assert launcher._spare is not None
            await launcher._spare.wait_ahead()
            pid = launcher._spare.pid
            os.kill(pid, signal.SIGKILL)
            await wait_exit(pid)
            async with launcher.open_init(walls_for(user, home)) as init:
                assert init.pid != pid


@pytest.mark.parametrize("settings", [PLAIN, pytest.param({}, marks=needs_namespaces)], ids=["plain", "namespaces"])
@pytest.mark.parametrize("ahead", [True, False], ids=["while it waits", "on its way"])
async def test_a_stopped_spare_is_replaced(settings: dict[str, Any], *, ahead: bool) -> None:
    with session_home() as (user, home):
        async with open_launcher(plan_for(**settings)) as launcher:
            assert launcher._spare is not None
            if ahead:
                await launcher._spare.greet()
            pid = launcher._spare.pid
            os.kill(pid, signal.SIGSTOP)
            async with launcher.open_init(walls_for(user, home)) as init:
                assert init.pid != pid
            await wait_exit(pid)
        assert processes.descendants(os.getpid()) == []


DIES_ON_ITS_WAY = """
import os, signal, sys
sys.path.append({parent!r})
from sandbox.kernel import namespaces
namespaces.unshare({flags})
namespaces.clone_first(lambda pidfd: os.kill(os.getpid(), signal.{end}))
os.read(3, 1)
"""


@needs_namespaces
@pytest.mark.parametrize("end", ["SIGKILL", "SIGSTOP"])
async def test_a_spare_that_ends_before_it_says_what_came_out_of_it_leaves_nothing(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the clone and the word of it nobody has a descriptor of the new process, which is a child of ours."""
    monkeypatch.setattr("sandbox.init.spare.END_S", 0.5)
    flags = plan_for().spaces
    child = start_interpreter(DIES_ON_ITS_WAY.format(parent=PACKAGE_PARENT, flags=flags, end=end), flags)
    with trio.fail_after(10):
        while len(processes.descendants(os.getpid())) < 2:
            await trio.lowlevel.checkpoint()
        assert await child.end()
    assert processes.descendants(os.getpid()) == []


@pytest.mark.parametrize("settings", [PLAIN, pytest.param({}, marks=needs_namespaces)], ids=["plain", "namespaces"])
async def test_a_birth_whose_process_is_killed_says_that_nothing_refused(settings: dict[str, Any]) -> None:
    with session_home() as (user, home):
        async with open_launcher(plan_for(**settings)) as launcher:
            assert launcher._spare is not None
            spare, launcher._spare = launcher._spare, None
            await spare.end()

            others = {process.pid for process in processes.descendants(os.getpid())}  # of earlier tests, about to end

            async def kill_all_that_begin() -> None:
                while True:
                    for process in processes.descendants(os.getpid()):
                        if process.pid not in others:
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(process.pid, signal.SIGKILL)
                    await trio.lowlevel.checkpoint()

            with pytest.RaisesGroup(BirthCut):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(kill_all_that_begin)
                    async with launcher.open_init(walls_for(user, home)):
                        pytest.fail("born of a process that was killed")
            async with launcher.open_init(walls_for(user, home)) as init:
                assert init.pid


async def test_several_births_at_once() -> None:
    pids: set[int] = set()
    with session_home() as (user, home):
        async with open_launcher(plan_for()) as launcher:
            together = trio.Event()

            async def one() -> None:
                async with launcher.open_init(walls_for(user, home)) as init:
                    pids.add(init.pid)
                    if len(pids) == 4:
                        together.set()
                    await together.wait()

            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(one)
    assert len(pids) == 4
    await wait_exit(*pids)


async def test_a_birth_cancelled_at_any_step_leaves_nothing() -> None:
    with session_home() as (user, home):
        async with open_launcher(plan_for()) as launcher:
            async with launcher.open_init(walls_for(user, home)):
                pass
            launcher.warm_up()
            before = open_fds()
            for step in range(0, 200, 8):
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_cancel_after, step, scope)
                        async with launcher.open_init(walls_for(user, home)) as init:
                            assert init.pid
                assert launcher._spare is None or not launcher._spare.exited()
                launcher.warm_up()
                assert open_fds() == before
        children = processes.descendants(os.getpid())
        assert children == []


async def _cancel_after(steps: int, scope: trio.CancelScope) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_the_end_of_an_init_leaves_no_process_and_no_descriptor() -> None:
    before = open_fds()
    async with open_world() as world:
        await world.run("/bin/true")
        await all_armed(world)
        pids = everything_below(world.init)
        assert len(pids) >= 3
    assert open_fds() == before
    for pid in pids:
        assert processes.read_entry(pid) is None


async def test_a_killed_init_is_noticed_and_takes_everything_with_it() -> None:
    async with open_world() as world:
        await world.run("/bin/sh", "-c", "sleep 86400 >/dev/null 2>&1 & echo started")
        pids = everything_below(world.init)
        assert len(await world.init.descendants()) == 1
        os.kill(world.init.pid, signal.SIGKILL)
        await world.init.wait_exited()
        await wait_exit(*pids)
        with pytest.raises(SpawnFailed, match="gone"):
            await world.run("/bin/true")
