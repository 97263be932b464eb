"""Nothing that a session writes decides what type a broker finds, and no content holds up a broker.

Where the machine's own database must be another, or none, the broker runs in a mount namespace that has it so.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.support.live import LiveBroker, broker_in, call, connect, live_folder, write_config
from tests.support.live_plain_user import plain_user
from tests.support.magicfiles import (
    CLAIM,
    CLAIMED,
    HANG,
    compiled,
    database,
    home_with_magic,
    library,
    told_by_a_plain_libmagic,
)

pytestmark = [pytest.mark.bounded(90), pytest.mark.long, pytest.mark.once]
MOUNT = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
READ_S = 10.0
"""For an answer: far more than the sniffer's bounds, far less than a pattern that hangs takes."""


@contextmanager
def broker_that_finds(source: Path | str, at: str) -> Iterator[LiveBroker]:
    """A broker of root that finds *source* where the machine has *at*; skips where that cannot be had."""
    enter = ("unshare", "--mount", "--", "sh", "-c", MOUNT, "sh", str(source), at)
    if shutil.which(enter[0]) is None or subprocess.run([*enter, "true"], check=False, capture_output=True).returncode:
        pytest.skip("mounting something over a file takes root")
    with live_folder() as base:
        write_config(base)
        with broker_in(base, python=(*enter, sys.executable)) as broker:
            yield broker


async def type_of(broker: LiveBroker, name: str, content: bytes) -> str:
    """The type that a session of its own gets for a file."""
    path = broker.workspace / name
    path.write_bytes(content)
    async with connect(broker) as client:
        session = (await call(client, "create_session"))["session_id"]
        with trio.fail_after(READ_S):
            answer = await call(client, "read_file", session_id=session, path=str(path))
        return str(answer["mime_type"])


def sniffers(broker: LiveBroker) -> list[int]:
    return [each.pid for each in broker.family() if "sandbox.inside.sniffer" in _command_line(each.pid)]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it ended meanwhile
        return ""


def said_of_types(broker: LiveBroker) -> list[str]:
    return [line.partition("types of files: ")[2] for line in broker.printed.lines if "types of files: " in line]


async def until_it_said(broker: LiveBroker) -> None:
    """A busy machine may take longer to start the sniffer than a question waits: ask until the broker speaks of it."""
    while not said_of_types(broker):
        await type_of(broker, "first", b"first\n")


async def require_honest(broker: LiveBroker) -> None:
    assert await type_of(broker, "claim.png", CLAIM) == "text/plain"
    assert await type_of(broker, "hang.png", HANG) == "text/plain"


@pytest.mark.parametrize("kind", ["as it is started here", "of a plain user"])
async def test_a_magic_file_in_the_home_is_not_obeyed(kind: str) -> None:
    await database()
    with live_folder() as base:
        write_config(base)
        home = home_with_magic(base)
        assert told_by_a_plain_libmagic(CLAIM, HOME=str(home)) == CLAIMED, "the control"
        python: Sequence[str] = (sys.executable,)
        environment = {**os.environ}
        if kind == "of a plain user":
            user = plain_user(base)
            python, environment = user.python, {**user.environment}
        environment |= {"HOME": str(home), "MAGIC": str(home / ".magic")}
        with broker_in(base, python=python, environment=environment) as broker:
            await until_it_said(broker)
            await require_honest(broker)
            assert len(sniffers(broker)) == 1
            assert broker.stop() == 0


async def test_content_on_which_libmagic_hangs_delays_nobody_beyond_a_bound(tmp_path: Path) -> None:
    place = await database()
    with broker_that_finds(compiled(tmp_path), place) as broker:
        await until_it_said(broker)
        assert await type_of(broker, "claim", CLAIM) == CLAIMED, "the control: this broker has the other database"
        with pytest.raises(subprocess.TimeoutExpired):  # the other control
            told_by_a_plain_libmagic(HANG, 2.0, MAGIC=str(tmp_path / "evil.mgc"))
        types: dict[str, str] = {}

        async def read(name: str, content: bytes) -> None:
            types[name] = await type_of(broker, name, content)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(read, f"hang{number}.json", HANG + bytes([number]))
        assert types == {f"hang{number}.json": "application/json" for number in range(8)}
        assert await type_of(broker, "again.json", CLAIM) == CLAIMED
        assert broker.stop() == 0


async def test_a_broker_whose_sniffer_is_stopped_ends_at_once() -> None:
    await database()
    with live_folder() as base:
        write_config(base)
        with broker_in(base) as broker:
            await until_it_said(broker)
            assert await type_of(broker, "text", b"hello\n") == "text/plain"
            (pid,) = sniffers(broker)
            os.kill(pid, signal.SIGSTOP)
            (broker.workspace / "other").write_bytes(b"other\n")
            async with connect(broker) as client, trio.open_nursery() as nursery:
                session = (await call(client, "create_session"))["session_id"]
                path = str(broker.workspace / "other")
                nursery.start_soon(functools.partial(call, client, "read_file", session_id=session, path=path))
                with trio.fail_after(READ_S):
                    while not any(path in str(record) for record in broker.audit()):
                        await trio.sleep(0.01)
                begun = time.monotonic()
                assert await trio.to_thread.run_sync(broker.stop) == 0
                assert time.monotonic() - begun < READ_S
            assert not os.path.exists(f"/proc/{pid}")


async def test_without_libmagic_names_tell_and_the_broker_says_why() -> None:
    await database()
    with broker_that_finds("/dev/null", library()) as broker:
        assert await type_of(broker, "x.json", b"\x89PNG\r\n\x1a\n") == "application/json"
        assert await type_of(broker, "y.json", b"\x89PNG\r\n\x1a\n") == "application/json"
        assert broker.stop() == 0
        (said,) = said_of_types(broker)
        assert said.startswith("types are guessed from names: failed to find libmagic")


async def test_a_database_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    place, evil = await database(), compiled(tmp_path)
    evil.chmod(0o666)
    with broker_that_finds(evil, place) as broker:
        assert await type_of(broker, "x.json", CLAIM) == "application/json"
        assert broker.stop() == 0
        (said,) = said_of_types(broker)
        assert "could be changed by others than root" in said
    assert told_by_a_plain_libmagic(CLAIM, MAGIC=str(evil)) == CLAIMED, "the control"
