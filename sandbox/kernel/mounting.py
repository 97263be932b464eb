"""Mounts by descriptor: make or clone one, take rights from it, attach it, live in it. Child side, stdlib only.

The mount calls of Linux 5.2 and, for rights of whole trees, 5.12: nothing is visible to anybody before it is as
it should be.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct

from sandbox.kernel import files, syscalls

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Bind = tuple[str, int]  # an absolute path, and the rights that nobody has beneath it

READ_ONLY = 0x1  # the MOUNT_ATTR_ bits
NO_SUID = 0x2
NO_DEV = 0x4
NO_EXEC = 0x8

_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_CLONE = 0x1
_CLONE_FLAGS = _CLONE | os.O_CLOEXEC | _AT_RECURSIVE
_MOVE_FROM_FD = 0x4
_SET_STRING = 1
_CREATE = 6
_CLOEXEC = 0x1  # of fsopen and fsmount
_PRIVATE = 1 << 18
_DETACH = 0x2


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Put what was being done in front of the kernel's words: `proc: Operation not permitted`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror}") from error


def make_private() -> None:
    """Let no mount of ours reach the machine's namespace, nor one of the machine's appear here."""
    with explained("private mounts"):
        _set_attributes("/", 0, recursive=True, propagation=_PRIVATE)


def make(kind: str, rights: int, settings: Mapping[str, str]) -> int:
    """Return a new file system, attached nowhere yet, that lacks *rights*."""
    with explained(kind):
        context = syscalls.call("fsopen", kind.encode("ascii"), _CLOEXEC)
        try:
            for key, value in {"source": kind, **settings}.items():
                syscalls.call("fsconfig", context, _SET_STRING, key.encode("ascii"), value.encode("ascii"), 0)
            syscalls.call("fsconfig", context, _CREATE, 0, 0, 0)
            return syscalls.call("fsmount", context, _CLOEXEC, rights)
        finally:
            os.close(context)


def pin(path: str) -> int:
    """Open *path*, which has no symbolic links, without touching it: as a handle on what is there now."""
    with explained(path):
        return files.pin(path)


def clone(path: str, rights: int) -> int:
    """Return a copy, attached nowhere yet, of what is mounted at *path* and below, all of it without *rights*.

    The path has no symbolic links; one that appears meanwhile is an error and not followed.
    """
    with explained(path):
        pinned = files.pin(path)
        try:
            return clone_pinned(pinned, rights)
        finally:
            os.close(pinned)


def clone_pinned(pinned: int, rights: int) -> int:
    """Return such a copy of what a descriptor of `pin` stands for, whatever is mounted on top of it since."""
    return _without(syscalls.call("open_tree", pinned, b"", _CLONE_FLAGS | _AT_EMPTY_PATH), rights)


def clone_beneath(pinned: int, name: str) -> int:
    """Return such a copy, with the rights it has, of a directory that is no link, by its *name* in *pinned*."""
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=pinned)
    try:
        return clone_pinned(fd, 0)
    finally:
        os.close(fd)


def _without(fd: int, rights: int) -> int:
    try:
        _set_attributes(fd, rights, recursive=True)
    except OSError:
        os.close(fd)
        raise
    return fd


def forbid(path: str, rights: int) -> None:
    """Take *rights* from the one mount at *path*."""
    with explained(path):
        _set_attributes(path, rights)


def attach(fd: int, path: str) -> None:
    """Put the mount *fd* at *path*."""
    with explained(f"attach {path}"):
        syscalls.call("move_mount", fd, b"", syscalls.AT_FDCWD, os.fsencode(path), _MOVE_FROM_FD)


def enter(fd: int) -> None:
    """Make the mount *fd* our root and let go of the old one. Ownership: takes *fd*."""
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with explained("pivot_root"):
            attach(fd, "/")
            os.fchdir(fd)
            syscalls.call("pivot_root", b".", b".")  # the old root now lies on top of the new one
            os.fchdir(old)
            syscalls.call("umount2", b".", _DETACH)
            os.chdir("/")
    finally:
        os.close(old)
        os.close(fd)


def _set_attributes(where: str | int, rights: int, *, recursive: bool = False, propagation: int = 0) -> None:
    attributes = struct.pack("=QQQQ", rights, 0, propagation, 0)
    fd, path = (syscalls.AT_FDCWD, os.fsencode(where)) if isinstance(where, str) else (where, b"")
    flags = (_AT_RECURSIVE if recursive else 0) | (0 if path else _AT_EMPTY_PATH)
    syscalls.call("mount_setattr", fd, path, flags, ctypes.c_char_p(attributes), len(attributes))
