"""What must not be changed is not changed, there or not: guards, frames and what stays open in them.

With mounts of the session's own and with Landlock alone. Each attack stands beside the same act with nothing closed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import attrs
import pytest

from broker.grants import closed_by
from policy.path import PathRules
from policy.rules import ClosedPath
from sandbox.commands.values import Exited
from sandbox.init.launcher import open_launcher
from sandbox.plan import system_search
from sandbox.plan.plan import ClosedPaths, Plan
from tests.sandbox.init.test_sandbox_births import PLAIN, World, needs_landlock, open_world, plan_for
from tests.sandbox.init.test_walls_names import either_way, furnish, next_session, told

pytestmark = pytest.mark.once

PYTHON = "/usr/bin/python3"
DO = "import os, sys; {}"


def closed(world: World, *patterns: str, opened: tuple[str, ...] = (), blocked: tuple[str, ...] = ()) -> ClosedPaths:
    """What patterns guard, and others block, in the home of this world."""
    entries = [*(ClosedPath(path=path, close="writing") for path in patterns), *blocked]
    return closed_by(PathRules.compile(["~/**"], entries, str(world.home)), opened)


async def does(world: World, code: str, *arguments: Path) -> bool:
    """Run Python code inside; tell whether it got through."""
    ended = await world.run(PYTHON, "-I", "-c", DO.format(code), *map(str, arguments))
    return ended.how == Exited(0)


WRITE = "open(sys.argv[1], 'w').write('forged')"
MAKE_DEEP = "os.makedirs(os.path.dirname(sys.argv[1]), exist_ok=True); open(sys.argv[1], 'w').write('forged')"
CHANGES = {
    "write": WRITE,
    "append": "open(sys.argv[1], 'a').write('forged')",
    "truncate": "os.truncate(sys.argv[1], 0)",
    "remove": "os.unlink(sys.argv[1])",
    "rename": "os.rename(sys.argv[1], sys.argv[1] + '-2')",
    "replace": "open(sys.argv[1] + '-new', 'w').write('forged'); os.rename(sys.argv[1] + '-new', sys.argv[1])",
    "move the folder": "d = os.path.dirname(sys.argv[1]); os.rename(d, d + '-2')",
    "move what is above": "d = os.path.dirname(os.path.dirname(sys.argv[1])); os.rename(d, d + '-2')",
    "a link in its folder's place": "d = os.path.dirname(sys.argv[1]); os.rename(d, d + '-2'); os.symlink(d + '-2', d)",
    "a new name beside it": "open(os.path.dirname(sys.argv[1]) + '/sitecustomize.py', 'w')",
}


@needs_landlock
@either_way
@pytest.mark.parametrize("change", CHANGES)
async def test_a_guarded_folder_can_be_read_and_not_changed(plan: Plan, change: str) -> None:
    async with open_world(plan=plan) as world:
        furnish(world, "src/broker/code/init.py")
        target = world.home / "src/broker/code/init.py"
        before = sorted(str(path) for path in world.home.rglob("*"))
        guard = closed(world, "~/src/broker/code/**")
        async with next_session(world, closed=guard) as session:
            assert await told(session, target)
            assert not await does(session, CHANGES[change], target)
        assert sorted(str(path) for path in world.home.rglob("*")) == before
        assert target.read_bytes() == b"told\n"
        async with next_session(world) as free:  # the control
            assert await does(free, CHANGES[change], target)


@needs_landlock
@either_way
async def test_a_name_that_is_not_there_yet_is_not_made_and_the_rest_is_open(plan: Plan) -> None:
    async with open_world(plan=plan) as world:
        furnish(world, "project/main.py", ".config/other/file")
        rules = closed(world, "~/.config/remote-broker/**", blocked=("~/bin/**",))
        async with next_session(world, closed=rules) as session:
            for name in ("bin/ls", ".config/remote-broker/policy.yaml", "new.txt"):
                assert not await does(session, MAKE_DEEP, world.home / name), name
            for name in ("project/new.py", "project/deep/new.py", "project/main.py", ".config/other/new"):
                assert await does(session, MAKE_DEEP, world.home / name), name
            assert not await does(session, "os.rename(*sys.argv[1:])", world.home / "project", world.home / "bin")
        async with next_session(world) as free:
            for name in ("bin/ls", ".config/remote-broker/policy.yaml", "new.txt"):
                assert await does(free, MAKE_DEEP, world.home / name), name


@needs_landlock
@either_way
async def test_a_wildcard_for_the_last_name_closes_every_such_name_of_a_directory(plan: Plan) -> None:
    async with open_world(plan=plan) as world:
        furnish(world, ".bashrc", ".ssh/id", "project/.hidden")
        rules = closed(world, blocked=("~/.*",))
        async with next_session(world, closed=rules) as session:
            for name in (".bashrc", ".ssh/id"):
                assert not await told(session, world.home / name), name
            for name in (".bashrc", ".zshenv", ".local/bin/ls", ".ssh2/rc"):
                assert not await does(session, MAKE_DEEP, world.home / name), name
            assert await told(session, world.home / "project/.hidden")
            assert await does(session, MAKE_DEEP, world.home / "project/.new")
        assert (world.home / ".bashrc").read_bytes() == b"told\n"
        async with next_session(world) as free:
            assert await told(free, world.home / ".ssh/id")
            assert await does(free, MAKE_DEEP, world.home / ".zshenv")


@needs_landlock
@either_way
async def test_what_is_the_sessions_own_stays_open_in_a_closed_place(plan: Plan) -> None:
    async with open_world(plan=plan) as world:
        furnish(world, ".local/state/broker/log/audit.log", ".local/state/broker/data/home/file", "project/x")
        own = world.home / ".local/state/broker/data/home"
        rules = closed(world, blocked=("~/.*", "~/.local/state/broker/**", "**/.ssh/**"), opened=(str(own),))
        async with next_session(world, closed=rules, home=str(own), write_paths=(str(world.home),)) as session:
            assert await told(session, own / "file")
            assert await does(session, MAKE_DEEP, own / ".cache/pip/x")
            assert not await told(session, world.home / ".local/state/broker/log/audit.log")
            for name in ("log/audit.log", "log/audit.log.1", "data/new", "data/home2/x"):
                assert not await does(session, MAKE_DEEP, world.home / ".local/state/broker" / name), name
            assert not await does(session, "os.rename(*sys.argv[1:])", own, own.with_name("home2"))
            assert await does(session, MAKE_DEEP, world.home / "project/y")
        assert (own / ".cache/pip/x").read_text() == "forged"


@needs_landlock
@either_way
async def test_a_program_that_the_policy_names_runs_from_a_closed_place_and_stays_as_it_is(plan: Plan) -> None:
    async with open_world(plan=plan) as world:
        program = world.home / ".cargo/bin/tool"
        furnish(world, ".cargo/bin/tool", ".cargo/credentials")
        program.unlink()
        shutil.copy("/bin/true", program)
        rules = closed(world, blocked=("~/.*",))
        programs = (*world.walls.exec_paths, str(program))
        async with next_session(world, closed=rules, exec_paths=programs) as session:
            assert (await session.run(str(program))).how == Exited(0)
            assert not await does(session, WRITE, program)
            assert not await does(session, "os.unlink(sys.argv[1])", program)
            assert not await told(session, world.home / ".cargo/credentials")


@needs_landlock
@either_way
async def test_the_link_that_leads_to_a_guarded_place_cannot_be_turned(plan: Plan) -> None:
    async with open_world(plan=plan) as world:
        furnish(world, "envs/real/bin/python", "project/x")
        (world.home / "venv").symlink_to("envs/real")
        turn = "os.unlink(sys.argv[1]); os.symlink('/tmp', sys.argv[1])"
        rules = closed(world, "~/venv/**", "~/envs/real/**")
        async with next_session(world, closed=rules) as session:
            assert not await does(session, turn, world.home / "venv")
            assert not await does(session, "os.rename(sys.argv[1], sys.argv[1] + '2')", world.home / "envs")
            assert await does(session, MAKE_DEEP, world.home / "project/y")
        assert os.readlink(world.home / "venv") == "envs/real"
        async with next_session(world) as free:
            assert await does(free, turn, world.home / "venv")


@needs_landlock
async def test_without_mounts_a_project_with_a_repository_stays_one_to_work_in() -> None:
    async with open_world(plan=plan_for(**PLAIN)) as world:
        furnish(world, "project/.git/config", "project/main.py")
        rules = closed(world, "**/.git/config")
        async with next_session(world, closed=rules) as session:
            assert await does(session, MAKE_DEEP, world.home / "project/build/x")
            assert await does(session, MAKE_DEEP, world.home / "project/.git/index.lock")
            (report,) = [layer for layer in session.init.layers if layer.name == "blocked_paths"]
            assert "1 kept from changes by file tools alone" in report.detail


async def test_a_guarded_configuration_of_a_repository_is_read_and_not_changed_where_mounts_can_be_had() -> None:
    plan = plan_for()
    if not plan.spaces:
        pytest.skip("this machine gives no namespaces")
    async with open_world(plan=plan) as world:
        furnish(world, "project/.git/config", "project/.git/hooks/post", "project/main.py")
        rules = closed(world, "**/.git/config", "**/.git/hooks/**")
        async with next_session(world, closed=rules) as session:
            assert await told(session, world.home / "project/.git/config")
            for name in ("config", "hooks/post", "hooks/pre-commit"):
                assert not await does(session, WRITE, world.home / "project/.git" / name), name
            rename = "os.rename(sys.argv[1], sys.argv[1] + '2')"
            assert not await does(session, rename, world.home / "project/.git")
            for name in ("project/.git/index.lock", "project/build/x"):
                assert await does(session, MAKE_DEEP, world.home / name), name


@needs_landlock
@either_way
async def test_what_is_blocked_in_the_systems_directories_is_closed_too(plan: Plan) -> None:
    read = "open(sys.argv[1], 'rb').read()"
    async with open_world(plan=plan) as world:
        rules = closed_by(PathRules.compile(["~/**"], ["**/lib/os-release", "**/etc/shells"], str(world.home)))
        for name in ("/usr/lib/os-release", "/etc/shells"):
            assert await does(world, read, Path(name))
        async with next_session(world, closed=rules) as session:
            for name, expected in (("/usr/lib/os-release", False), ("/etc/shells", False), ("/etc/profile", True)):
                assert await does(session, read, Path(name)) is expected, name


async def test_a_birth_does_not_wait_for_a_slow_look_at_the_system_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(system_search, "WAIT_S", 0.0)  # as if the disk were far away
    rules = closed_by(PathRules.compile(["~/**"], ["**/etc/shells"], "/nowhere"))
    async with open_world() as world:
        for known in (False, True):
            async with open_launcher(world.launcher._plan) as launcher:
                if known:
                    look = launcher._system.begin(rules.blocked, rules.last_names)
                    assert look is not None
                    await look.done.wait()
                async with launcher.open_init(attrs.evolve(world.walls, closed=rules)) as init:
                    (layer,) = [one for one in init.layers if one.name == "blocked_paths"]
                    assert ("not looked through yet" in layer.detail) is not known
