"""The session's user has an entry in the session's own /etc/passwd: who asks there, ssh above all, gets an answer."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandbox.commands.values import Exited
from sandbox.inside.init.accounts import GROUP, PASSWD, Account, group_with, passwd_with
from sandbox.machine.programs import resolve_program
from sandbox.plan.plan import ClosedPaths, Names
from tests.sandbox.init.test_sandbox_births import PLAIN, needs_namespaces, needs_root, open_world, plan_for

pytestmark = pytest.mark.once

if TYPE_CHECKING:
    from tests.sandbox.init.test_sandbox_births import World

SSH = "/usr/bin/ssh"
PROGRAMS = ("/usr/bin/python3", "/usr/bin/id", SSH, "/usr/bin/cat")
WHO = "import grp, os, pwd; e = pwd.getpwuid(os.getuid()); print(e.pw_name, e.pw_dir, grp.getgrgid(os.getgid()).gr_gid)"
ACCOUNT = Account(name="agent", uid=61200, gid=61201, home="/srv/home")
MACHINES = b"root:x:0:0:root:/root:/bin/bash\nagent:x:1000:1000::/home/agent:/bin/sh\n"


def granted() -> tuple[str, ...]:
    return tuple(path for name in PROGRAMS for path in resolve_program(name).exec_paths)


async def answers(world: World, *argv: str) -> str:
    ended = await world.run(*argv)
    assert ended.how == Exited(code=0), (ended.stdout.data + ended.stderr.data).decode()
    return ended.stdout.data.decode()


@needs_namespaces
async def test_programs_find_out_who_they_are_and_where_their_home_is() -> None:
    async with open_world(exec_paths=granted()) as world:
        who = world.walls.user
        assert await answers(world, "/usr/bin/python3", "-c", WHO) == f"{who.name} {world.home} {who.gid}\n"
        assert await answers(world, "/usr/bin/id", "-un") == f"{who.name}\n"
        for name in (PASSWD, GROUP):  # the machine's own are there as well
            assert Path(name).read_text() in await answers(world, "/usr/bin/cat", name)


@needs_root
async def test_without_a_file_system_of_its_own_a_session_has_no_entry() -> None:
    """The control: nobody on the machine knows the dynamic user."""
    async with open_world(plan=plan_for(**PLAIN), exec_paths=granted()) as world:
        if any(entry.pw_uid == world.walls.user.uid for entry in pwd.getpwall()):
            pytest.skip("somebody has this uid on this machine")
        ended = await world.run("/usr/bin/python3", "-c", WHO)
        assert b"KeyError" in ended.stderr.data


@needs_root
@needs_namespaces
@pytest.mark.skipif(not Path(SSH).exists(), reason="ssh is not installed")
async def test_ssh_works_for_a_user_that_the_machine_does_not_know() -> None:
    async with open_world(plan=plan_for(**PLAIN), exec_paths=granted()) as world:
        control = await world.run(SSH, "-G", "example.org")
        assert b"No user exists for uid" in control.stderr.data
    async with open_world(exec_paths=granted()) as world:
        said = await answers(world, SSH, "-G", "example.org")
        assert f"user {world.walls.user.name}\n" in said


@needs_namespaces
async def test_the_machines_files_are_not_touched_and_the_sessions_cannot_be_written() -> None:
    before = [Path(name).read_bytes() for name in (PASSWD, GROUP)]
    tries = (
        f"import os\nfor n in {(PASSWD, GROUP)!r}:\n try: os.open(n, os.O_WRONLY)\n except OSError as e: print(e.errno)"
    )
    async with open_world(exec_paths=granted()) as world:
        errors = (await answers(world, "/usr/bin/python3", "-c", tries)).split()
        assert len(errors) == 2
    assert [Path(name).read_bytes() for name in (PASSWD, GROUP)] == before


@needs_namespaces
async def test_what_the_policy_blocks_stays_covered() -> None:
    closed = ClosedPaths(blocked=Names(from_root=r"/etc/passwd(?=/|\Z)"), places=(PASSWD,))
    async with open_world(exec_paths=granted(), closed=closed) as world:
        ended = await world.run("/usr/bin/cat", PASSWD)
        assert isinstance(ended.how, Exited)
        assert (ended.how.code, ended.stdout.data) == (1, b"")


def test_an_entry_is_put_in_front_where_the_first_one_counts() -> None:
    said = passwd_with(MACHINES, ACCOUNT)
    assert said == b"agent:x:61200:61201::/srv/home:/usr/sbin/nologin\n" + MACHINES
    assert group_with(b"wheel:x:10:root", ACCOUNT) == b"agent:x:61201:\nwheel:x:10:root"


def test_a_user_with_the_right_home_keeps_its_entry() -> None:
    theirs = Account(name="agent", uid=1000, gid=1000, home="/home/agent")
    assert passwd_with(MACHINES, theirs) is None
    assert group_with(b"users:x:1000:\n", theirs) is None


def test_another_home_than_that_of_the_machine_makes_another_entry() -> None:
    theirs = Account(name="agent", uid=1000, gid=1000, home="/var/lib/home")
    said = passwd_with(MACHINES, theirs)
    assert said is not None
    assert said.startswith(b"agent:x:1000:1000::/var/lib/home:")


@pytest.mark.parametrize("home", ["/a:b", "/a\nroot::0:0::/:/bin/sh"])
def test_what_such_a_file_cannot_say_makes_no_entry(home: str) -> None:
    assert passwd_with(MACHINES, Account(name="agent", uid=5, gid=5, home=home)) is None


@pytest.mark.parametrize("text", [b"", b"\n\n", b"#\n:::\n+\n", b"a:b\n"])
def test_lines_that_are_no_entries_are_left_as_they_are(text: bytes) -> None:
    assert (passwd_with(text, ACCOUNT) or b"").endswith(text)
    assert (group_with(text, ACCOUNT) or b"").endswith(text)
