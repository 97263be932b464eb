"""What a command gets and what is answered: exactly the spec, nothing of the broker's, every way to end."""

from __future__ import annotations

import errno
import os
import signal
import threading

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from test_sandbox_births import AS_ROOT, World, everything_below, open_fds, open_world, wait_exit

from sandbox import trees
from sandbox.command import Exited, Signalled, TimedOut
from sandbox.faults import ProcessNotFound, SpawnFailed
from sandbox.plan import Limits
from sandbox.streams import Output

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
    assert {status[name].strip() for name in ("SigBlk", "SigIgn", "SigCgt")} == {"0000000000000000"}
    assert (status["NoNewPrivs"].strip(), status["Umask"].strip()) == ("1", "0022")
    _, group, session = ended.stdout.data.rsplit(b") ", 1)[1].split()[1:4]
    assert int(group) == int(session) == ended.pid


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
        ended = await world.run(PYTHON, "-I", "-c", "import sys; print(len(sys.stdin.buffer.read()))", stdin=b"x" * size)
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
async def test_a_failed_start_names_its_stage(fields: dict[str, object], stage: str, code: int | None) -> None:
    async with open_world() as world:
        with pytest.raises(SpawnFailed) as caught:
            await world.run("/bin/true", **fields)
        assert (caught.value.stage, caught.value.errno) == (stage, code)
        if code is not None:
            assert caught.value.why == os.strerror(code)
        assert (await world.run("/bin/true")).how == Exited(0)


async def test_limits_hold_and_a_rule_can_replace_them() -> None:
    hog = (PYTHON, "-I", "-c", "print(len(bytearray(300 << 20)))")
    writer = ("/bin/sh", "-c", "ulimit -n; ulimit -c; exec /usr/bin/python3 -I -c \"open('f','wb').write(b'x'*200000)\"")
    async with open_world() as world:
        assert (await world.run(*hog)).how == Exited(0)
        assert (await world.run(*hog, limits=Limits(memory_max_bytes=64 << 20))).how == Exited(1)
        ended = await world.run(*writer, limits=Limits(file_size_max_bytes=100_000, open_files_max=99))
        assert ended.stdout.data == b"99\n0\n"
        assert ended.how != Exited(0)


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


async def test_a_killed_keeper_ends_its_command_and_its_orphans() -> None:
    async with open_world() as world:
        pids: list[int] = []

        async def kill_keeper(pid: int) -> None:
            entry = trees.read_entry(pid)
            assert entry is not None
            while len(trees.descendants(entry.parent)) < 2:
                await trio.lowlevel.checkpoint()
            pids.extend(entry.pid for entry in trees.descendants(entry.parent))
            os.kill(entry.parent, signal.SIGKILL)

        async with trio.open_nursery() as nursery:
            ended = await run_watched(world, nursery, kill_keeper, "setsid sleep 86400 & sleep 86400; exit 1")
        assert ended == Signalled(signal.SIGKILL)
        await wait_exit(*pids)
        assert (await world.run("/bin/true")).how == Exited(0)


async def run_watched(world: World, nursery: trio.Nursery, watcher: object, script: str) -> object:
    from sandbox.command import run_command  # noqa: PLC0415 - only here

    ended = await run_command(
        world.init,
        world.exec_plan("/bin/sh", "-c", script.replace("setsid", f"{PYTHON} -I -c 'import os; os.setsid(); os.execv(\"/bin/sleep\", [\"sleep\", \"86400\"])' #")
        if False else script),
        timeout_s=10,
        grace_s=0.2,
        drain_s=0.2,
        output_bytes=1000,
        on_started=lambda pid: nursery.start_soon(watcher, pid),  # type: ignore[arg-type]
    )
    return ended.how
