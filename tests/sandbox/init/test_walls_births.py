"""Namespaces, mounts and network as a session's commands meet them: through the real launcher and init.

Each refusal stands beside the same act where there is no such wall.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import psutil
import pytest
import trio

from sandbox.commands.terminal import Size
from sandbox.commands.values import Exited
from sandbox.errors import ProcessNotFound, SpawnFailed
from sandbox.files.files import open_files
from sandbox.init.launcher import open_launcher
from sandbox.kernel import processes
from sandbox.kernel.root import BYTES_PER_FILE
from sandbox.machine.capabilities import Feature
from sandbox.machine.facts import FactSource
from sandbox.machine.programs import resolve_program
from sandbox.plan.plan import ClosedPaths, LayerUnavailable, Names, make_plan
from tests.sandbox.init.test_sandbox_births import (
    AS_ROOT,
    CAPABILITIES,
    PLAIN,
    PROGRAMS,
    SETTINGS,
    World,
    needs_namespaces,
    needs_root,
    open_world,
    plan_for,
    session_home,
    survivors,
    wait_exit,
    walls_for,
)

if TYPE_CHECKING:
    from sandbox.plan.spaces import NetworkUse

pytestmark = needs_namespaces
PYTHON = "/usr/bin/python3"


BIN = {"PATH": "/usr/bin:/bin"}
TALK = "import socket; socket.socket(socket.AF_UNIX).connect({path!r}); print('connected')"


def state_of(world: World, name: str) -> str:
    return next(layer.state for layer in world.init.layers if layer.name == name)


def detail_of(world: World, name: str) -> str:
    return next(layer.detail for layer in world.init.layers if layer.name == name)


@pytest.fixture
def outside() -> Iterator[Path]:
    """A directory of everybody's beneath /tmp that no wall names."""
    with tempfile.TemporaryDirectory(prefix="walls-") as name:
        place = Path(name)
        place.chmod(0o777)
        (place / "file").write_text("told\n")
        (place / "file").chmod(0o666)
        yield place


async def test_a_command_sees_the_processes_of_its_session_only() -> None:
    script = "import os; print(*[p for p in os.listdir('/proc') if p.isdigit()])"
    async with open_world() as world:
        seen = {int(word) for word in (await world.run(PYTHON, "-I", "-c", script)).stdout.data.split()}
    assert len(seen) < 12
    assert 1 in seen
    async with open_world(plan=plan_for(**PLAIN)) as world:
        seen = {int(word) for word in (await world.run(PYTHON, "-I", "-c", script)).stdout.data.split()}
    assert os.getpid() in seen


async def test_a_result_names_the_process_by_its_number_out_here() -> None:
    seen: list[psutil.Process] = []
    async with open_world() as world:
        go = world.home / "go"
        os.mkfifo(go)
        go.chmod(0o666)
        told = os.open(go, os.O_RDWR)  # of both ends: it waits for nobody
        script = f"import os; print(os.getpid(), flush=True); open({str(go)!r}).read(1)"

        def look(pid: int) -> None:
            seen.append(psutil.Process(pid))  # which lives until it is told to go on
            os.write(told, b"!")

        ended = await world.run(PYTHON, "-I", "-c", script, on_started=look)
        os.close(told)
    assert seen[0].pid == ended.pid
    assert int(ended.stdout.data) < 100
    assert int(ended.stdout.data) != ended.pid


async def test_processes_are_listed_and_signalled_by_either_number() -> None:
    mark = secrets.token_hex(8)
    async with open_world() as world:
        script = f": {mark}; sleep 86400 & wait"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: world.run("/bin/sh", "-c", script, timeout_s=60, env=BIN))
            facts = FactSource()
            while True:
                listed = await facts.processes(pids=await world.init.descendants())
                if sleepers := [each.pid for each in listed if each.name == "sleep"]:
                    break
            (sleeper,) = sleepers
            inside = processes.number_inside(sleeper)
            assert inside != sleeper
            with pytest.raises(ProcessNotFound):
                await world.init.signal(os.getpid(), 0)
            await world.init.signal(inside, 0)
            await world.init.signal(sleeper, signal.SIGTERM)
            await wait_exit(sleeper)
    assert survivors(mark) == []


async def test_what_was_not_named_is_not_there(outside: Path) -> None:
    act = ("/bin/cat", f"{outside}/file")
    async with open_world(read_paths=(str(outside),)) as world:
        assert (await world.run(*act)).stdout.data == b"told\n"
    async with open_world() as world:
        assert b"No such file" in (await world.run(*act)).stderr.data
        for way in ("/proc/self/root", "/proc/1/root", "/proc/self/cwd/../../../../../..", "/dev/fd/../../root"):
            assert (await world.run("/bin/cat", f"{way}{outside}/file")).how != Exited(0)


async def test_a_socket_outside_cannot_be_connected_to(outside: Path) -> None:
    script = f"import socket; socket.socket(socket.AF_UNIX).connect('{outside}/socket'); print('connected')"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{outside}/socket")
        (outside / "socket").chmod(0o777)
        server.listen()
        async with open_world(plan=plan_for(**PLAIN)) as world:
            assert (await world.run(PYTHON, "-I", "-c", script)).stdout.data == b"connected\n"
        async with open_world() as world:
            assert b"FileNotFoundError" in (await world.run(PYTHON, "-I", "-c", script)).stderr.data


@pytest.mark.bounded(150)  # all of the machine's /tmp is looked through, and other tests fill it at the same time
@pytest.mark.parametrize("private", [True, False])
async def test_tmp_is_the_sessions_own_or_the_machines(outside: Path, *, private: bool) -> None:
    """`private_tmp`; what is allowed beneath /tmp by name is there in both cases."""
    async with open_world(plan=plan_for(private_tmp=private), write_paths=("/tmp", str(outside / "file"))) as world:
        name = f"/tmp/{secrets.token_hex(8)}"
        assert (await world.run("/bin/sh", "-c", f"echo x > {name} && echo y >> {outside}/file")).how == Exited(0)
        assert os.path.exists(name) is not private
        assert (outside / "file").read_text() == "told\ny\n"
        async with open_files(world.init.files_socket) as files:
            with await files.resolve(name) as found:
                assert found.path == name  # the file tools mean the same place
        if not private:
            os.unlink(name)


@pytest.mark.parametrize(
    ("settings", "state"), [({}, "enforced"), ({"private_tmp": False}, "partial"), (PLAIN, "unavailable")]
)
async def test_where_the_machines_tmp_is_in_reach_so_are_its_sockets_and_the_layer_says_it(
    settings: Mapping[str, Any], state: str
) -> None:
    """A multiplexer's socket, an agent's: what listens there runs outside of every wall."""
    with tempfile.TemporaryDirectory(prefix="agent-") as folder, socket.socket(socket.AF_UNIX) as agent:
        Path(folder).chmod(0o777)
        # The home of a session of these tests is beneath /tmp too, and there it stays.
        async with open_world(plan=plan_for(**settings), write_paths=("/tmp",)) as world:
            agent.bind(f"{folder}/socket")  # started later than the session: nothing covers what is not there yet
            Path(folder, "socket").chmod(0o777)
            agent.listen()
            said = (await world.run(PYTHON, "-I", "-c", TALK.format(path=f"{folder}/socket"))).stdout.data
            assert (said == b"connected\n") is (state != "enforced"), said
            assert state_of(world, "mount_namespace") == state
            assert ("can be connected to" in detail_of(world, "mount_namespace")) is (state != "enforced")
            assert (await world.run("/bin/sh", "-c", "echo x > own")).how == Exited(0)


@needs_root
@pytest.mark.parametrize("folder", ["/run/systemd/resolve", "/opt/a service {mark}", "/usr/local/{mark}/run"])
async def test_no_service_of_the_machine_answers_from_a_directory_of_the_system(folder: str) -> None:
    """A resolver's socket takes questions into the network, and a read-only mount does not keep one from asking."""
    mark = secrets.token_hex(8)
    path = f"{folder.format(mark=mark)}/io.{mark}"
    with socket.socket(socket.AF_UNIX) as service, made_folder(Path(path).parent):
        service.bind(path)
        Path(path).chmod(0o666)
        service.listen()
        try:
            for settings, connects in ((PLAIN, True), ({}, False)):
                async with open_world(plan=plan_for(**settings)) as world:
                    said = (await world.run(PYTHON, "-I", "-c", TALK.format(path=path))).stdout.data
                    assert (said == b"connected\n") is connects, said
                    assert state_of(world, "network") == ("partial" if connects else "enforced")
        finally:
            os.unlink(path)


@needs_root
async def test_the_resolvers_configuration_can_be_read_and_nothing_else_of_it() -> None:
    folder = Path("/run/systemd/resolve")
    with made_folder(folder):
        files = {name: folder / name for name in ("stub-resolv.conf", "netif")}
        if any(path.exists() for path in files.values()):
            pytest.skip("the resolver of this machine runs")
        try:
            for path in files.values():
                path.write_text("nameserver 127.0.0.53\n")
            async with open_world() as world:
                ended = await world.run("/bin/cat", *map(str, files.values()))
                assert ended.stdout.data == b"nameserver 127.0.0.53\n"
                assert b"No such file" in ended.stderr.data
        finally:
            for path in files.values():
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Have *folder*, and remove again what was not there."""
    new = [step for step in (folder, *folder.parents) if not step.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        pytest.skip(f"{folder} cannot be made: {error.strerror}")
    try:
        for step in new:
            step.chmod(0o755)
        yield
    finally:
        with contextlib.suppress(OSError):  # somebody else uses it meanwhile
            for step in new:
                step.rmdir()


def test_who_requires_a_mount_namespace_requires_that_tmp_is_its_own() -> None:
    make_plan(CAPABILITIES, required := attrs.evolve(SETTINGS, require=("mount_namespace",)))
    with pytest.raises(LayerUnavailable, match="can be connected to") as caught:
        make_plan(CAPABILITIES, attrs.evolve(required, private_tmp=False))
    assert "sandbox.private_tmp: true" in caught.value.remedy


async def test_without_a_word_about_it_tmp_and_shared_memory_are_the_sessions_own() -> None:
    name = secrets.token_hex(8)
    async with open_world() as one, open_world() as other:
        for place in ("/tmp", "/dev/shm"):
            path = f"{place}/{name}"
            assert (await one.run("/bin/sh", "-c", f"echo x > {path} && cat {path}")).stdout.data == b"x\n"
            assert (await other.run("/bin/cat", path)).how != Exited(0)
            assert not os.path.exists(path)


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm"])
async def test_a_private_directory_holds_a_file_for_so_many_bytes(place: str) -> None:
    """Empty files have no bytes, and are kernel memory all the same."""
    wanted = 1000
    script = f"for n in range({wanted}): open(f'{place}/{{n}}', 'x').close()"
    few, enough = wanted * BYTES_PER_FILE // 2, 2 * wanted * BYTES_PER_FILE
    async with open_world(plan=plan_for(private_tmp_bytes=few)) as world:
        assert b"No space left" in (await world.run(PYTHON, "-I", "-c", script)).stderr.data
        made = (await world.run("/bin/ls", place)).stdout.data.split()
        assert wanted // 4 < len(made) < wanted
    async with open_world(plan=plan_for(private_tmp_bytes=enough)) as world:
        assert (await world.run(PYTHON, "-I", "-c", script)).how == Exited(0)


async def test_a_private_directory_holds_what_it_may() -> None:
    script = "open('/tmp/f', 'wb').write(bytes(3 << 20))"
    async with open_world(plan=plan_for(private_tmp_bytes=2 << 20)) as world:
        assert b"No space left" in (await world.run(PYTHON, "-I", "-c", script)).stderr.data
    async with open_world(plan=plan_for(private_tmp_bytes=4 << 20)) as world:
        assert (await world.run(PYTHON, "-I", "-c", script)).how == Exited(0)


SECRETS = (".env", "deep/er/.env", ".ssh/id", "linked")
BLOCKED = ClosedPaths(blocked=Names(anywhere=r"(?:/\.env|/\.ssh|/linked)(?=/|\Z)"))
ATTACKS = """
import json, os, sys
home = os.getcwd()
def told(path): return 'secret' in open(path).read()
def linked(make):
    make('.env', 'way')
    try: return told('way')
    finally: os.unlink('way')
def moved():
    os.rename('.env', 'away')
    try: return told('away')
    finally: os.rename('away', '.env')
ways = {
    'name': lambda: told('.env'), 'deep': lambda: told('deep/er/.env'), 'beneath': lambda: told('.ssh/id'),
    'link': lambda: told('linked'), 'what the link leads to': lambda: told('kept/elsewhere'),
    'a new link': lambda: linked(os.symlink), 'a hard link': lambda: linked(os.link), 'another name': moved,
    'cwd': lambda: told('/proc/self/cwd/.env'), 'root': lambda: told('/proc/self/root' + home + '/.env'),
    'list': lambda: bool(os.listdir('.ssh')), 'mode': lambda: os.chmod('.env', 0o644) or told('.env'),
    'write': lambda: bool(open('.env', 'a')),
}
def outcome(way):
    try: return way()
    except OSError: return False
print(json.dumps({name: outcome(way) for name, way in ways.items()}))
"""


def furnish(home: Path) -> None:
    for name in (*SECRETS[:3], "kept/elsewhere"):
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret\n")
    (home / "linked").symlink_to("kept/elsewhere")
    (home / "open").mkdir()
    if AS_ROOT:
        for path in home.rglob("*"):
            os.chown(path, home.stat().st_uid, home.stat().st_gid, follow_symlinks=False)


@pytest.mark.parametrize("namespaces", [True, False])
async def test_a_blocked_path_is_hidden_from_commands(*, namespaces: bool) -> None:
    with session_home() as (user, home):
        furnish(Path(home))
        walls = walls_for(user, home, closed=BLOCKED)
        async with open_launcher(plan_for(enable_namespaces=namespaces)) as launcher, launcher.open_init(walls) as init:
            world = World(launcher=launcher, init=init, walls=walls)
            told = json.loads((await world.run(PYTHON, "-I", "-c", ATTACKS)).stdout.data)
            left = set() if namespaces else {"list"}  # Landlock lets names be listed beneath what is listed
            assert {way for way, through in told.items() if through} == left
            assert detail_of(world, "blocked_paths").startswith("4 covered")
            assert ("names can be listed" in detail_of(world, "blocked_paths")) is not namespaces
            assert (await world.run("/bin/sh", "-c", "echo x > open/f && cat open/f", env=BIN)).how == Exited(0)
        plan, open_walls = (
            plan_for(enable_namespaces=namespaces),
            walls_for(user, home),
        )  # the control: nothing is blocked
        async with open_launcher(plan) as launcher, launcher.open_init(open_walls) as init:
            free = World(launcher=launcher, init=init, walls=open_walls)
            told = json.loads((await free.run(PYTHON, "-I", "-c", ATTACKS)).stdout.data)
            assert set(told.values()) == {True}, told


async def test_a_blocked_place_outside_the_roots_is_hidden_too() -> None:
    names = Names(from_root=r"/etc/hostname(?=/|\Z)")
    place = ClosedPaths(blocked=names, places=("/etc/hostname", "/nowhere/at/all"))
    for walls, expected in (({}, Exited(0)), ({"closed": place}, Exited(1))):
        async with open_world(**walls) as world:
            assert (await world.run("/bin/cat", "/etc/hostname")).how == expected


async def test_a_link_with_a_blocked_name_cannot_close_a_whole_root() -> None:
    with session_home() as (user, home):
        for name, target in ((".env", "."), (".ssh", "/usr")):
            (Path(home) / name).symlink_to(target)
        walls = walls_for(user, home, closed=BLOCKED)
        async with open_launcher(plan_for()) as launcher, launcher.open_init(walls) as init:
            world = World(launcher=launcher, init=init, walls=walls)
            assert (await world.run("/bin/ls", home)).how == Exited(0)


EXECUTE = """
import mmap, os
mmap.mmap(os.open('code', os.O_RDONLY), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
"""


@pytest.mark.parametrize("named", [True, False])
async def test_nothing_is_executed_from_where_the_policy_names_no_program(*, named: bool) -> None:
    """Not even mapped, as a loader does it: this closes `ld.so program` for programs of the workspace."""
    with session_home() as (user, home):
        (Path(home) / "code").write_bytes(Path("/bin/true").read_bytes())
        (Path(home) / "code").chmod(0o755)
        programs = (f"{home}/venv/bin/python",) if named else ()
        walls = walls_for(user, home, named_programs=programs)
        async with open_launcher(plan_for()) as launcher, launcher.open_init(walls) as init:
            world = World(launcher=launcher, init=init, walls=walls)
            ended = await world.run(PYTHON, "-I", "-c", EXECUTE)
            assert (ended.how == Exited(0)) is named, ended.stderr.data


async def test_the_system_is_read_only_and_gives_no_rights() -> None:
    script = """
for line in open('/proc/self/mountinfo'):
    _, _, _, _, place, options, *_ = line.split()
    held = options.split(',')
    assert 'nosuid' in held, place
    assert 'nodev' in held or place.startswith('/dev'), place
    if place.startswith(('/usr', '/etc', '/bin', '/lib', '/opt', '/sys')): assert 'ro' in held, place
"""
    async with open_world() as world:
        ended = await world.run(PYTHON, "-I", "-c", script)
        assert (ended.how, ended.stderr.data) == (Exited(0), b"")


CONNECT = """
import socket, sys
try: socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5).close()
except OSError as error: print(type(error).__name__)
else: print('connected')
"""
LOOPBACK = """
import socket
with socket.create_server(('127.0.0.1', 0)) as server: socket.create_connection(server.getsockname()).close()
print('connected')
"""


@pytest.mark.parametrize(
    ("network", "namespaces", "allowed", "connects", "loopback"),
    [
        ("all", True, True, True, True),
        ("all", True, False, True, True),  # a command is told nothing where all may
        ("none", True, False, False, True),
        ("none", False, False, False, False),
        ("some", True, True, True, True),
        ("some", True, False, False, False),
        ("some", False, False, False, False),
    ],
)
async def test_the_network_is_what_the_policy_allows(
    network: NetworkUse, *, namespaces: bool, allowed: bool, connects: bool, loopback: bool
) -> None:
    plan = plan_for(network=network, enable_namespaces=namespaces)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        async with open_world(plan=plan) as world:
            said = (await world.run(PYTHON, "-I", "-c", CONNECT, port, network=allowed)).stdout.data
            assert (said == b"connected\n") is connects, said
            said = (await world.run(PYTHON, "-I", "-c", LOOPBACK, network=allowed)).stdout.data
            assert (said == b"connected\n") is loopback
            expected = "unavailable" if network == "all" else "enforced" if namespaces else "partial"
            assert state_of(world, "network") == expected
            assert ("have a path" in detail_of(world, "network")) is (expected == "partial")
            nested = ("/bin/sh", "-c", f'/bin/true; {PYTHON} -I -c "$0" {port}', CONNECT)
            assert ((await world.run(*nested, network=allowed)).stdout.data == b"connected\n") is connects


async def test_the_end_of_the_first_process_is_the_end_of_everything() -> None:
    mark = secrets.token_hex(8)
    async with open_world() as world:
        script = f": {mark}; (setsid sh -c ': {mark}; sleep 86400' &) & exec >&- 2>&-; sleep 86400"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ignoring_the_end, world, script)
            while len(await world.init.descendants()) < 3:
                await trio.lowlevel.checkpoint()
            everything = await world.init.descendants()
            os.kill(world.init.pid, signal.SIGKILL)
            await world.init.wait_exited()
            await wait_exit(*everything)
    assert survivors(mark) == []


async def _ignoring_the_end(world: World, script: str) -> None:
    with contextlib.suppress(SpawnFailed):  # the session ends first, which is what is tested
        await world.run("/bin/sh", "-c", script, timeout_s=60, env=BIN)


async def test_nobody_of_a_session_runs_as_root_or_keeps_a_right() -> None:
    async with open_world() as world:
        await world.run("/bin/true")
        assert psutil.Process(world.init.pid).ppid() == os.getpid()
        everybody = [world.init.pid, *(entry.pid for entry in processes.descendants(world.init.pid))]
        for pid in everybody:
            status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            assert "0" not in status["Uid"].split() + status["Gid"].split()
            assert [int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Amb")] == [0] * 4
            assert status["NoNewPrivs"] == "1"


async def test_a_terminal_has_a_name_in_the_session() -> None:
    script = "import os; name = os.ttyname(0); print(name, os.stat(name).st_rdev == os.fstat(0).st_rdev)"
    async with open_world() as world:
        ended = await world.run(PYTHON, "-I", "-c", script, terminal=Size(rows=24, columns=80))
        assert ended.stdout.data == b"/dev/pts/0 True\r\n"


async def test_programs_find_what_they_need(tmp_path: Path) -> None:
    """Gcc has a /tmp, Python has shared memory, git a repository."""
    script = "import multiprocessing as m; lock = m.Lock(); print(m.Pool(2).map(abs, [-1, -2]))"
    acts = {
        "/usr/bin/gcc": "printf 'int main(void){return 0;}' > a.c && gcc -o a a.c && gcc -c -pipe a.c",
        "/usr/bin/git": "git init -q . && echo x > f && git add f && git -c user.name=a -c user.email=b commit -qm m",
        "/usr/bin/make": "printf 'all:\\n\\techo made > out\\n' > Makefile && make -s && cat out",
        PYTHON: f"python3 -I -c '{script}'",
    }
    missing = [program for program in acts if not Path(program).exists()]
    helpers = (*PROGRAMS, *acts, "/usr/bin/as", "/usr/bin/ld", "/usr/bin/printf")
    exec_paths = {path for name in helpers for path in resolve_program(name).exec_paths}
    folders = tuple(path for path in ("/usr/lib/gcc", "/usr/libexec/gcc", "/usr/lib/git-core") if os.path.isdir(path))
    async with open_world(exec_paths=(*exec_paths, *folders)) as world:
        for program, act in acts.items():
            if program not in missing:
                env = {"PATH": "/usr/bin:/bin", "HOME": str(world.home)}
                ended = await world.run("/bin/sh", "-ec", act, env=env, timeout_s=25)
                assert ended.how == Exited(0), (program, ended.stderr.data)


@pytest.mark.parametrize("layer", ["pid_namespace", "mount_namespace"])
def test_a_required_namespace_that_cannot_be_had_refuses_the_start_with_a_remedy(layer: str) -> None:
    settings = attrs.evolve(SETTINGS, require=(layer,))
    assert make_plan(CAPABILITIES, settings).spaces
    without = Feature(present=False, detail="namespaces: unshare: Operation not permitted")
    with pytest.raises(LayerUnavailable, match="unshare: Operation not permitted") as caught:
        make_plan(attrs.evolve(CAPABILITIES, namespaces=without), settings)
    assert "kernel.apparmor_restrict_unprivileged_userns" in caught.value.remedy
    with pytest.raises(LayerUnavailable, match=r"sandbox\.enable_namespaces"):
        make_plan(CAPABILITIES, attrs.evolve(settings, enable_namespaces=False))


async def test_without_namespaces_each_layer_says_so() -> None:
    async with open_world(plan=plan_for(**PLAIN)) as world:
        for layer in ("pid_namespace", "mount_namespace"):
            assert state_of(world, layer) == "unavailable"
            assert "switched off" in detail_of(world, layer)
