"""The sniffer tells types by content, obeys no database but libmagic's own, and holds nobody up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio

from sandbox.inside.sniffer import NOBODY
from sandbox.kernel import landlock
from sandbox.protocol.commands import PACKET_BYTES
from sandbox.sniffing import LOOK_S, UNASKED, Sniffing, open_sniffing
from tests.support.magicfiles import CLAIM, CLAIMED, HANG, home_with_magic, told_by_a_plain_libmagic

pytestmark = [pytest.mark.long, pytest.mark.once]

PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452")
ROOM_S = 3.0
"""More than any bound of the sniffer, for a machine under load."""
SAMPLES = ("/bin/sh", "/bin/ls", "/etc/passwd", "/usr/share/dict/words", "/usr/lib/locale/C.utf8/LC_CTYPE", __file__)


@asynccontextmanager
async def sniffer(said: list[str] | None = None) -> AsyncIterator[Sniffing]:
    """One with the process running; skips where there is no libmagic."""
    lines = [] if said is None else said
    async with open_sniffing(say=lines.append) as sniffing:
        while sniffing.report == UNASKED:  # a busy machine may take longer to start it than a question waits
            await sniffing.look(b"x")
        if not sniffing.report.startswith("libmagic "):
            pytest.skip(sniffing.report)
        yield sniffing


async def killed(pid: int) -> None:
    """Kill it, and leave it to its owner to reap it."""
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def process(sniffing: Sniffing) -> psutil.Process:
    assert sniffing.pid is not None
    return psutil.Process(sniffing.pid)


async def test_it_tells_types_by_content_and_says_what_that_rests_on() -> None:
    async with sniffer() as sniffing:
        assert await sniffing.look(PNG) == "image/png"
        assert await sniffing.look(b"\xff\xfe" * 2048)
        assert ".mgc; its walls: " in sniffing.report


async def test_it_says_what_a_libmagic_without_walls_says() -> None:
    heads = [Path(sample).read_bytes()[:4096] for sample in SAMPLES if Path(sample).is_file()]
    async with sniffer() as sniffing:
        assert [await sniffing.look(head) for head in heads] == [told_by_a_plain_libmagic(head) for head in heads]


async def test_nobody_who_does_not_ask_pays_for_it() -> None:
    async with open_sniffing(say=lambda _: None) as sniffing:
        assert sniffing.pid is None
        assert sniffing.report == UNASKED


async def test_a_database_in_the_home_or_the_environment_is_not_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = home_with_magic(tmp_path)
    async with sniffer() as sniffing:
        honest = await sniffing.look(CLAIM)
    for name, value in (("HOME", home), ("MAGIC", home / ".magic")):
        assert told_by_a_plain_libmagic(CLAIM, **{name: str(value)}) == CLAIMED, "the control"
        with pytest.raises(subprocess.TimeoutExpired):  # the other control
            told_by_a_plain_libmagic(HANG, 1.0, **{name: str(value)})
        monkeypatch.setenv(name, str(value))
    async with sniffer() as sniffing:
        assert await sniffing.look(CLAIM) == honest == "text/plain"
        assert await sniffing.look(HANG) == "text/plain"


async def test_it_holds_nothing_but_its_socket_and_may_do_nothing() -> None:
    async with sniffer() as sniffing:
        assert await sniffing.look(PNG) == "image/png"
        folder = Path(f"/proc/{sniffing.pid}")
        status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
        assert status["NoNewPrivs"] == "1"
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
        if "a system call filter" in sniffing.report:
            assert status["Seccomp"] == "2"
        if os.geteuid() == 0:
            assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(NOBODY)}
            assert os.listdir(folder / "fd") == ["3"]
            assert (folder / "environ").read_bytes() == b""
        else:  # not dumpable: not even its own user may look
            with pytest.raises(PermissionError):
                os.listdir(folder / "fd")


def test_where_the_kernel_has_walls_they_are_raised() -> None:
    async def report() -> str:
        async with sniffer() as sniffing:
            return sniffing.report

    said = trio.run(report)
    assert ("Landlock ABI" in said) == bool(landlock.abi()[0])


async def test_one_that_is_stopped_delays_an_answer_by_its_bound_and_is_replaced() -> None:
    said: list[str] = []
    async with sniffer(said) as sniffing:
        first = process(sniffing)
        first.send_signal(signal.SIGSTOP)
        with trio.fail_after(LOOK_S + ROOM_S):
            assert await sniffing.look(PNG) is None
        assert not first.is_running()
        assert "its name tells its type" in said[-1]
        assert await sniffing.look(PNG + b"\0") == "image/png"
        second = sniffing.pid
        assert await sniffing.look(PNG) is None  # what had no answer once is not asked about again
        assert sniffing.pid == second != first.pid


async def test_one_that_was_killed_is_replaced_within_the_question() -> None:
    async with sniffer() as sniffing:
        first = process(sniffing)
        await killed(first.pid)
        assert await sniffing.look(PNG) == "image/png"
        assert sniffing.pid != first.pid


async def test_who_leaves_disturbs_nobody_who_stays() -> None:
    async with sniffer() as sniffing:
        before = sniffing.pid
        for _ in range(50):
            with trio.move_on_after(0):
                await sniffing.look(os.urandom(4096))
            assert await sniffing.look(PNG) == "image/png"
        assert sniffing.pid == before


async def test_many_ask_at_once_and_each_gets_its_own_answer() -> None:
    answers: dict[int, list[str | None]] = {}
    heads = (
        (PNG, "image/png"),
        (b"%PDF-1.7\n", "application/pdf"),
        (b"GIF89a", "image/gif"),
        (b"hello\n", "text/plain"),
    )

    async def ask(number: int) -> None:
        answers[number] = [await sniffing.look(heads[number % len(heads)][0]) for _ in range(20)]

    async with sniffer() as sniffing:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(ask, number)
        assert answers == {number: [heads[number % len(heads)][1]] * 20 for number in range(8)}


async def test_those_who_wait_behind_one_that_hangs_wait_a_bounded_time() -> None:
    async with sniffer() as sniffing:
        process(sniffing).send_signal(signal.SIGSTOP)
        late = []

        async def ask(number: int) -> None:
            begun = trio.current_time()
            await sniffing.look(PNG + bytes([number]))
            late.append(trio.current_time() - begun)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(ask, number)
        assert len(late) == 8
        assert max(late) < LOOK_S + ROOM_S
        assert await sniffing.look(PNG) == "image/png"


@pytest.mark.parametrize("size", [0, PACKET_BYTES + 1])
async def test_no_beginning_is_longer_than_a_packet_or_empty(size: int) -> None:
    async with open_sniffing(say=lambda _: None) as sniffing:
        with pytest.raises(ValueError, match="1 to 65536 bytes"):
            await sniffing.look(bytes(size))


async def test_a_beginning_as_long_as_a_packet_is_answered() -> None:
    async with sniffer() as sniffing:
        assert await sniffing.look(PNG.ljust(PACKET_BYTES, b"\0")) == "image/png"


@pytest.mark.parametrize("module_name", ["no_such_magic", "json"])
async def test_without_the_library_it_says_so_once_and_answers_at_once(module_name: str) -> None:
    said: list[str] = []
    async with open_sniffing(say=said.append, module_name=module_name) as sniffing:
        for _ in range(3):
            assert await sniffing.look(PNG) is None
        assert sniffing.pid is None
        assert sniffing.report.startswith("types are guessed from names: ")
        assert said == [sniffing.report]


async def test_it_ends_with_its_block_even_if_it_is_stopped() -> None:
    async with sniffer() as sniffing:
        running = process(sniffing)
        running.send_signal(signal.SIGSTOP)
        begun = trio.current_time()
    assert trio.current_time() - begun < ROOM_S
    assert not running.is_running()


def test_it_ends_with_a_broker_that_is_killed() -> None:
    code = (
        "import sys, trio\nfrom sandbox.sniffing import open_sniffing\n"
        "async def main():\n"
        "    async with open_sniffing(say=lambda _: None) as sniffing:\n"
        "        await sniffing.look(b'x')\n"
        "        print(sniffing.pid or 0, flush=True)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as broker:
        assert broker.stdout is not None
        pid = int(broker.stdout.readline())
        if not pid:
            broker.kill()
            pytest.skip("there is no libmagic here")
        pidfd = os.pidfd_open(pid)
        broker.kill()
    try:
        trio.run(_wait_readable, pidfd)
    finally:
        os.close(pidfd)


async def _wait_readable(fd: int) -> None:
    with trio.fail_after(ROOM_S):
        await trio.lowlevel.wait_readable(fd)
