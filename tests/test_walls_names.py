"""What stands at a name is not what stood there: links and renames of a session give the next one nothing.

Each attack stands beside the same act by a session that may do it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import attrs
import pytest
from test_sandbox_births import AS_ROOT, PLAIN, World, needs_landlock, needs_namespaces, open_world, plan_for

from broker.grants import find_grants
from config.load import load_config
from policy.path import PathRules
from sandbox.command import Exited
from sandbox.launcher import open_launcher
from sandbox.plan import Plan, SessionUser

TOLD = b"told\n"
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
