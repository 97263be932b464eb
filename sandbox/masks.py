"""Cover what must not be seen with nothing, and hold in their places the directories above it. Child side, stdlib only.

A mask is a mount: in the namespace where it stands, what it covers can be neither read nor changed nor renamed. A
directory above it can, and whoever sees the tree later finds a name there that nothing blocks. A directory that is
mounted on itself cannot be renamed or removed either; moving something out of it is a copy from then on.
"""

from __future__ import annotations

import contextlib
import os
import stat

from sandbox import mounting
from sandbox.mounting import NO_DEV, NO_EXEC, NO_SUID, READ_ONLY, explained

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_VOID = "/dev/.void"  # what masks are made of; gone when they are


def cover(paths: Iterable[str], holds: Callable[[str], Iterable[str]]) -> list[str]:
    """Cover *paths*, asked for one by one, and return those that are there.

    Args:
        paths: whatever they are; a link is covered together with what it leads to.
        holds: says which directories are to be held for a path, topmost first.

    Raises OSError whose text says at what. /dev is ours and can be written.
    """
    os.makedirs(_VOID)
    held: set[str] = set()
    masked = []
    for path in paths:
        for above in holds(path):
            if above not in held:
                held.add(above)
                _hold(above)
        if _mask(path):
            masked.append(path)
    for name in os.listdir(_VOID):
        os.rmdir(f"{_VOID}/{name}") if name == "directory" else os.unlink(f"{_VOID}/{name}")
    os.rmdir(_VOID)
    return masked


def _hold(path: str) -> None:
    """Mount a directory on itself."""
    try:
        fd = mounting.clone(path, 0)
    except FileNotFoundError:  # moved while we looked, and what is beneath it too: there is nothing to hold
        return
    try:
        with explained(f"hold {path}"):
            mounting.attach(fd, path)
    finally:
        os.close(fd)


def _mask(path: str) -> bool:
    """Cover *path* with nothing, whatever it is; return whether it is there."""
    real = os.path.realpath(path)
    try:
        is_directory = stat.S_ISDIR(os.lstat(real).st_mode)
    except OSError:  # not there, or beneath another mask
        return False
    _put_nothing(real, is_directory=is_directory)
    if os.path.islink(path):
        with contextlib.suppress(OSError):  # a kernel that mounts nothing on a link: its target is covered anyway
            _put_nothing(path, is_directory=False)
    return True


def _put_nothing(path: str, *, is_directory: bool) -> None:
    source = f"{_VOID}/{'directory' if is_directory else 'file'}"
    if not os.path.lexists(source):
        os.mkdir(source, 0) if is_directory else os.close(os.open(source, os.O_CREAT | os.O_CLOEXEC, 0))
    fd = mounting.clone(source, READ_ONLY | NO_SUID | NO_DEV | NO_EXEC)
    try:
        with explained(f"mask {path}"):
            mounting.attach(fd, path)
    finally:
        os.close(fd)
