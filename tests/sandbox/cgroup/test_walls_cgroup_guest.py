"""Control groups for real, in a guest with a unified tree: as root, and as a user with a delegated subtree."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from sandbox.cgroup.group import CgroupFault, Group
from sandbox.cgroup.place import NoCgroup, find_base
from sandbox.cgroup.session import OWN_MEMORY_BYTES, OWN_PIDS
from sandbox.cgroup.tree import PREFIX, Tree, open_tree, sweep
from sandbox.init.spare import PACKAGE_PARENT
from sandbox.kernel import namespaces
from sandbox.plan.limits import GroupLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

MEMORY_BYTES = 48 << 20
LIMITS = GroupLimits(memory_max_bytes=256 << 20, swap_max_bytes=0, pids_max=64)
READY = "import sys; print('ready', flush=True); sys.stdin.read(1); "
DAEMON = (
    "import os, time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); "
    "print('up', flush=True); time.sleep(900)"
)
LOOK_AT_GROUPS = """
import json, os
sys.path.append({root!r})
from sandbox.inside.init.trial import reap_all
from sandbox.kernel import root, namespaces
if os.fork():
    os._exit(reap_all())
namespaces.unshare({spaces})
namespaces.clone_first(lambda _pidfd: None)
root.build(root.RootPlan(binds=[("/sys", 7)], cgroup=True))
print("built", flush=True)
sys.stdin.read(1)
def read(path):
    return os.read(os.open(path, os.O_RDONLY), 4096).decode().strip()
try:
    wrote = os.open("/sys/fs/cgroup/memory.max", os.O_WRONLY)
except OSError as error:
    wrote = error.errno
groups = "/sys/fs/cgroup"
print(json.dumps([read("/proc/self/cgroup"), os.listdir(groups), read(groups + "/memory.max"), wrote]), flush=True)
"""
ROOT = Path(PACKAGE_PARENT)
BOMB = """
import os
for count in range(40):
    try:
        child = os.fork()
    except OSError:
        sys.exit(3)
    if not child:
        sys.stdin.read(1)
        os._exit(0)
"""


def why_not() -> str:
    try:
        find_base("")
    except CgroupFault as fault:
        return str(fault)
    return ""


WHY_NOT = why_not()
pytestmark = [pytest.mark.guest, pytest.mark.skipif(bool(WHY_NOT), reason=f"no delegated cgroup here: {WHY_NOT}")]


@contextlib.asynccontextmanager
async def a_tree() -> AsyncIterator[Tree]:
    async with open_tree(find_base("")) as tree:
        yield tree


@contextlib.contextmanager
def python(code: str, pass_fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has said that it is ready, and goes on when it gets a byte."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", READY + code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        pass_fds=pass_fds,
    )
    assert child.stdin
    assert child.stdout
    with child.stdin, child.stdout:
        assert child.stdout.readline() == b"ready\n"
        try:
            yield child
        finally:
            child.kill()
            child.wait()


def go(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin
    child.stdin.write(b"g")


async def code_of(child: subprocess.Popen[bytes]) -> int:
    return await trio.to_thread.run_sync(child.wait)


async def line_of(child: subprocess.Popen[bytes]) -> str:
    assert child.stdout
    return (await trio.to_thread.run_sync(child.stdout.readline)).decode().strip()


def exists(path: str) -> bool:
    return os.path.exists(path)


def allocate(size_bytes: int) -> str:
    return f"data = b'x' * {size_bytes}; print(len(data))"


async def test_a_tree_is_made_and_leaves_nothing() -> None:
    base = find_base("")
    own = Path("/proc/self/cgroup").read_text()
    before = {child.path for child in base.children()}, base.enabled()
    async with open_tree(base) as tree:
        assert {"memory", "pids"} <= tree.controllers
        assert Path(tree.path).is_relative_to(base.path)
    assert ({child.path for child in base.children()}, base.enabled()) == before
    assert Path("/proc/self/cgroup").read_text() == own


async def test_limits_hold_what_was_written() -> None:
    async with a_tree() as tree, tree.open_session(LIMITS) as session:
        for name, value in LIMITS.with_room(OWN_MEMORY_BYTES, OWN_PIDS).files():
            assert session.group.read(name).strip() == value


async def test_a_plain_kill_is_no_oom() -> None:
    async with a_tree() as tree, tree.open_session(LIMITS) as session:
        with python("") as child:
            await session.join(child.pid)
            session.group.kill()
            assert await code_of(child) == -9
        assert session.group.usage().oom_kills == 0


async def test_who_gets_the_way_in_enters_by_itself_and_siblings_die_together_when_memory_runs_out() -> None:
    limits = GroupLimits(memory_max_bytes=MEMORY_BYTES, swap_max_bytes=0)
    enter = "import os; os.write({entry}, b'0'); os.close({entry}); print('in', flush=True); sys.stdin.read(1); "
    async with a_tree() as tree, tree.open_session(LIMITS) as session:
        await session.settle()
        leaf = session.make_leaf(limits)
        code = enter.format(entry=leaf.entry)
        with (
            python(code, pass_fds=(leaf.entry,)) as sibling,
            python(code + allocate(MEMORY_BYTES * 2), pass_fds=(leaf.entry,)) as greedy,
        ):
            leaf.close_entry()
            for child in (sibling, greedy):
                go(child)
                assert await line_of(child) == "in"
            assert sorted(leaf.group.pids()) == sorted([sibling.pid, greedy.pid])
            go(greedy)
            assert (await code_of(greedy), await code_of(sibling)) == (-9, -9)
        used = leaf.usage()
        assert used is not None
        assert (used.oom_killed, used.killed_by) == (True, f"memory limit {MEMORY_BYTES >> 20} MiB reached")
        assert used.cpu_user_ms + used.cpu_system_ms > 0


async def test_no_leaf_is_made_in_a_session_that_ends() -> None:
    async with a_tree() as tree:
        async with tree.open_session(LIMITS) as session:
            await session.settle()
        with pytest.raises(CgroupFault, match="the session is ending"):
            session.make_leaf(LIMITS)


async def test_processes_are_counted() -> None:
    async with a_tree() as tree, tree.open_session(LIMITS) as session:
        await session.settle()
        leaf = session.make_leaf(GroupLimits(pids_max=16))
        leaf.close_entry()
        with python(BOMB) as child:
            leaf.group.join(child.pid)
            go(child)
            assert await code_of(child) == 3
        assert leaf.group.counted("pids.events", "max") >= 1


async def test_processor_time_is_throttled() -> None:
    async with a_tree() as tree:
        if "cpu" not in tree.controllers:
            pytest.skip("the cpu controller is not delegated here")
        async with tree.open_session(GroupLimits(cpu_max_cores=0.2)) as session:
            with python("\nwhile sum(__import__('os').times()[:2]) < 0.3: pass") as child:
                await session.join(child.pid)
                go(child)
                assert await code_of(child) == 0
            assert session.group.counted("cpu.stat", "throttled_usec") > 0


async def test_kill_ends_daemons_that_left_their_session() -> None:
    async with a_tree() as tree, tree.open_session(LIMITS) as session:
        with python(DAEMON) as child:
            await session.join(child.pid)
            go(child)
            assert child.stdout
            assert await trio.to_thread.run_sync(child.stdout.readline) == b"up\n"
            assert await code_of(child) == 0
            assert session.group.counted("cgroup.events", "populated")
            session.group.kill()
            await session.group.wait_empty()
        assert not session.group.counted("cgroup.events", "populated")


async def test_without_a_kill_file_everything_below_dies_too_also_who_forks_without_end() -> None:
    """As before Linux 5.14, and as deep as a broker's tree is: broker, session, command."""
    forks = "\nwhile True:\n    if __import__('os').fork(): __import__('os')._exit(0)"
    base = find_base("")
    broker = base.create(PREFIX + "old")
    command = broker.create("session-1").create("command-1")
    with python("sys.stdin.read(1)") as outside, python("sys.stdin.read(1)") as sleeper, python(forks) as restless:
        for child in (sleeper, restless):
            command.join(child.pid)
        go(restless)
        assert await code_of(restless) == 0
        broker._kill_frozen()
        assert await code_of(sleeper) == -9
        await broker.wait_empty()
        assert outside.poll() is None
    assert "frozen 0\n" in Path(broker.path, "cgroup.events").read_text()
    broker.remove()


async def test_kill_reaches_a_frozen_group() -> None:
    async with a_tree() as tree, tree.open_session(LIMITS) as session:
        with python("sys.stdin.read(1)") as child:
            await session.join(child.pid)
            session.group.freeze()
            with trio.fail_after(30):
                while "frozen 1" not in session.group.read("cgroup.events"):
                    await trio.lowlevel.checkpoint()
            session.group.kill()
            assert await code_of(child) == -9
            await session.group.wait_empty()


async def test_the_end_of_a_session_ends_what_lives_in_it() -> None:
    async with a_tree() as tree:
        with python("sys.stdin.read(1)") as child:
            async with tree.open_session(LIMITS) as session:
                await session.join(child.pid)
                path = session.group.path
            assert not exists(path)
            assert await code_of(child) == -9


async def test_a_cancelled_session_leaves_no_group() -> None:
    async with a_tree() as tree:
        with python("sys.stdin.read(1)") as child, trio.CancelScope() as scope:
            async with tree.open_session(LIMITS) as session:
                await session.join(child.pid)
                path = session.group.path
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert not exists(path)


async def test_a_gone_process_cannot_join() -> None:
    async with a_tree() as tree, tree.open_session(LIMITS) as session:
        with python("") as child:
            go(child)
            assert await code_of(child) == 0
        with pytest.raises(ProcessLookupError):
            await session.join(child.pid)


async def test_a_session_sees_its_own_groups_and_their_limits_only() -> None:
    """Joined before its namespace, settled after: programs inside find the limits that hold for them."""
    spaces = namespaces.MOUNT | namespaces.PID | namespaces.CGROUP | (namespaces.USER if os.geteuid() else 0)
    async with a_tree() as tree, tree.open_session(LIMITS) as session:
        with python(LOOK_AT_GROUPS.format(root=str(ROOT), spaces=spaces)) as child:
            await session.join(child.pid)
            go(child)
            assert await line_of(child) == "built"
            await session.settle()
            go(child)
            own, names, limit, wrote = json.loads(await line_of(child))
            assert await code_of(child) == 0
    assert own == "0::/init"
    assert "init" in names
    assert "cgroup.controllers" in names
    assert int(limit) == LIMITS.with_room(OWN_MEMORY_BYTES, 0).memory_max_bytes
    assert wrote == errno.EROFS


async def test_a_dead_brokers_groups_are_swept_and_a_live_ones_are_not() -> None:
    base = find_base("")
    async with open_tree(base) as live:
        orphaned = base.create(PREFIX + "dead")
        inner = orphaned.create("session-1")
        foreign = base.create("somebody-elses")
        with python("sys.stdin.read(1)") as child:
            inner.join(child.pid)
            assert await sweep(base) == [orphaned.path]
            assert await code_of(child) == -9
        assert not exists(orphaned.path)
        assert exists(live.path)
        assert exists(foreign.path)
        foreign.remove()


async def test_two_brokers_live_side_by_side() -> None:
    base = find_base("")
    async with open_tree(base) as one, open_tree(base) as other:
        assert one.path != other.path
        async with one.open_session(LIMITS), other.open_session(LIMITS):
            pass


async def test_strangers_in_our_group_are_not_moved() -> None:
    """Who shares the broker's cgroup keeps it: the broker says so instead of taking them along."""
    async with a_tree() as tree, tree.open_session(LIMITS) as session:
        with python(DAEMON) as child:
            await session.join(child.pid)
            go(child)
            assert await code_of(child) == 0
            with pytest.raises(NoCgroup, match="1 processes that are not the broker's"):
                async with open_tree(session.group):
                    pytest.fail("a stranger was taken along")
            assert session.group.counted("cgroup.events", "populated")
            assert session.group.children() == []


def test_a_user_cannot_raise_what_was_set_above() -> None:
    if os.geteuid() == 0:
        pytest.skip("root may")
    base = find_base("")
    with pytest.raises(CgroupFault, match="Permission denied"):
        base.write("memory.max", "max")
    with pytest.raises(CgroupFault):
        Group(os.path.dirname(base.path)).join(os.getpid())


def test_the_root_of_the_hierarchy_is_not_a_users_base() -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write there")
    with pytest.raises(NoCgroup, match="not delegated"):
        find_base("/sys/fs/cgroup")
