"""What stands at a name is not what stood there: links and renames of a session give the next one nothing.

Each attack stands beside the same act by a session that may do it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from broker.grants import closed_by, find_grants, without_own_files
from config.load import load_config
from policy.path import PathRules
from sandbox.commands.values import Exited
from sandbox.init.launcher import open_launcher
from sandbox.inside.blocked_paths import Search
from sandbox.inside.stages import StageFailed
from sandbox.plan.plan import ClosedPaths, Plan, SessionUser
from tests.sandbox.init.test_sandbox_births import (
    AS_ROOT,
    PLAIN,
    World,
    needs_landlock,
    needs_namespaces,
    needs_root,
    open_world,
    plan_for,
)

TOLD = b"told\n"
PYTHON = "/usr/bin/python3"
either_way = pytest.mark.parametrize(
    "plan", [pytest.param(plan_for(), id="own root"), pytest.param(plan_for(**PLAIN), id="landlock alone")]
)


@pytest.fixture
def outside() -> Iterator[Path]:
    """A directory of everybody's, in none of the walls, with a file that tells."""
    with tempfile.TemporaryDirectory(prefix="walls-") as name:
        place = Path(name)
        place.chmod(0o777)
        (place / "file").write_bytes(TOLD)
        (place / "file").chmod(0o666)
        yield place


@contextlib.asynccontextmanager
async def next_session(world: World, **walls: object) -> AsyncIterator[World]:
    """Another session of the same user, with other walls where they are named."""
    changed = attrs.evolve(world.walls, **walls)  # type: ignore[arg-type]  # what a test names
    async with open_launcher(world.launcher._plan) as launcher, launcher.open_init(changed) as init:
        yield World(launcher=launcher, init=init, walls=changed)


async def told(world: World, path: Path) -> bool:
    ended = await world.run("/bin/cat", str(path))
    return ended.stdout.data == TOLD


@needs_landlock
@either_way
async def test_a_working_directory_that_is_a_link_grants_nothing(plan: Plan, outside: Path) -> None:
    async with open_world(plan=plan) as world:
        os.symlink(outside, world.home / "w")
        async with next_session(world, write_paths=(str(outside),)) as allowed:
            assert await told(allowed, outside / "file")
        async with next_session(world, working_dir=str(world.home / "w")) as attacker:
            assert not await told(attacker, outside / "file")
            assert (await attacker.run("/bin/sh", "-c", f"echo x > {outside}/new")).how != Exited(0)
    assert not (outside / "new").exists()


@needs_namespaces
async def test_a_working_directory_in_a_private_tmp_is_there_and_no_link_is_followed(outside: Path) -> None:
    plan = plan_for(private_tmp=True)
    (outside / "real").mkdir()
    (outside / "real" / "file").write_bytes(TOLD)
    (outside / "link").symlink_to(outside / "real")
    for folder, expected in ((outside / "real", True), (outside / "link", False)):
        async with open_world(plan=plan, write_paths=("/tmp",), working_dir=str(folder)) as world:
            assert await told(world, outside / "real" / "file") is expected
            assert not await told(world, outside / "file")


@needs_landlock
@either_way
async def test_an_allowed_directory_in_another_cannot_be_replaced_by_a_link(plan: Plan, outside: Path) -> None:
    async with open_world(plan=plan) as world:
        project = world.home / "project"
        project.mkdir()
        project.chmod(0o777)
        walls = {"write_paths": (str(world.home), str(project))}
        async with next_session(world, **walls) as first:
            assert (await first.run("/bin/sh", "-c", f"echo told > {project}/f")).how == Exited(0)
            os.unlink(project / "f")
            swap = "import os, sys; os.rmdir('project'); os.symlink(sys.argv[1], 'project')"
            if AS_ROOT:
                os.chown(project, world.walls.user.uid, world.walls.user.gid)
            assert (await first.run("/usr/bin/python3", "-I", "-c", swap, str(outside))).how == Exited(0)
        async with next_session(world, **walls) as second:
            assert not await told(second, outside / "file")
        async with next_session(world, write_paths=(str(outside),)) as allowed:
            assert await told(allowed, outside / "file")


@needs_landlock
@either_way
async def test_a_link_in_the_place_of_a_directory_of_programs_lets_none_of_its_target_run(plan: Plan) -> None:
    async with open_world(plan=plan) as world:
        os.symlink("/usr/bin", world.home / "bin")
        for programs, expected in (("/usr/bin", Exited(0)), (str(world.home / "bin"), Exited(126))):
            async with next_session(world, exec_paths=(*world.walls.exec_paths, programs)) as session:
                assert (await session.run("/bin/sh", "-c", "/usr/bin/id")).how == expected


def test_a_pattern_that_leads_through_a_link_grants_what_the_policy_allows_there(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    for name in ("away", "also", "also/closed", "kept"):
        (tmp_path / name).mkdir()
    for name in ("away", "also", "also/closed"):
        (tmp_path / f"to-{name.replace('/', '-')}").symlink_to(tmp_path / name)
    here = f"{tmp_path}"
    allowed = [f"{here}/to-*/**", f"{here}/kept/**", f"{here}/also/**", f"{here}/away"]
    (tmp_path / "config" / "server.yaml").write_text("server: {}")
    (tmp_path / "config" / "policy.yaml").write_text(
        f"policy: {{allowed_commands: {{}}, allowed_paths: {allowed}, blocked_paths: ['**/closed/**']}}"
    )
    for path in (tmp_path / "config").iterdir():
        path.chmod(0o600)
    policy = load_config(tmp_path / "config").policy
    user = SessionUser(uid=1, gid=1, groups=(), name="me", home="/nowhere", dedicated=True)
    grants = find_grants(policy, PathRules.of(policy, user.home), {}, user)
    assert sorted(grants.write_paths) == [f"{here}/also", f"{here}/kept"]


def spec_of(closed: ClosedPaths, roots: list[str]) -> dict[str, Any]:
    """What a birth is told of what stays closed, in these writable roots."""
    return {
        **{name: getattr(closed, name) for name in ("last_names", "names", "folders", "opened", "system")},
        "places": (*closed.places, *closed.guarded_places),
        **{
            name: (names.from_root, names.anywhere)
            for name, names in (("blocked", closed.blocked), ("guarded", closed.guarded))
        },
        "roots": roots,
        "writable": roots,
        "sockets_in": (),
        "sockets_of": (),
        "uid": os.getuid(),
    }


def rules_of(home: Path, blocked: list[str], own: tuple[str, ...] = ()) -> PathRules:
    return without_own_files(PathRules.compile(["~/**"], blocked, str(home)), own)


def furnish(world: World, *names: str) -> None:
    """Make files that tell, and everything above them, in the session's home and its user's."""
    for name in names:
        path = world.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(TOLD)
    if AS_ROOT:
        for path in world.home.rglob("*"):
            os.chown(path, world.walls.user.uid, world.walls.user.gid, follow_symlinks=False)


MOVE = "import os, sys; os.makedirs(os.path.dirname(sys.argv[2]), exist_ok=True); os.rename(*sys.argv[1:])"
RENAMES = [
    pytest.param([], ("broker/config",), "broker/config/policy.yaml", ("broker", "b2"), id="the broker's own"),
    pytest.param([], ("deep/er/log/audit.log",), "deep/er/log/audit.log", ("deep", "d2"), id="its log, from the top"),
    pytest.param(["**/.git/hooks/**"], (), "repo/.git/hooks/post", ("repo/.git", "repo/git"), id="hooks"),
    pytest.param(["**/.config/gh/**"], (), "a/.config/gh/hosts", ("a/.config", "c"), id="a folder of tokens"),
    pytest.param(["~/a/*/key"], (), "a/b/key", ("a/b", "a/c/b"), id="moved to where its pattern does not reach"),
    pytest.param(["~/.config/git/**"], (), ".config/git/config", (".config", "c"), id="a start file"),
]


@needs_namespaces
@pytest.mark.parametrize(("blocked", "own", "secret", "move"), RENAMES)
async def test_a_renamed_directory_takes_the_name_from_nothing_blocked(
    blocked: list[str], own: tuple[str, ...], secret: str, move: tuple[str, str]
) -> None:
    async with open_world() as world:
        furnish(world, secret)
        old, new = (str(world.home / name) for name in move)
        moved = Path(new + str(world.home / secret).removeprefix(old))
        async with next_session(world) as free:  # the control: nothing is blocked
            assert (await free.run(PYTHON, "-I", "-c", MOVE, old, new)).how == Exited(0)
            assert await told(free, moved)
            assert (await free.run(PYTHON, "-I", "-c", MOVE, new, old)).how == Exited(0)
        rules = rules_of(world.home, blocked, tuple(str(world.home / name) for name in own))
        async with next_session(world, closed=closed_by(rules)) as first:
            said = (await first.run(PYTHON, "-I", "-c", MOVE, old, new)).stderr.data
            assert b"busy" in said or b"cross-device" in said  # out of a directory that takes no new names
        async with next_session(world, closed=closed_by(rules)) as second:
            assert not await told(second, moved)
            assert not await told(second, world.home / secret)


@needs_namespaces
async def test_a_blocked_link_stays_where_it_is_and_so_does_what_it_leads_to() -> None:
    async with open_world() as world:
        furnish(world, "kept/deep/netrc")
        (world.home / ".netrc").symlink_to("kept/deep/netrc")
        closed = closed_by(rules_of(world.home, ["**/.netrc"]))
        async with next_session(world) as free:
            assert await told(free, world.home / ".netrc")
        async with next_session(world, closed=closed) as session:
            for name in (".netrc", "kept/deep/netrc"):
                assert not await told(session, world.home / name)
            for name in (".netrc", "kept", "kept/deep", "kept/deep/netrc"):
                old = str(world.home / name)
                assert b"busy" in (await session.run(PYTHON, "-I", "-c", MOVE, old, f"{old}-2")).stderr.data, name


@needs_namespaces
async def test_what_a_renaming_leaves_blocked_can_be_renamed_and_things_move_everywhere() -> None:
    async with open_world() as world:
        furnish(world, "repo/.git/hooks/post", "repo/.git/index", "a/.env", "a/b/file", "broker/config/policy.yaml")
        rules = rules_of(world.home, ["**/.git/hooks/**", "**/.env"], (str(world.home / "broker/config"),))
        async with next_session(world, closed=closed_by(rules)) as session:
            for old, new in (("repo", "repo2"), ("a", "a2"), ("repo2/.git/index", "repo2/.git/index2")):
                ended = await session.run(PYTHON, "-I", "-c", MOVE, str(world.home / old), str(world.home / new))
                assert ended.how == Exited(0), ended.stderr.data
            copied = "import shutil; shutil.move('a2/b/file', 'broker/file'); shutil.move('broker/file', 'file')"
            assert (await session.run(PYTHON, "-I", "-c", copied)).how == Exited(0)
        async with next_session(world, closed=closed_by(rules)) as session:
            for name in ("repo2/.git/hooks/post", "a2/.env", "broker/config/policy.yaml"):
                assert (world.home / name).read_bytes() == TOLD
                assert not await told(session, world.home / name)
            assert await told(session, world.home / "file")


def test_only_those_directories_are_held_whose_renaming_would_unblock() -> None:
    home = "/h/me"
    rules = PathRules.compile(["~/**"], ["**/.git/hooks/**", "~/.config/a/b", "**/x/*/y/**", "~/*/z"], home)
    closed = closed_by(rules)
    search = Search(spec_of(closed, [home]))
    expected = {
        "d/e/.git/hooks": ["d/e/.git"],
        ".config/a/b": [".config", ".config/a"],
        "d/x/e/y": ["d/x", "d/x/e"],
        "d/z": ["d"],
    }
    for name, held in expected.items():
        assert search.holds(f"{home}/{name}") == [f"{home}/{each}" for each in held]
    assert search.holds("/elsewhere/x/e/y") == []


@needs_namespaces
async def test_no_number_of_blocked_names_uncovers_the_brokers_own_files_or_others() -> None:
    async with open_world() as world:
        furnish(world, "a/broker/config/policy.yaml", "deep/er/.env")
        closed = closed_by(rules_of(world.home, ["**/.env", "**/.env.*"], (str(world.home / "a/broker/config"),)))
        async with next_session(world) as flood:
            for name in ("a/broker/config/policy.yaml", "deep/er/.env"):
                assert await told(flood, world.home / name)
            many = "for n in range(1500): open(f'.env.{n}', 'w')"
            assert (await flood.run(PYTHON, "-I", "-c", many)).how == Exited(0)
        async with next_session(world, closed=closed) as session:
            for name in ("a/broker/config/policy.yaml", "deep/er/.env"):
                assert not await told(session, world.home / name)


def search_in(home: Path, blocked: list[str], own: tuple[str, ...] = (), **bounds: int) -> Search:
    closed = closed_by(rules_of(home, blocked, own))
    return Search(spec_of(closed, [str(home)]), **bounds)


def test_what_is_named_is_found_without_looking_and_what_was_not_looked_at_is_said(tmp_path: Path) -> None:
    for name in ("a/b/c/own", "a/b/c/own.1", "x/.env", "x/y/z/.env"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    own = (f"{tmp_path}/a/b/c/own", f"{tmp_path}/a/b/c/own.*")
    whole = search_in(tmp_path, ["**/.env"], own)
    assert len(list(whole.found())) == 4
    assert whole.missed == ()
    bounded = search_in(tmp_path, ["**/.env"], own, max_names=4)
    assert [path for path, _ in bounded.found()] == [f"{tmp_path}/a/b/c/own", f"{tmp_path}/a/b/c/own.1"]
    assert f"{tmp_path}/x" in bounded.missed


def test_more_blocked_paths_than_can_be_covered_are_no_session(tmp_path: Path) -> None:
    for number in range(11):
        (tmp_path / f".env.{number}").touch()
    assert len(list(search_in(tmp_path, ["**/.env.*"], max_found=11).found())) == 11
    with pytest.raises(StageFailed, match=r"more than 10, .*/\.env\.\d+ among them"):
        list(search_in(tmp_path, ["**/.env.*"], max_found=10).found())


@needs_root
@needs_namespaces
async def test_a_blocked_file_is_covered_under_every_name_of_a_mount() -> None:
    async with open_world() as world:
        furnish(world, "one/.ssh/id", "other/file")
        places = [str(world.home / name) for name in ("one", "other")]
        subprocess.run(["mount", "--bind", *places], check=True)
        try:
            closed = closed_by(rules_of(world.home, ["**/.ssh/**"]))
            async with next_session(world) as free:
                assert await told(free, world.home / "other/.ssh/id")
            async with next_session(world, closed=closed) as session:
                for name in ("one", "other"):
                    assert not await told(session, world.home / name / ".ssh/id")
        finally:
            subprocess.run(["umount", places[1]], check=True)


CONNECT = """
import socket, sys
kind = socket.SOCK_DGRAM if 'datagrams' in sys.argv[1] else socket.SOCK_STREAM
socket.socket(socket.AF_UNIX, kind).connect(sys.argv[1])
print('told')
"""


@contextlib.contextmanager
def services(*paths: Path) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        found = []
        for path in paths:
            kind = socket.SOCK_DGRAM if path.name == "datagrams" else socket.SOCK_STREAM
            service = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            service.bind(str(path))
            path.chmod(0o777)
            if kind is socket.SOCK_STREAM:
                service.listen()
                service.setblocking(False)
            found.append(service)
        yield found


async def connects(world: World, path: Path) -> bool:
    return (await world.run(PYTHON, "-I", "-c", CONNECT, str(path))).stdout.data == TOLD


@needs_namespaces
async def test_a_service_in_the_machines_tmp_cannot_be_connected_to_and_never_notices(outside: Path) -> None:
    service, datagrams, stale = (outside / name for name in ("service", "datagrams", "stale"))
    async with open_world(plan=plan_for(private_tmp=False)) as world:
        own = world.home / "own"
        with services(stale):
            pass
        with services(service, datagrams, own) as (listener, *_):
            if AS_ROOT:
                os.chown(own, world.walls.user.uid, world.walls.user.gid)
            async with next_session(world, write_paths=(str(outside),)) as allowed:  # the control: not /tmp by its name
                assert await connects(allowed, service)
                assert await connects(allowed, datagrams)
                listener.accept()[0].close()
            async with next_session(world, write_paths=("/tmp",)) as session:
                assert not await connects(session, service)
                assert not await connects(session, datagrams)
                with pytest.raises(BlockingIOError):
                    listener.accept()
                assert await connects(session, own)  # it may be the session's: it is in its home
                stale.chmod(0o666)
                outside.chmod(0o777)
                again = f"import os; os.unlink({str(stale)!r}); print('told')"
                assert (await session.run(PYTHON, "-I", "-c", again)).stdout.data == TOLD
