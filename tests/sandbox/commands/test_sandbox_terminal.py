"""Commands on a terminal: theirs alone, the right size, and gone without a trace."""

from __future__ import annotations

import array
import fcntl
import select
import signal
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from sandbox.commands.run import open_command, run_command
from sandbox.commands.spill import Quota, Spill
from sandbox.commands.terminal import Size, open_terminal
from sandbox.commands.values import Ended, Exited, Partner, Signalled, Times
from tests.sandbox.init.test_sandbox_births import AS_ROOT, World, open_world, stray_fds, wait_exit
from tests.support.descriptors import open_descriptors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sandbox.commands.running import Command

PYTHON = "/usr/bin/python3"
TIOCGPTN = 0x80045430
SMALL = Size(rows=24, columns=80)


@attrs.define(eq=False)
class Talk:
    """A command that runs, and somebody to talk to it."""

    spill: Spill
    ended: list[Ended]
    command: Command | None = None
    pids: list[int] = attrs.field(factory=list)

    async def hear(self, text: bytes) -> bytes:
        """Wait until the command has said *text*; return all it said."""
        said = 0
        while text not in (page := await self.spill.read("both", 0, 1 << 20)).data:
            assert not self.ended or page.end > said, (self.ended[0], page.data)
            said = page.end
            await self.spill.wait_more("both", said)
        return page.data


@asynccontextmanager
async def talking(world: World, *argv: str, **fields: Any) -> AsyncIterator[Talk]:
    quota, folder = Quota(1 << 20, lambda _: None), str(world.home / "unused")
    spill = Spill(4096, folder, quota, trio.CapacityLimiter(1))
    talk = Talk(spill, [])
    launched = trio.Event()

    def have(command: Command) -> None:
        talk.command = command
        launched.set()

    async def run() -> None:
        plan = world.exec_plan(*argv, **{"terminal": SMALL, **fields})
        partner = Partner(spill=spill, on_launched=have)
        talk.ended.append(
            await run_command(
                world.init,
                plan,
                Times(timeout_s=20, grace_s=0.2, drain_s=0.3),
                output_bytes=0,
                partner=partner,
                on_started=talk.pids.append,
            )
        )
        spill.finish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await launched.wait()
        yield talk
        assert talk.command is not None


async def test_the_terminal_is_the_commands_own_and_has_its_size() -> None:
    script = "import os; print(*map(os.isatty, (0, 1, 2)), os.get_terminal_size(), os.tcgetpgrp(0) == os.getpid())"
    async with open_world() as world, talking(world, PYTHON, "-I", "-c", script) as talk:
        said = await talk.hear(b"\r\n")
    assert said == b"True True True os.terminal_size(columns=80, lines=24) True\r\n"
    assert talk.ended[0].how == Exited(0)


async def test_it_is_the_controlling_terminal() -> None:
    async with open_world() as world, talking(world, "/bin/sh", "-c", "echo via tty > /dev/tty") as talk:
        await talk.hear(b"via tty\r\n")
    assert talk.ended[0].how == Exited(0)


async def test_a_prompt_is_answered_and_ctrl_c_interrupts() -> None:
    # The signal kills at once: Python's own handler would wait for the end of a sleep that began right after it ran.
    script = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_DFL)
print('hello', input('name? '), flush=True)
time.sleep(86400)
"""
    async with open_world() as world, talking(world, PYTHON, "-I", "-c", script) as talk:
        await talk.hear(b"name? ")
        assert talk.command is not None
        talk.command.feed(b"Bob\n", last=False)
        await talk.hear(b"hello Bob")
        talk.command.feed(b"\x03", last=False)
    assert talk.ended[0].how == Signalled(signal.SIGINT)


async def test_the_end_of_input_is_typed() -> None:
    async with open_world() as world, talking(world, "/bin/cat") as talk:
        assert talk.command is not None
        talk.command.feed(b"line\n", last=True)
        await talk.hear(b"line\r\nline\r\n")
    assert talk.ended[0].how == Exited(0)


async def test_what_was_said_before_the_end_is_read_by_a_broker_that_was_busy() -> None:
    script = "import os, tty; tty.setraw(1); os.write(1, bytes(8_000) + b'last')"
    async with open_world() as world:
        plan = world.exec_plan(PYTHON, "-I", "-c", script, terminal=SMALL)
        async with open_command(world.init, plan, output_bytes=1 << 20) as command:
            await command.wait_started()
            while not command.ended:  # nothing is read meanwhile
                assert select.select([command.slot.sock], [], [], 10)[0]
                command.slot.read_news()
            drained = await command.drain(0)
        said = command.streams.stdout.captured().data
    assert (len(said), said[-4:], drained) == (8_004, b"last", True)


async def test_a_new_size_is_told_to_the_program() -> None:
    script = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
print('up', flush=True)
signal.sigwait([signal.SIGWINCH])
print('now', os.get_terminal_size(), flush=True)
"""
    async with open_world() as world, talking(world, PYTHON, "-I", "-c", script) as talk:
        await talk.hear(b"up")
        assert talk.command is not None
        assert talk.command.resize(Size(rows=50, columns=132))
        said = await talk.hear(b")\r\n")
    assert b"columns=132, lines=50" in said
    assert not talk.command.resize(SMALL)


INJECT = """
import fcntl, sys, termios
try:
    for letter in b'x\\n':
        fcntl.ioctl(int(sys.argv[1]), termios.TIOCSTI, bytes([letter]))
    print('pushed', flush=True)
except OSError as error:
    print('refused', error.errno, flush=True)
"""


async def test_what_is_pushed_into_a_terminal_stays_in_it() -> None:
    """The control: on its own terminal a program may reach itself (unless the kernel refuses even that)."""
    async with open_world() as world:
        async with talking(world, PYTHON, "-I", "-c", INJECT, "0") as talk:
            await talk.hear(b"ed")  # pushed, or refused
        without = await world.run(PYTHON, "-I", "-c", INJECT, "0")
        assert b"refused" in without.stdout.data  # there is no terminal
        tty = await world.run("/bin/sh", "-c", ": < /dev/tty")
        assert tty.how != Exited(0)


@pytest.mark.skipif(not AS_ROOT, reason="started as a plain user, all sessions are that user's")
async def test_no_command_opens_another_ones_terminal() -> None:
    opener = "import os, sys\ntry: print(os.open(sys.argv[1], os.O_RDWR))\nexcept PermissionError: print('refused')"
    async with open_world() as world, talking(world, "/bin/cat") as talk:
        assert talk.command is not None
        number = array.array("i", [0])
        fcntl.ioctl(talk.command.streams.stdout.fd, TIOCGPTN, number)
        name = f"/dev/pts/{number[0]}"
        assert (await world.run(PYTHON, "-I", "-c", opener, name)).stdout.data == b"refused\n"
        talk.command.feed(b"", last=True)


@pytest.mark.parametrize("script", ["exit 3", "sleep 86400", "trap '' HUP TERM INT; sleep 86400 & sleep 86400"])
async def test_nothing_of_a_terminal_is_left_however_it_ends(script: str) -> None:
    async with open_world() as world:
        await world.run("/bin/true")
        before = stray_fds(world)
        with trio.CancelScope() as gone:
            async with talking(world, "/bin/sh", "-c", f"echo up; {script}") as talk:
                await talk.hear(b"up")
                gone.cancel()
        await wait_exit(*talk.pids)
        assert await world.init.descendants() == frozenset()
        assert stray_fds(world) == before


async def test_a_program_that_closes_its_terminal_may_go_on() -> None:
    async with open_world() as world, talking(world, "/bin/sh", "-c", "exec <&- >&- 2>&-; exit 4") as talk:
        pass
    assert talk.ended[0].how == Exited(4)


def test_a_terminal_that_cannot_be_made_ready_is_not_left_open() -> None:
    before = open_descriptors()
    with pytest.raises(struct.error):
        open_terminal(Size(rows=1 << 16, columns=80))
    assert open_descriptors() == before
