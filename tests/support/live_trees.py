"""Process trees that are hard to end, as shell scripts, and the event that says that one stands.

Every script carries its mark among the arguments of each of its processes, so that `live.marked` finds survivors.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

SHAPES = {
    "obeys SIGTERM": "{up}; sleep {mark}",
    "ignores SIGTERM": "trap '' TERM; {up}; sleep {mark}",
    "setsid": "setsid sleep {mark} & {up}; sleep {mark}",
    "setsid, ignores SIGTERM": "trap '' TERM; setsid sleep {mark} & {up}; sleep {mark}",
    "double fork": "((sleep {mark} &) &); {up}; sleep {mark}",
    "holds the pipe": "echo so far; setsid sh -c 'sleep {mark}; :' & {up}; sleep {mark}",
    "forks while being killed": (
        "trap '' TERM; f() {{ while :; do (: {mark}); done; }}; "
        "setsid sh -c 'while :; do (: {mark}); done' & f & {up}; f"
    ),
}
"""In each, `{up}` says that everything before it has been started."""


@attrs.frozen(kw_only=True)
class Tree:
    """A script to run by `sh -c`, the mark of its processes, and the wait for its word."""

    script: str
    mark: str
    _fifo: int

    async def wait_up(self) -> None:
        """Return when the script has come to `{up}`."""
        await trio.lowlevel.wait_readable(self._fifo)


@asynccontextmanager
async def tree(shape: str, folder: Path) -> AsyncIterator[Tree]:
    """The tree of that shape, not yet started; its word comes through a FIFO in *folder*."""
    mark = str(10**8 + secrets.randbelow(9 * 10**8))  # also the seconds that its sleeps would sleep
    path = folder / f"up-{mark}"
    os.mkfifo(path)
    path.chmod(0o666)
    fifo = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # a writer of our own, so that the script's end is no EOF
    try:
        yield Tree(script=SHAPES[shape].format(mark=mark, up=f"echo up > {path}"), mark=mark, fifo=fifo)
    finally:
        os.close(fifo)
        path.unlink()
