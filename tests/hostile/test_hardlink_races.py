"""A closed file's second name is never taken for an innocent one, whatever moves while its names are looked for.

The control is the same look by names, one path after the other, as it was once: it must be fooled.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.broker.tools.test_filetools import session
from tests.support.whole import Whole

pytestmark = [pytest.mark.long, pytest.mark.once]

MARKER = "TOP-SECRET-MARKER"
ROUNDS = 40
CONTROL_ROUNDS = 100_000
CONTROL_S = 20.0
SWAP = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print("up", flush=True)
while True:  # RENAME_EXCHANGE: there is always something by both names
    assert libc.renameat2(-100, b"door", -100, b"other", 2) == 0, os.strerror(ctypes.get_errno())
"""
FLIP = """
import os
print("up", flush=True)
while True:
    os.rename("a/x", "b/y")
    os.rename("b/y", "a/x")
"""
RACERS: Mapping[str, tuple[str, str]] = {
    "a directory is swapped for a link": (SWAP, "x"),
    "the name moves": (FLIP, "a/x"),
}
"""Each with the open name of the closed file."""


def lay(work: Path, name: str = "x") -> None:
    """A closed file with a second, open name, directories to swap and to move between; a file with two open names."""
    (work / "z/deep/.ssh").mkdir(parents=True)
    (work / "z/deep/.ssh/id").write_text(MARKER)
    for folder in ("a", "b", "door"):
        (work / folder).mkdir()
    (work / "other").symlink_to("z/deep/.ssh")
    os.link(work / "z/deep/.ssh/id", work / name)
    (work / "one").write_text("text")
    os.link(work / "one", work / "two")
    for path in (work, *work.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o777)


@contextmanager
def racing(code: str, work: Path) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", code], cwd=work, stdout=subprocess.PIPE) as racer:
        assert racer.stdout is not None
        try:
            assert racer.stdout.readline() == b"up\n"
            yield
            assert racer.poll() is None, "it raced to the end"
        finally:
            racer.kill()


def found_by_names(root: Path, inode: int, wanted: int) -> set[str]:
    """Names of a file, nearest first, until *wanted* are known; a directory is entered by its name, later."""
    names, pending = set[str](), deque([str(root)])
    while pending and len(names) < wanted:
        try:
            with os.scandir(pending.popleft()) as entries:
                for entry in entries:
                    if entry.inode() == inode:
                        names.add(entry.path)
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except OSError:
            continue
    return names


def is_fooled(work: Path) -> bool:
    """Whether the control takes the file for one that has two open names."""
    facts = (work / "z/deep/.ssh/id").stat()
    for _ in range(CONTROL_ROUNDS):
        names = found_by_names(work, facts.st_ino, facts.st_nlink)
        if len(names) >= facts.st_nlink and not any("/.ssh/" in name for name in names):
            return True
    return False


async def require_safe(whole: Whole, sid: str, read: str) -> None:
    """Read the file by its open name, and search for what is in it: neither may tell it."""
    answer = await whole.answer("read_file", session_id=sid, path=read)
    assert answer.is_error, answer.structured
    found = await whole.ok("search_files", session_id=sid, path=".", pattern=MARKER, include_hidden=True)
    assert found["matches"] == []


@pytest.mark.bounded(120)
@pytest.mark.parametrize("title", RACERS)
async def test_no_race_gets_at_a_closed_file_by_its_other_name(tmp_path: Path, title: str) -> None:
    async with session(tmp_path) as (whole, sid):
        code, name = RACERS[title]
        lay(whole.work, name)
        with racing(code, whole.work):
            with trio.fail_after(CONTROL_S):
                assert await trio.to_thread.run_sync(is_fooled, whole.work), "the control"
            for _ in range(ROUNDS):
                with trio.fail_after(60):
                    await require_safe(whole, sid, name)
            quiet = await whole.ok("read_file", session_id=sid, path="two")
            assert quiet["content"] == "text"


async def test_names_that_stand_still_are_found_wherever_they_are(tmp_path: Path) -> None:
    async with session(tmp_path) as (whole, sid):
        lay(whole.work)
        (whole.work / "a/deeper").mkdir(mode=0o777)
        os.link(whole.work / "one", whole.work / "a/deeper/three")
        for name in ("one", "two", "a/deeper/three"):
            assert (await whole.ok("read_file", session_id=sid, path=name))["content"] == "text"
        found = await whole.ok("search_files", session_id=sid, path=".", pattern="text")
        assert found["skipped_hard_links"] == 1, "the one with a closed name"
        assert {match["path"] for match in found["matches"]} == {"one", "two", "a/deeper/three"}


async def test_a_link_among_the_directories_leads_to_no_name(tmp_path: Path) -> None:
    """The name that only a link leads to is unknown, and that refuses the file."""
    async with session(tmp_path) as (whole, sid):
        lay(whole.work)
        away = tmp_path / "away"
        away.mkdir(mode=0o755)
        os.link(whole.work / "one", away / "three")
        (whole.work / "way").symlink_to(away)
        assert await whole.failure("read_file", session_id=sid, path="one") == "POLICY_PATH_VIOLATION"
