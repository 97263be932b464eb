"""What the walls keep in: every refusal beside the same act outside of them, where it works."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from sandbox import wire
from sandbox.commands.values import Exited
from sandbox.errors import SpawnFailed
from sandbox.init.launcher import open_launcher
from sandbox.init.spare import PACKAGE_PARENT
from sandbox.kernel import landlock, processes
from sandbox.machine.programs import resolve_program
from tests.sandbox.init.test_sandbox_births import (
    AS_ROOT,
    PLAIN,
    World,
    all_armed,
    needs_landlock,
    needs_signal_scope,
    open_world,
    plan_for,
    session_home,
    survivors,
    walls_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("launched")
PYTHON = "/usr/bin/python3"
with_and_without = pytest.mark.parametrize("namespaces", [True, False])


def outside(world: World, *argv: str) -> subprocess.CompletedProcess[bytes]:
    """The control: the same user, the same program, no walls."""
    who = world.walls.user
    switch: dict[str, Any] = {"user": who.uid, "group": who.gid, "extra_groups": []} if AS_ROOT else {}
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        argv, cwd=world.home, env={}, capture_output=True, check=False, timeout=10, **switch
    )
    return done


def furnish(place: Path) -> None:
    (place / "fifo").unlink(missing_ok=True)
    for name in ("secret", "old"):
        (place / name).write_text("told\n")
        (place / name).chmod(0o666)


@pytest.fixture
def forbidden() -> Iterator[Path]:
    """A directory that everybody may use, and that no session is granted."""
    place = Path("/var/tmp") / f"sandbox-test-{secrets.token_hex(8)}"
    place.mkdir()
    place.chmod(0o777)
    furnish(place)
    yield place
    for path in place.iterdir():
        path.unlink()
    place.rmdir()


@needs_landlock
@with_and_without
async def test_reading_and_writing_outside_the_roots_is_refused(forbidden: Path, *, namespaces: bool) -> None:
    acts = [
        f"cat {forbidden}/secret",
        f"echo x >> {forbidden}/secret",
        f"echo x > {forbidden}/new",
        f"/usr/bin/python3 -I -c \"import os; os.unlink('{forbidden}/old')\"",
        f"/usr/bin/python3 -I -c \"import os; os.listdir('{forbidden}')\"",
        f"/usr/bin/python3 -I -c \"import os; os.mkfifo('{forbidden}/fifo')\"",
    ]
    async with open_world(plan=plan_for(enable_namespaces=namespaces)) as world:
        for act in acts:
            assert outside(world, "/bin/sh", "-c", act).returncode == 0
            furnish(forbidden)
            ended = await world.run("/bin/sh", "-c", act, env={"PATH": "/bin"})
            assert ended.how != Exited(0)
            refusals = (b"ermission denied", b"o such file", b"irectory nonexistent")  # outside is not there at all
            assert any(words in ended.stderr.data for words in refusals[: 3 if namespaces else 1])


@needs_landlock
@with_and_without
async def test_a_granted_root_is_there_for_reading_or_for_writing(forbidden: Path, *, namespaces: bool) -> None:
    read = ("/bin/cat", f"{forbidden}/secret")
    write = ("/bin/sh", "-c", f"echo x > {forbidden}/new")
    async with open_world(plan=plan_for(enable_namespaces=namespaces), read_paths=(str(forbidden),)) as world:
        assert (await world.run(*read)).stdout.data == b"told\n"
        assert (await world.run(*write)).how != Exited(0)
    async with open_world(plan=plan_for(enable_namespaces=namespaces), write_paths=(str(forbidden),)) as world:
        assert (await world.run(*read)).stdout.data == b"told\n"
        assert (await world.run(*write)).how == Exited(0)


@with_and_without
async def test_home_and_the_system_work_as_usual(*, namespaces: bool) -> None:
    script = """
import os, socket, subprocess, tempfile
os.mkdir('d'); open('d/f', 'w').write('x'); os.rename('d/f', 'g'); os.link('g', 'd/h'); os.symlink('g', 's')
os.truncate('g', 0); os.mkfifo('p'); socket.socket(socket.AF_UNIX).bind('u')
open('/etc/passwd').read(); open('/dev/null', 'w').write('x'); open('/dev/urandom', 'rb').read(1)
os.listdir('/proc/self')
subprocess.run(['/bin/sh', '-c', 'exit 0'], check=True)
tempfile.TemporaryFile(dir='.').write(b'x')
"""
    async with open_world(plan=plan_for(enable_namespaces=namespaces)) as world:
        ended = await world.run(PYTHON, "-I", "-c", script)
        assert ended.stderr.data == b""
        assert ended.how == Exited(0)


@needs_landlock
@with_and_without
async def test_only_programs_on_the_list_are_executed(*, namespaces: bool) -> None:
    async with open_world(plan=plan_for(enable_namespaces=namespaces)) as world:
        assert outside(world, "/usr/bin/id").returncode == 0
        with pytest.raises(SpawnFailed) as caught:
            await world.run("/usr/bin/id")
        assert (caught.value.stage, caught.value.why) == ("exec", "Permission denied")
        grandchild = ("/bin/sh", "-c", "/bin/sh -c '/usr/bin/id; exit $?'")
        assert outside(world, *grandchild).returncode == 0
        assert (await world.run(*grandchild)).how == Exited(126)


@needs_landlock
@with_and_without
async def test_the_loader_finds_no_program_that_is_not_on_the_list(*, namespaces: bool) -> None:
    (loader,) = resolve_program("/bin/true").interpreters
    async with open_world(plan=plan_for(enable_namespaces=namespaces)) as world:
        for act in ((loader, "/usr/bin/id"), ("/bin/cat", "/usr/bin/id")):
            assert outside(world, *act).returncode == 0
            ended = await world.run(*act)
            assert ended.how != Exited(0)
            assert b"ermission denied" in ended.stderr.data
        assert (await world.run(loader, "/bin/cat", "/etc/passwd")).stdout.data  # what may run, may be loaded
        names = await world.run(PYTHON, "-I", "-c", "import os; print('id' in os.listdir('/usr/bin'))")
        assert names.stdout.data == b"True\n"


@needs_landlock
@with_and_without
async def test_a_program_put_into_the_home_is_not_executed(*, namespaces: bool) -> None:
    act = (
        "/bin/sh",
        "-c",
        "cat /bin/true > mine; /usr/bin/python3 -I -c 'import os; os.chmod(\"mine\", 0o755)'; ./mine",
    )
    async with open_world(plan=plan_for(enable_namespaces=namespaces)) as world:
        assert outside(world, *act).returncode == 0
        assert (await world.run(*act, env={"PATH": "/bin"})).how == Exited(126)


@needs_landlock
@with_and_without
async def test_a_command_with_a_narrower_list_gets_no_more(*, namespaces: bool) -> None:
    narrow = resolve_program("/bin/sh").exec_paths
    act = ("/bin/sh", "-c", "/bin/cat /etc/passwd >/dev/null")
    async with open_world(plan=plan_for(enable_namespaces=namespaces)) as world:
        assert (await world.run(*act)).how == Exited(0)
        assert (await world.run(*act, exec_paths=narrow)).how == Exited(126)
        wide = (*narrow, *resolve_program("/usr/bin/id").exec_paths)
        assert (await world.run("/bin/sh", "-c", "/usr/bin/id", exec_paths=wide)).how == Exited(126)


@with_and_without
async def test_a_narrower_list_does_not_get_in_the_way_of_files(*, namespaces: bool) -> None:
    script = "import os; os.mkdir('d'); open('d/f', 'w').close(); os.rename('d/f', 'g'); os.link('g', 'd/h')"
    async with open_world(plan=plan_for(enable_namespaces=namespaces)) as world:
        ended = await world.run(PYTHON, "-I", "-c", script, exec_paths=resolve_program(PYTHON).exec_paths)
        assert ended.stderr.data == b""


@needs_landlock
@with_and_without
async def test_a_directory_on_the_list_means_everything_beneath(forbidden: Path, *, namespaces: bool) -> None:
    program = forbidden / "tool"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    async with open_world(plan=plan_for(enable_namespaces=namespaces)) as world:
        with pytest.raises(SpawnFailed):
            await world.run(str(program))
        exec_paths = (*world.walls.exec_paths, str(forbidden))
    async with open_world(plan=plan_for(enable_namespaces=namespaces), exec_paths=exec_paths) as world:
        assert (await world.run(str(program))).how == Exited(0)


@needs_signal_scope
async def test_a_command_can_signal_itself_and_nobody_else() -> None:
    token = "token-" + secrets.token_hex(8)
    script = """
import os, sys
for pid in map(int, sys.argv[1:]):
    try: os.kill(pid, 0)
    except PermissionError: print('refused')
    else: print('self' if pid == os.getpid() else 'delivered')
"""
    async with open_world(plan=plan_for(**PLAIN)) as world, trio.open_nursery() as nursery:
        first: list[int] = []
        up = trio.Event()

        def on_started(pid: int) -> None:
            first.append(pid)
            up.set()

        async def neighbour() -> None:
            await world.run("/bin/sh", "-c", f": {token}; read x", timeout_s=60, on_started=on_started, stdin=None)

        async def sleeper() -> None:
            await world.run("/bin/sleep", "86400", timeout_s=60, on_started=on_started)

        nursery.start_soon(sleeper)
        await up.wait()
        entries = processes.descendants(world.init.pid)
        targets = [str(pid) for pid in {os.getpid(), world.init.pid, *(entry.pid for entry in entries)}]
        assert len(targets) >= 5  # broker, init, opener, keeper, the other command, ...
        control = outside(world, PYTHON, "-I", "-c", script, *targets)
        assert control.stdout.split().count(b"delivered") >= len(targets) - 1  # as root, the broker is another user
        ended = await world.run(PYTHON, "-I", "-c", script, *targets)
        assert set(ended.stdout.data.split()) - {b"self"} == {b"refused"}
        assert ended.how == Exited(0)
        assert survivors(token) == []
        nursery.cancel_scope.cancel()


async def test_the_sandbox_itself_cannot_be_traced_or_read() -> None:
    script = """
import os, sys
for pid in sys.argv[1:]:
    for what in ('mem', 'environ', 'maps'):
        try: open(f'/proc/{pid}/{what}', 'rb').read(1)
        except PermissionError: print('refused')
        except OSError: print('read')  # page 0 is nobody's
        else: print('read')
"""
    async with open_world(plan=plan_for(**PLAIN)) as world:
        await world.run("/bin/true")
        await all_armed(world)
        targets = [str(entry.pid) for entry in processes.descendants(world.init.pid)] + [str(world.init.pid)]
        ended = await world.run(PYTHON, "-I", "-c", script, *targets)
        words = ended.stdout.data.split()
        assert len(words) >= 9  # init, opener and keeper at least
        # the command's own slot is among them, and by now it is the command
        assert words.count(b"read") <= 3
        assert words.count(b"refused") >= len(words) - 3


@needs_landlock
async def test_abstract_sockets_of_others_are_out_of_reach() -> None:
    if landlock.abi()[0] < 6:
        pytest.skip("Landlock ABI 6 scopes abstract sockets")
    name = secrets.token_hex(8)
    script = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\x00' + '{name}')"
    with trio.socket.socket(trio.socket.AF_UNIX) as server:
        await server.bind("\0" + name)
        server.listen()
        async with open_world() as world:
            assert outside(world, PYTHON, "-I", "-c", script).returncode == 0
            assert (await world.run(PYTHON, "-I", "-c", script)).how != Exited(0)


@with_and_without
async def test_a_root_of_everything_is_said_to_be_one(*, namespaces: bool) -> None:
    async with open_world(plan=plan_for(enable_namespaces=namespaces), read_paths=("/",)) as world:
        (layer,) = (layer for layer in world.init.layers if layer.name == "landlock")
        if landlock.abi()[0]:
            assert "whole file system" in layer.detail
        assert (await world.run("/bin/cat", "/var/lib/dpkg/status")).how == Exited(0) or not Path(
            "/var/lib/dpkg"
        ).exists()


async def test_a_missing_root_is_said_to_be_missing() -> None:
    async with open_world(write_paths=("/nowhere/at/all",)) as world:
        (layer,) = (layer for layer in world.init.layers if layer.name == "landlock")
        assert "/nowhere/at/all" in layer.detail or not landlock.abi()[0]


async def test_the_opener_is_inside_the_walls_with_a_socket_of_its_own() -> None:
    with session_home() as (user, home):
        async with open_launcher(plan_for()) as launcher, launcher.open_init(walls_for(user, home)) as init:
            init.files_socket.setblocking(False)
            with pytest.raises(BlockingIOError):
                wire.receive(init.files_socket)
            await init.end()
            await trio.lowlevel.wait_readable(init.files_socket)
            assert wire.receive(init.files_socket) is None


def test_only_the_stdlib_is_needed_on_the_child_side() -> None:
    script = f"import sys; sys.path.append({PACKAGE_PARENT!r}); import sandbox.inside.init.main; "
    script += "print('attrs' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, check=True, env={})
    assert done.stdout == b"False\n"
