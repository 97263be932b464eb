"""What a command gets and what is answered: exactly the spec, nothing of the broker's, every way to end."""

from __future__ import annotations

import errno
import os
import signal
import threading
from typing import Any

import pytest
import trio

from sandbox.commands.values import Exited, Signalled, TimedOut
from sandbox.errors import ProcessNotFound, SpawnFailed
from sandbox.kernel import processes
from sandbox.plan.limits import Limits
from tests.sandbox.init.test_sandbox_births import (
    AS_ROOT,
    World,
    all_armed,
    everything_below,
    needs_landlock,
    open_fds,
    open_world,
    stray_fds,
    wait_exit,
)

pytestmark = pytest.mark.usefixtures("launched")
PYTHON = "/usr/bin/python3"


async def test_exit_codes_and_signals_are_told_apart() -> None:
    async with open_world() as world:
        assert (await world.run("/bin/sh", "-c", "exit 0")).how == Exited(0)
        assert (await world.run("/bin/sh", "-c", "exit 127")).how == Exited(127)
        assert (await world.run("/bin/sh", "-c", "kill -9 $$")).how == Signalled(signal.SIGKILL)
        assert (await world.run("/bin/sh", "-c", "kill -SEGV $$")).how == Signalled(signal.SIGSEGV)


async def test_both_streams_come_back_apart() -> None:
    async with open_world() as world:
        ended = await world.run("/bin/sh", "-c", "echo out; echo err >&2")
    assert (ended.stdout.data, ended.stderr.data, ended.drained) == (b"out\n", b"err\n", True)


@pytest.mark.parametrize("environment", [{}, {"A": "1", "PATH": "/nowhere", "NAME": "ä\udcff \n"}])
async def test_the_environment_is_exactly_what_was_given(environment: dict[str, str]) -> None:
    async with open_world() as world:
        ended = await world.run("/usr/bin/env", "-0", env=environment)
    entries = [os.fsdecode(entry) for entry in ended.stdout.data.split(b"\0") if entry]
    assert sorted(entries) == sorted(f"{name}={value}" for name, value in environment.items())


async def test_arguments_arrive_byte_for_byte() -> None:
    argv = ("/bin/sh", "-c", 'printf "%s\\0" "$@"', "sh", "", " ", "\n", "ä", "\udcff", "$(id)", "-x")
    async with open_world() as world:
        ended = await world.run(*argv)
    assert ended.stdout.data.split(b"\0")[:-1] == [os.fsencode(word) for word in argv[4:]]


async def test_a_command_has_three_descriptors() -> None:
    async with open_world() as world:
        script = "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))), os.readlink('/proc/self/fd/0'))"
        ended = await world.run(PYTHON, "-I", "-c", script)
    assert ended.stdout.data == b"[0, 1, 2, 3] /dev/null\n"  # 3 is the listing itself


async def test_a_command_leads_a_session_and_starts_with_clean_signals() -> None:
    async with open_world() as world:
        ended = await world.run("/bin/cat", "/proc/self/status", "/proc/self/stat")
    status = dict(line.split(":\t", 1) for line in ended.stdout.data.decode().splitlines() if ":\t" in line)
    # 32 and 33 are the C library's own; its posix_spawn ignores them in whatever it starts.
    masks = [int(status[name], 16) & ~(0b11 << 31) for name in ("SigBlk", "SigIgn", "SigCgt")]
    assert masks == [0, 0, 0]
    assert (status["NoNewPrivs"].strip(), status["Umask"].strip()) == ("1", "0022")
    _, group, session = ended.stdout.data.rsplit(b") ", 1)[1].split()[1:4]
    own_number = int(status["NSpid"].split()[-1])
    assert int(group) == int(session) == own_number


async def test_the_user_is_dropped_for_good() -> None:
    async with open_world() as world:
        ended = await world.run("/bin/cat", "/proc/self/status")
        user = world.walls.user
    status = dict(line.split(":\t", 1) for line in ended.stdout.data.decode().splitlines() if ":\t" in line)
    assert status["Uid"].split() == [str(user.uid)] * 4
    assert status["Gid"].split() == [str(user.gid)] * 4
    assert user.uid != 0
    if AS_ROOT:
        assert status["Groups"].split() == []
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 3_000_000])
async def test_stdin_arrives_whole_and_is_closed(size: int) -> None:
    async with open_world() as world:
        ended = await world.run(
            PYTHON, "-I", "-c", "import sys; print(len(sys.stdin.buffer.read()))", stdin=b"x" * size
        )
    assert ended.stdout.data == b"%d\n" % size


async def test_no_stdin_is_an_empty_one() -> None:
    async with open_world() as world:
        assert (await world.run("/bin/cat")).how == Exited(0)


async def test_a_program_need_not_read_its_input() -> None:
    async with open_world() as world:
        assert (await world.run("/bin/true", stdin=b"x" * 3_000_000)).how == Exited(0)
        assert (await world.run("/bin/sh", "-c", "exec <&-; echo on", stdin=b"x" * 3_000_000)).stdout.data == b"on\n"


async def test_a_program_may_close_its_streams_and_go_on() -> None:
    async with open_world() as world:
        ended = await world.run("/bin/sh", "-c", "exec >&- 2>&-; sleep 0.2; exit 3")
    assert (ended.how, ended.drained) == (Exited(3), True)


async def test_an_output_flood_is_counted_and_cut() -> None:
    async with open_world() as world:
        ended = await world.run(PYTHON, "-I", "-c", "import os\nfor _ in range(800): os.write(1, b'x' * 65536)")
    assert (len(ended.stdout.data), ended.stdout.total_bytes) == (1 << 20, 800 * 65536)
    assert ended.stdout.truncated
    assert not ended.stderr.truncated


async def test_an_endless_flood_ends_at_the_deadline() -> None:
    async with open_world() as world:
        ended = await world.run("/bin/sh", "-c", "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyy; done", timeout_s=0.3)
    assert ended.how == TimedOut(0.3)
    assert ended.stdout.total_bytes > 0


async def test_what_was_read_before_a_timeout_stays_read() -> None:
    async with open_world() as world:
        ended = await world.run("/bin/sh", "-c", "echo so far; sleep 86400", timeout_s=0.3)
    assert (ended.how, ended.stdout.data) == (TimedOut(0.3), b"so far\n")


async def test_sigterm_gives_a_program_its_grace() -> None:
    script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done"
    async with open_world() as world:
        ended = await world.run("/bin/sh", "-c", script, timeout_s=0.3, grace_s=5)
    assert (ended.how, ended.stdout.data) == (TimedOut(0.3), b"up\nbye\n")
    assert ended.duration_ms < 2000


@pytest.mark.parametrize(
    ("fields", "stage", "code"),
    [
        ({"program": "/bin/nothing-here"}, "exec", errno.ENOENT),
        ({"program": "/etc/passwd"}, "exec", errno.EACCES),
        ({"argv": ("/bin/true", "x" * (128 * 1024))}, "exec", errno.E2BIG),
        ({"argv": ("/bin/true", *["x" * 100_000] * 40)}, "exec", errno.E2BIG),
        ({"argv": ("/bin/true", "a\0b")}, "exec", None),
        ({"cwd": "/nothing-here"}, "chdir", errno.ENOENT),
        ({"cwd": "/etc/passwd"}, "chdir", errno.ENOTDIR),
    ],
)
async def test_a_failed_start_names_its_stage(fields: dict[str, Any], stage: str, code: int | None) -> None:
    async with open_world() as world:
        with pytest.raises(SpawnFailed) as caught:
            await world.run("/bin/true", **fields)
        assert (caught.value.stage, caught.value.errno) == (stage, code)
        if code is not None:
            assert caught.value.why == os.strerror(code)
        assert str(caught.value).endswith(
            f": {fields['cwd'] if stage == 'chdir' else fields.get('program', '/bin/true')}"
        )
        assert (await world.run("/bin/true")).how == Exited(0)


async def test_limits_hold_and_a_rule_can_replace_them() -> None:
    hog = (PYTHON, "-I", "-c", "print(len(bytearray(300 << 20)))")
    writer = ("/bin/sh", "-c", "ulimit -n; ulimit -c; exec /bin/cat /usr/bin/python3 > f")
    async with open_world() as world:
        assert (await world.run(*hog)).how == Exited(0)
        assert (await world.run(*hog, limits=Limits(memory_max_bytes=64 << 20))).how == Exited(1)
        ended = await world.run(*writer, limits=Limits(file_size_max_bytes=100_000, open_files_max=99))
        assert ended.stdout.data == b"99\n0\n"
        assert ended.how == Signalled(signal.SIGXFSZ)
        assert (world.home / "f").stat().st_size == 100_000


async def test_eight_commands_run_at_once() -> None:
    async with open_world() as world:
        running: list[int] = []
        all_up = trio.Event()

        async def one() -> None:
            ended = await world.run("/bin/sh", "-c", "read line; echo $line", stdin=b"now\n")
            assert ended.stdout.data == b"now\n"
            running.append(ended.pid)
            if len(running) == 8:
                all_up.set()
            await all_up.wait()

        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(one)
            assert len(set(running)) == 8
            running.clear()


async def test_a_leader_that_dies_while_it_waits_is_replaced() -> None:
    async with open_world() as world:
        await world.run("/bin/true", forked=True)
        await all_armed(world)
        leaders = [slot.leader_pid for slot in world.init.forking._free]
        assert all(leaders)
        for pid in leaders:
            os.kill(pid, signal.SIGKILL)
        await wait_exit(*leaders)
        assert (await world.run("/bin/true", forked=True)).how == Exited(0)


async def test_a_keeper_that_dies_while_it_waits_is_replaced() -> None:
    """It takes its leader with it, which is waited for: one just forked still has the keeper's end of the socket."""
    async with open_world() as world:
        await world.run("/bin/true")
        await all_armed(world)
        slots = world.pool._free
        keepers, leaders = [slot.keeper_pid for slot in slots], [slot.leader_pid for slot in slots if slot.leader_pid]
        assert keepers
        for pid in keepers:
            os.kill(pid, signal.SIGKILL)
        await wait_exit(*keepers, *leaders)
        assert (await world.run("/bin/true")).how == Exited(0)


async def test_a_process_of_the_session_can_be_signalled_and_no_other() -> None:
    async with open_world() as world:
        started: list[int] = []

        async def signal_it(nursery: trio.Nursery) -> None:
            for pid in (os.getpid(), world.init.pid, *keepers_of(world), 1, 2**31 - 1, 2**40):
                with pytest.raises(ProcessNotFound):
                    await world.init.signal(pid, 0)
            assert await world.init.descendants() == frozenset(started)
            await world.init.signal(started[0], signal.SIGUSR1)

        async with trio.open_nursery() as nursery:

            def on_started(pid: int) -> None:
                started.append(pid)
                nursery.start_soon(signal_it, nursery)

            ended = await world.run("/bin/sleep", "86400", on_started=on_started)
        assert ended.how == Signalled(signal.SIGUSR1)
        assert await world.init.descendants() == frozenset()
        with pytest.raises(ProcessNotFound):
            await world.init.signal(ended.pid, signal.SIGKILL)


def keepers_of(world: World) -> list[int]:
    return [entry.pid for entry in processes.descendants(world.init.pid) if entry.parent == world.init.pid]


@pytest.mark.bounded(60)
async def test_many_commands_leave_everything_as_it_was() -> None:
    async with open_world() as world:
        for _ in range(30):
            await world.run("/bin/true")
        before, threads = stray_fds(world), threading.active_count()
        for _ in range(400):
            assert (await world.run("/bin/true", stdin=b"x")).how == Exited(0)
        assert stray_fds(world) == before
        assert threading.active_count() <= threads  # an idle one may have ended meanwhile
        assert len(everything_below(world.init)) <= 10  # init, opener, two keepers or three, and their leaders


async def test_a_session_at_rest_gives_back_what_its_commands_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.init.keeper_pool.REST_S", 0.05)
    async with open_world() as world, trio.open_nursery() as nursery:
        await world.run("/bin/true")
        await all_armed(world)
        before = open_fds()
        async with trio.open_nursery() as together:
            for _ in range(5):
                together.start_soon(world.run, "/bin/sleep", "0.1")
        await all_armed(world)
        assert world.pool.size > 2
        assert open_fds() > before
        nursery.start_soon(world.init.rest)
        keepers = [slot.keeper_pid for slot in world.pool._free]
        while world.pool.size > 1:
            await trio.lowlevel.checkpoint()
        await all_armed(world)
        assert open_fds() == before
        await wait_exit(*(set(keepers) - {slot.keeper_pid for slot in world.pool._free}))
        assert (await world.run("/bin/true")).how == Exited(0)
        nursery.cancel_scope.cancel()


async def test_a_pool_that_grew_shrinks_again() -> None:
    async with open_world() as world:
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(world.run, "/bin/sleep", "0.2")
        grown = len(keepers_of(world))
        for _ in range(300):
            await world.run("/bin/true")
        assert grown >= 8
        assert len(keepers_of(world)) <= 4  # the opener, two slots, one that may be on its way out


async def test_a_spec_that_is_too_long_to_be_read_is_refused_before_anything_starts() -> None:
    async with open_world() as world:
        with pytest.raises(SpawnFailed, match="longer than the 16777216") as caught:
            await world.run("/bin/true", env={"A": "x" * (17 << 20)})
        assert caught.value.stage == "launch"
        assert (await world.run("/bin/true")).how == Exited(0)


@needs_landlock
async def test_memory_that_ends_before_the_program_began_is_no_exit_of_the_program() -> None:
    limits = Limits(memory_max_bytes=65536)  # which the process that would exec has long used up
    async with open_world() as world:
        with pytest.raises(SpawnFailed, match="out of memory") as caught:
            await world.run("/bin/true", limits=limits, exec_paths=tuple(f"/usr/bin/{n}" for n in range(20_000)))
        assert caught.value.stage == "exec_paths"
        assert (await world.run("/bin/true", exec_paths=world.walls.exec_paths)).how == Exited(0)
