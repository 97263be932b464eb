"""A disk that fails to flush a directory, under each tool of a real broker: strace answers fsync of it with EIO."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.live import LiveBroker, call, connect, new_session, ok, running_broker

STRACE = shutil.which("strace")
pytestmark = [
    pytest.mark.long,
    pytest.mark.once,
    pytest.mark.skipif(STRACE is None, reason="needs strace"),
]
FSYNC_FAILS = ("-e", "trace=fsync", "-e", "inject=fsync:error=EIO")
END_BOUND_S = 10


@contextmanager
def bad_disk(broker: LiveBroker, folder: Path) -> Iterator[None]:
    """While inside, no flush of *folder* succeeds, neither the broker's nor one of a process of its session."""
    pids = [broker.process.pid, *(process.pid for process in broker.family())]
    command = [STRACE or "", "-f", "-P", str(folder), *FSYNC_FAILS, "-o", "/dev/null"]
    command += [f"--attach={pid}" for pid in pids]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        said = [strace.stderr.readline() for _ in pids]  # of some it may not attach to, as of a session's first process
        if not any(line.split()[1:4] == ["Process", str(pids[0]), "attached"] for line in said):
            strace.terminate()
            strace.communicate(timeout=END_BOUND_S)
            pytest.skip(f"strace may not attach: {said}")
        try:
            yield
        finally:
            strace.terminate()
            strace.communicate(timeout=END_BOUND_S)


def contents(folder: Path) -> dict[str, str | None]:
    return {path.name: path.read_text() if path.is_file() else None for path in folder.iterdir()}


CHANGES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, str | None]]] = {
    "write_file": ({"path": "new", "content": "new"}, {"file": "old", "new": "new"}),
    "edit_file": ({"path": "file", "old_text": "old", "new_text": "new"}, {"file": "new"}),
    "upload_file": (
        {"path": "file", "chunk_data": base64.b64encode(b"new").decode(), "is_last": True},
        {"file": "new"},
    ),
    "copy_path": ({"source": "file", "destination": "copy"}, {"file": "old", "copy": "old"}),
    "move_path": ({"source": "file", "destination": "moved"}, {"moved": "old"}),
    "make_directory": ({"path": "made"}, {"file": "old", "made": None}),
    "delete_path": ({"path": "file"}, {}),
}


@pytest.fixture(scope="module")
def broker() -> Iterator[LiveBroker]:
    with running_broker() as running:
        yield running


@pytest.mark.parametrize("tool", CHANGES)
async def test_no_tool_says_that_nothing_was_done_when_it_was(broker: LiveBroker, tool: str) -> None:
    folder = broker.workspace / tool
    folder.mkdir()
    arguments, left = CHANGES[tool]
    async with connect(broker) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        folder.chmod(0o777)
        named = {name: f"{tool}/{value}" for name, value in arguments.items() if name in PATHS}
        change = {**arguments, **named, "session_id": session_id}
        await ok(client, "write_file", session_id=session_id, path=f"{tool}/file", content="old")
        with bad_disk(broker, folder):
            answer = await call(client, tool, **change)
        assert answer.error == ("FILE_010", "FILE_OUTCOME_UNKNOWN")
        assert contents(folder) == left
        details = answer["error_details"]
        assert details["path"].startswith(str(folder))
        if tool in {"write_file", "edit_file", "upload_file"}:
            assert (details["size_bytes"], details["sha256"]) == (3, hashlib.sha256(b"new").hexdigest())
        # The control: on a disk that works it is as it always was.
        await ok(client, "write_file", session_id=session_id, path=f"{tool}/file", content="next")


PATHS = ("path", "source", "destination")
