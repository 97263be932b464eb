"""What the opener and its workers are asked: each message has a type, and what is not legal is refused."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sandbox import wire
from sandbox.files import opener_client, trees
from sandbox.files.errors import WriteFailed
from sandbox.inside.opener import main as opener
from sandbox.inside.worker import main as worker
from sandbox.protocol.files import TO_OPENER, TO_WORKER
from tests.support.door import open_door, start_opener

# --- what is legal


def test_the_tables_of_both_sides_have_the_same_names() -> None:
    asked = {str(op) for op in vars(opener_client).values() if isinstance(op, opener_client.Op)}
    jobs = {str(job) for job in vars(trees).values() if isinstance(job, trees.TreeJob)}
    assert asked == opener.TABLE.keys() == TO_OPENER.keys()
    assert jobs | {"hash"} == worker.TABLE.keys() == TO_WORKER["new"].keys()


@contextmanager
def opener_at_work(*, tmpfile: bool = True) -> Iterator[socket.socket]:
    ours, process = start_opener(tmpfile=tmpfile)
    try:
        with ours:
            yield ours
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def answered(sock: socket.socket, message: dict[str, Any], *fds: int) -> dict[str, Any]:
    """Ask, and return the answer, whose descriptors are closed."""
    wire.send(sock, {"n": 1, **message}, fds)
    received = wire.receive(sock)
    assert received is not None
    for fd in received[1]:
        os.close(fd)
    assert received[0].pop("n") == 1
    return received[0]


ILLEGAL = {"refused": "", "errno": errno.EPROTO, "why": ""}


@pytest.mark.parametrize(
    ("message", "descriptors"),
    [
        ({"op": "format"}, 0),
        ({"op": "answer"}, 0),  # a method, and no request
        ({"op": ""}, 0),
        ({"op": "resolve", "path": "/", "read": False}, 1),
        ({"op": "part", "name": "x"}, 0),
        ({"op": "rename", "name": "x", "new_name": "y", "identity": [1, 1], "replace": True}, 1),
        ({"op": "worker"}, 1),
        ({"op": "commit", "name": "x", "hidden": "y", "replace": True, "expect": None}, 2),  # there was no such part
    ],
    ids=str,
)
def test_what_is_not_legal_is_refused_and_the_opener_goes_on(
    tmp_path: Path, message: dict[str, Any], descriptors: int
) -> None:
    (tmp_path / "y").write_text("stays")
    with opener_at_work() as sock:
        folder = os.open(tmp_path, os.O_RDONLY)
        assert answered(sock, message, *[folder] * descriptors) == ILLEGAL
        os.close(folder)
        assert answered(sock, {"op": "resolve", "path": str(tmp_path), "read": True})["kind"] == "directory"
    assert [path.name for path in tmp_path.iterdir()] == ["y"]


def test_a_part_with_a_name_is_committed_once_between_its_start_and_its_discard(tmp_path: Path) -> None:
    with opener_at_work(tmpfile=False) as sock:
        folder = os.open(tmp_path, os.O_RDONLY)
        hidden = answered(sock, {"op": "part", "name": "x"}, folder)["hidden"]
        part = os.open(tmp_path / hidden, os.O_RDWR)
        commit = {"op": "commit", "name": "x", "hidden": hidden, "replace": True, "expect": None}
        assert answered(sock, commit, part, folder) == {}
        assert answered(sock, commit, part, folder) == ILLEGAL
        assert answered(sock, {"op": "discard", "hidden": hidden}) == {}
        assert answered(sock, commit, part, folder) == ILLEGAL
        for fd in (part, folder):
            os.close(fd)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("job", ["format", "serve", "survey", "hash"])  # the last two without what they work on
async def test_a_job_that_is_not_legal_is_refused(job: str, tmp_path: Path) -> None:
    async with open_door() as door:
        with pytest.raises(WriteFailed, match="Protocol error") as caught:
            await door.files.trees.run(job, str(tmp_path), {}, (), timeout_s=20)
        assert caught.value.errno_name == "EPROTO"


async def test_a_worker_that_hashes_hears_nothing_but_wishes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    async with open_door() as door:
        with await door.files.resolve(str(tmp_path / "f"), read=True) as found:
            for said, fds in (({"op": "hash"}, 0), ({}, 0), ({"until": 1}, 1)):
                hasher = await door.files.hashes.start("f", found.file())
                hasher.ask(said, *[found.file()] * fds)
                with pytest.raises(WriteFailed, match="Protocol error"):
                    await hasher._answer()
                hasher.end()
            assert (await door.files.hashes.whole("f", found.file(), 1))[0] == 1
