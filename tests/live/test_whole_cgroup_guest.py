"""Control groups through the whole broker, in a guest with a unified tree: as root, and as a user with a subtree.

What `test_walls_cgroup_guest.py` shows of the mechanism is here shown of the product: a session's calls, its answers
and its audit.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from sandbox.cgroup.group import Group
from sandbox.cgroup.place import find_base
from sandbox.cgroup.session import OWN_MEMORY_BYTES, OWN_PIDS
from sandbox.cgroup.tree import HOME, PREFIX
from sandbox.plan.plan import LayerUnavailable
from tests.sandbox.cgroup.test_walls_cgroup_guest import WHY_NOT, python
from tests.sandbox.init.test_sandbox_births import survivors, wait_exit
from tests.support.whole import Whole, open_whole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [
    pytest.mark.guest,
    pytest.mark.bounded(120),  # emulated, a second of the machine may be ten
    pytest.mark.skipif(bool(WHY_NOT), reason=f"no delegated cgroup here: {WHY_NOT}"),
]

MIB = 1 << 20
SERVER = """
server:
  timeouts: {command_default: 60, kill_grace: 0.3, output_drain: 1}
  sandbox: {enable_cgroups: true, require: [cgroup]}
"""
POLICY = """
policy:
  allowed_commands:
    python3: {{executable: /usr/bin/python3}}
    small: {{executable: /usr/bin/python3, resource_override: {{memory_max: 50331648}}}}
    few: {{executable: /usr/bin/python3, resource_override: {{pids_max: 16}}}}
    slow: {{executable: /usr/bin/python3, resource_override: {{cpu_max: 0.2, io_weight: 20}}}}
    large: {{executable: /usr/bin/python3, resource_override: {{memory_max: 268435456, memory_swap_max: 1048576}}}}
    cat: {{executable: /bin/cat}}
  allowed_paths: ["~/**", "{work}/**", "/proc/**"]
  blocked_paths: []  # none to look for in the system's directories, which takes an emulated machine minutes
  resource_limits: {{memory_max: 134217728, memory_swap_max: 4194304, pids_max: 64, cpu_max: 1.5, io_weight: 50}}
"""
ALLOCATE = "data = b'x' * {size}; print(len(data))"
FORK_UNTIL_REFUSED = """
import os, sys
for count in range(100):
    try:
        child = os.fork()
    except OSError:
        print(count); sys.exit(3)
    if not child:
        import time; time.sleep(900)
"""
FILL = (
    FORK_UNTIL_REFUSED.replace("print(count); sys.exit(3)", "break")
    + """
print('full', flush=True)
import time; time.sleep(900)
"""
)
# Each waits for ever and carries the token among its arguments, as do those that it starts.
SHAPES = {
    "plain": "pass",
    "ignores SIGTERM": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "child in a session of its own": "os.fork() or os.setsid()",
    "double fork": "os.fork() or (os.setsid(), os.fork())",
    "stopped child": "os.fork() or os.kill(os.getpid(), signal.SIGSTOP)",
    "sixteen": "[os.fork() for _ in range(4)]",
}
WAIT = "import os, signal, time; {shape}; print('up', flush=True); time.sleep(900)"


@attrs.frozen(kw_only=True)
class Hands:
    """One session of a broker that has control groups."""

    whole: Whole
    session_id: str

    async def answer(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return (await self.whole.answer(tool, session_id=self.session_id, **arguments)).structured

    async def python(self, code: str, *, name: str = "python3", **arguments: Any) -> dict[str, Any]:
        return await self.answer("execute_command", argv=[name, "-c", code, "cgroup-test"], **arguments)


@contextlib.asynccontextmanager
async def hands(base: Path, server: str = SERVER) -> AsyncIterator[Hands]:
    async with open_whole(base, policy=POLICY, server=server) as whole:
        yield Hands(whole=whole, session_id=(await whole.ok("create_session"))["session_id"])


def groups_below(path: str) -> list[str]:
    return sorted(os.path.basename(group.path) for group in Group(path).children())


def group_of(pid: int) -> Group:
    return Group("/sys/fs/cgroup" + Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::"))


@pytest.fixture
def base_path() -> str:
    """Where the tree will be; the broker is this process and moves into it."""
    return find_base("").path


def tree_below(base_path: str) -> str:
    (name,) = (name for name in groups_below(base_path) if name.startswith(PREFIX))
    return f"{base_path}/{name}"


async def test_a_command_beyond_its_memory_is_killed_and_told_so(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        told = await own.python(ALLOCATE.format(size=64 * MIB), name="small")
        assert (told["error_name"], told["signal"], told["oom_killed"]) == ("CMD_KILLED", signal.SIGKILL, True)
        assert told["killed_by"] == "memory limit 48 MiB reached"
        assert "killed: memory limit 48 MiB reached" in told["error_message"]
        assert 16 * MIB < told["memory_peak_bytes"] <= 48 * MIB
        control = await own.python(ALLOCATE.format(size=64 * MIB))  # the session allows it
        assert (control["stdout"], control["oom_killed"], control["killed_by"]) == (f"{64 * MIB}\n", False, None)
        assert control["memory_peak_bytes"] > 64 * MIB
        assert control["cpu_user_ms"] + control["cpu_system_ms"] > 0

        begun = await own.python(ALLOCATE.format(size=64 * MIB), name="small", background=True)
        waited = await own.answer("wait_command", command_id=begun["command_id"], wait_seconds=60)
        assert (waited["error_name"], waited["killed_by"]) == ("CMD_KILLED", "memory limit 48 MiB reached")
        ended = [record for record in own.whole.records() if record["event_type"] == "COMMAND_FAILED"]
        assert len(ended) == 2
        for record in ended:
            assert "killed: memory limit 48 MiB reached" in record["error"]
            assert record["details"]["oom_killed"] is True
            assert record["details"]["memory_peak_bytes"] <= 48 * MIB


async def test_an_override_above_the_sessions_limits_holds_and_widens_nothing_else(
    tmp_path: Path, base_path: str
) -> None:
    async with hands(tmp_path) as own:
        session = Group(f"{tree_below(base_path)}/session-1")
        room = OWN_MEMORY_BYTES
        assert int(session.read("memory.max")) == 128 * MIB + room
        wide = await own.python(ALLOCATE.format(size=160 * MIB) + "; input()", name="large", wait_seconds=0.01)
        assert wide["running"]
        assert int(session.read("memory.max")) == 256 * MIB + room
        narrow = await own.python(ALLOCATE.format(size=160 * MIB))
        assert narrow["killed_by"] == "memory limit 128 MiB reached"
        await own.answer("write_stdin", command_id=wide["command_id"], data="\n")
        done = await own.answer("wait_command", command_id=wide["command_id"], wait_seconds=60)
        assert (done["success"], done["oom_killed"]) == (True, False)
        await chores_done(own)
        assert int(session.read("memory.max")) == 128 * MIB + room


async def chores_done(own: Hands) -> None:
    """Wait for what the broker does to groups after an answer."""
    leaves = own.whole.gateway._host.supervisor.get("me", own.session_id).own.init.forking.leaves
    assert leaves is not None
    for _ in range(3):  # one may ask for another
        await leaves._chores.settled()


async def test_every_limit_of_the_policy_is_the_kernels(tmp_path: Path, base_path: str) -> None:
    async with hands(tmp_path) as own:
        session = Group(f"{tree_below(base_path)}/session-1")
        said = {name: session.read(name).strip() for name in ("memory.swap.max", "pids.max", "cpu.max", "io.weight")}
        assert said == {
            "memory.swap.max": str(4 * MIB),
            "pids.max": str(64 + OWN_PIDS),
            "cpu.max": "150000 100000",
            "io.weight": "default 50",
        }
        seen = {}
        for name in ("slow", "large", "python3"):
            begun = await own.python("input()", name=name, background=True)
            group = group_of(begun["pid"])
            seen[name] = {file: group.read(file).strip() for file in ("memory.swap.max", "cpu.max", "io.weight")}
            assert group.read("memory.oom.group").strip() == "1"
            assert group.pids() == [begun["pid"]]
        assert seen == {
            "slow": {"memory.swap.max": str(4 * MIB), "cpu.max": "20000 100000", "io.weight": "default 20"},
            "large": {"memory.swap.max": str(MIB), "cpu.max": "max 100000", "io.weight": "default 100"},
            "python3": {"memory.swap.max": str(4 * MIB), "cpu.max": "max 100000", "io.weight": "default 100"},
        }


async def test_a_fork_bomb_stops_at_its_number_and_its_time_at_its_share(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        bomb = await own.python(FORK_UNTIL_REFUSED, name="few")
        assert (bomb["exit_code"], bomb["stdout"]) == (3, "15\n")
        wide = await own.python(FORK_UNTIL_REFUSED)
        assert (wide["exit_code"], wide["stdout"]) == (3, "63\n")
        burn = "import os\nwhile sum(os.times()[:2]) < 1: pass"
        slowed = await own.python(burn, name="slow")
        used_ms = slowed["cpu_user_ms"] + slowed["cpu_system_ms"]
        assert used_ms >= 800
        assert slowed["duration_ms"] > 3 * used_ms  # a fifth of one processor, with room for a coarse clock
        again = await own.python("print('here')")
        assert again["stdout"] == "here\n"


async def test_commands_that_use_a_session_up_together_cost_it_no_life(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        begun = []
        while "error_message" not in (told := await own.python(FILL, background=True)):
            begun.append(told["command_id"])
            said = await own.answer("read_output", command_id=told["command_id"], wait_seconds=60)
            assert said["data"] == "full\n"
        assert len(begun) >= 3, "each could have its own number"
        assert "a limit on processes or open files is used up" in told["error_message"]
        for command_id in begun:
            await own.answer("signal_command", command_id=command_id, signal="SIGKILL")
            await own.answer("wait_command", command_id=command_id, wait_seconds=60)
        assert (await own.python("print('here')"))["stdout"] == "here\n"


async def test_a_kill_ends_every_shape_of_tree_and_a_deadline_waits_for_it(tmp_path: Path, base_path: str) -> None:
    async with hands(tmp_path) as own:
        for name, shape in SHAPES.items():
            begun = await own.python(WAIT.format(shape=shape), background=True)
            command_id = begun["command_id"]
            said = await own.answer("read_output", command_id=command_id, wait_seconds=60)
            assert said["data"].startswith("up\n"), name
            group = group_of(begun["pid"])
            await own.answer("signal_command", command_id=command_id, signal="SIGKILL")
            told = await own.answer("wait_command", command_id=command_id, wait_seconds=60)
            assert (told["error_name"], told["oom_killed"], told["killed_by"]) == ("CMD_KILLED", False, None), name
            await wait_exit(*survivors("cgroup-test"))
            await group.wait_empty()
        told = await own.python("while True: pass", timeout_seconds=1)
        assert told["error_name"] == "CMD_TIMEOUT"
        assert survivors("cgroup-test") == []
        await chores_done(own)
        for group in Group(f"{tree_below(base_path)}/session-1").children():
            assert os.path.basename(group.path) == "init" or len(group.pids()) <= 1  # a leader that waits


async def test_daemons_stay_in_their_group_until_the_session_ends(tmp_path: Path, base_path: str) -> None:
    daemon = "import os, time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); time.sleep(900)"
    async with hands(tmp_path) as own:
        tree = tree_below(base_path)
        done = await own.python(daemon)
        assert done["exit_code"] == 0
        (pid,) = survivors("cgroup-test")
        place = Path(f"/proc/{pid}/cgroup").read_text()
        assert "/session-1/command-" in place
        init = own.whole.gateway._host.supervisor.get("me", own.session_id).own.init
        for keeper in init.forking.keepers_with_trees():  # who kept it is gone, and the group is what is left
            os.kill(keeper, signal.SIGKILL)
        ended = await own.answer("kill_session", force=True)
        assert ended["success"]
        await wait_exit(pid)
        assert groups_below(tree) == [HOME]
        await own.whole.ok("create_session")
        assert groups_below(tree) == [HOME, "session-2"]
    assert not [name for name in groups_below(base_path) if name.startswith(PREFIX)]


async def test_a_start_removes_what_a_crashed_broker_left_and_says_where_it_is(tmp_path: Path, base_path: str) -> None:
    orphaned = Group(base_path).create(f"{PREFIX}dead")
    inner = orphaned.create("session-1").create("command-1")
    with python("sys.stdin.read(1)") as child:
        inner.join(child.pid)
        async with hands(tmp_path) as own:
            assert await trio.to_thread.run_sync(child.wait) == -signal.SIGKILL
            assert not os.path.exists(orphaned.path)
            layers = {layer["name"]: layer for layer in (await own.whole.ok("get_system_info"))["isolation"]}
            assert layers["cgroup"]["state"] == "enforced"
            assert tree_below(base_path) in layers["cgroup"]["detail"]
            assert "no absolute path, so a place was looked for" in layers["cgroup"]["detail"]
            assert "memory and processes are the cgroup's" in layers["rlimits"]["detail"]


async def test_a_base_that_is_not_ours_stops_a_start_that_requires_it(tmp_path: Path) -> None:
    server = SERVER.replace("enable_cgroups: true", "enable_cgroups: true, cgroup_base: /sys/fs/cgroup/nobody")
    with pytest.raises(
        LayerUnavailable, match=r"'cgroup' is required but it is unavailable: .*/nobody: .*Delegate=yes"
    ):
        async with hands(tmp_path, server):
            pytest.fail("it started")
