"""A symbolic link swapped in while we work: what was decided on is what is used, never anything else.

Each race has its control: the same attack against realpath-then-open, which it must win.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from sandbox.files.errors import AccessDenied, Changed, WrongKind
from sandbox.files.files import Files
from tests.support.door import open_door

CONTROL_S = 20
RACES = 3000

# Exchanges two names for ever: at every moment exactly one of them is the link to the outside.
SWAPPER = """
import ctypes, sys
libc = ctypes.CDLL(None)
one, two = (name.encode() for name in sys.argv[1:])
print("swapping", flush=True)
while libc.renameat2(-100, one, -100, two, 2) == 0:
    pass
"""


@attrs.frozen
class Arena:
    inside: Path
    outside: Path
    door: Path


@contextmanager
def swapping(tmp_path: Path) -> Iterator[Arena]:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "file").write_text("outside")
    (inside / "door").mkdir()
    (inside / "door/file").write_text("inside")
    (inside / "other").symlink_to(outside)
    command = [sys.executable, "-I", "-S", "-c", SWAPPER, str(inside / "door"), str(inside / "other")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as swapper:
        assert swapper.stdout
        swapper.stdout.readline()
        try:
            yield Arena(inside, outside, inside / "door/file")
        finally:
            swapper.kill()


def allowed(arena: Arena, path: str) -> bool:
    return path.startswith(f"{arena.inside}/")


def wins(attack: Callable[[], bool]) -> bool:
    """Whether the attack succeeds at least once in a bounded time."""
    end = time.monotonic() + CONTROL_S
    while time.monotonic() < end:
        try:
            if attack():
                return True
        except OSError:
            continue  # caught in the middle of a swap
    return False


async def test_a_swapped_link_never_serves_the_outside_file(tmp_path: Path) -> None:
    with swapping(tmp_path) as arena:

        def naive() -> bool:
            return allowed(arena, os.path.realpath(arena.door)) and arena.door.read_text() == "outside"

        assert wins(naive), "the control must escape, or the race proves nothing"
        served = denied = 0
        async with open_door() as door:
            for _ in range(RACES):
                with await door.files.resolve(str(arena.door), read=True) as found:
                    if allowed(arena, found.path):
                        assert await door.files.read(found, 0, 100) == b"inside"
                        served += 1
                    else:
                        denied += 1
        assert served
        assert denied  # both sides of the swap were met


async def test_a_swapped_link_never_redirects_a_write(tmp_path: Path) -> None:
    with swapping(tmp_path) as arena:

        def naive() -> bool:
            if allowed(arena, os.path.realpath(arena.door)):
                arena.door.write_text("written")
            return (arena.outside / "file").read_text() != "outside"

        assert wins(naive), "the control must escape, or the race proves nothing"
        (arena.outside / "file").write_text("outside")
        written = 0
        async with open_door() as door:
            for i in range(RACES // 10):
                written += await _write_if_allowed(arena, door.files, b"%d" % i, append=bool(i % 2))
                assert (arena.outside / "file").read_text() == "outside"
        assert written
        assert [p.name for p in arena.outside.iterdir()] == ["file"]


async def _write_if_allowed(arena: Arena, files: Files, data: bytes, *, append: bool) -> int:
    try:
        with await files.place(str(arena.door)) as place:
            if not allowed(arena, place.path):
                return 0
            await (files.append(place, data) if append else files.overwrite(place, data))
            return 1
    except (Changed, WrongKind, AccessDenied):
        return 0
