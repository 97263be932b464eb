"""What the broker says on stderr when nobody reads it: dropped, counted, and never waited for."""

from __future__ import annotations

import array
import fcntl
import json
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from broker.logs import LAST_WORDS_S, WAITING_BYTES, StderrHandler
from tests.support.live import (
    ROOT,
    START_BOUND_S,
    LiveBroker,
    Printed,
    connect,
    free_port,
    live_folder,
    new_session,
    ok,
    write_config,
)

SET_PIPE_SIZE = 1031
PIPE_BYTES = 4096
LINE_BYTES = 400
"""What no line of this test is longer than: the kernel does not break one up for the last bytes of a page."""
DROPPED = re.compile(r"(\d+) lines were dropped here")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that holds a page."""
    read, write = os.pipe()
    fcntl.fcntl(write, SET_PIPE_SIZE, PIPE_BYTES)
    yield read, write
    os.close(read)
    os.close(write)


def teller(
    fd: int, *, waiting_bytes: int = WAITING_BYTES, last_words_s: float = LAST_WORDS_S
) -> tuple[logging.Logger, StderrHandler]:
    """A logger of its own that tells it all."""
    handler = StderrHandler(fd, waiting_bytes=waiting_bytes, last_words_s=last_words_s)
    logger = logging.Logger("of the test")  # noqa: LOG001  nobody else's, and gone with the test
    logger.addHandler(handler)
    return logger, handler


def waiting(fd: int) -> int:
    """Bytes in a pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def more(fd: int) -> bytes:
    """What is in a pipe, or comes in the time of a start."""
    assert select.select([fd], [], [], START_BOUND_S)[0], "nothing more is said"
    return os.read(fd, 65536)


def told_or_counted(said: bytes) -> int:
    """How many lines of a test the log has, or says that it has not."""
    whole = said[: said.rfind(b"\n") + 1].decode()
    return len(re.findall("line \\d{4} ", whole)) + sum(map(int, DROPPED.findall(whole)))


def test_what_nobody_reads_is_dropped_and_counted(pipe: tuple[int, int]) -> None:
    read, write = pipe
    logger, handler = teller(write, waiting_bytes=10_000, last_words_s=0.1)
    for number in range(5000):
        logger.warning("line %04d %s", number, "x" * 90)
    handler.flush()
    assert waiting(read) == PIPE_BYTES, "the control: nobody reads"
    said = b""
    while told_or_counted(said) < 5000:
        said += more(read)
    assert told_or_counted(said) == 5000
    told = re.findall(r"line (\d{4})", said.decode())
    assert told == sorted(told)
    assert len(told) < 5000
    logger.warning("and on")
    handler.flush()
    assert os.read(read, 65536).endswith(b"and on\n")


def test_who_shares_the_descriptor_may_have_made_it_one_that_does_not_block(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.set_blocking(write, False)
    logger, handler = teller(write, last_words_s=5)
    for number in range(200):
        logger.warning("line %04d %s", number, "x" * 90)
    said = b""
    while said.count(b"\n") < 200:
        said += more(read)
    handler.flush()
    assert waiting(read) == 0
    assert not DROPPED.search(said.decode())


def test_a_line_that_cannot_be_put_into_words_ends_nobody(pipe: tuple[int, int]) -> None:
    logger, handler = teller(pipe[1])
    logger.warning("%d", "no number")
    logger.warning("\ud800")
    handler.flush()
    said = os.read(pipe[0], 65536).decode()
    assert "\\ud800\n" in said
    assert DROPPED.search(said)


def test_a_reader_that_is_gone_ends_nobody(pipe: tuple[int, int]) -> None:
    read, write = os.pipe()
    os.close(read)
    logger, handler = teller(write, last_words_s=5)
    logger.warning("to nobody")
    handler.flush()
    os.close(write)


def test_what_is_said_last_is_written_before_the_program_ends(tmp_path: Path) -> None:
    code = "import logging; from broker.logs import configure_logging; configure_logging('INFO', 'json')\n"
    code += "for n in range(1000): logging.info('line %d', n)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == [f"line {n}" for n in range(1000)]


@contextmanager
def killed(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End what is left of it on the way out."""
    try:
        yield
    finally:
        process.kill()
        process.wait()


def busy(port: int) -> socket.socket:
    """Return a connection with half a request; to refuse one beyond the limit is worth a line."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 9\r\n\r\n{" % port)
    return connection


@pytest.mark.bounded(90)
async def test_a_broker_whose_stderr_nobody_reads_answers_and_stops() -> None:
    with live_folder() as base:
        write_config(base, {"logging": {"level": "DEBUG"}, "max_connections": 8})
        port = free_port()
        command = [sys.executable, "-m", "broker", "--config-dir", str(base / "config"), "--port", str(port)]
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        with killed(process), process.stdout, process.stderr:
            fcntl.fcntl(process.stderr, SET_PIPE_SIZE, PIPE_BYTES)
            heard = b""
            while b"/mcp" not in heard:
                heard += (said := more(process.stdout.fileno()))
                assert said, "it has ended"
            os.read(process.stderr.fileno(), 65536)  # and never again
            broker = LiveBroker(base=base, host="127.0.0.1", port=port, process=process, printed=Printed())
            async with connect(broker) as client:
                session_id = await new_session(client)
                with ExitStack() as too_many:
                    while waiting(process.stderr.fileno()) < PIPE_BYTES - LINE_BYTES:
                        too_many.enter_context(busy(port))
                        await trio.sleep(0.01)
                    for _ in range(50):
                        too_many.enter_context(busy(port))
                await ok(client, "list_directory", session_id=session_id, path=".")
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
