"""Open by path without stepping through a magic link, and say what was opened (child side, stdlib only).

Owns the few system calls that `os` lacks (openat2, fstatfs) and the two questions every path operation
asks about a descriptor: where is it really, and what is it. Knows neither the protocol nor any rule.

A path is opened `O_PATH` first: that touches nothing, so a FIFO does not block and a device does not act.
Only what is then seen to be a regular file or a directory is opened again, through the descriptor itself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from types import MappingProxyType

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

SYS_OPENAT2 = 437  # the same number on x86-64 and aarch64
RESOLVE_NO_MAGICLINKS = 0x02
AT_FDCWD = -100

# File systems whose files are the kernel talking: reading them may act, and `/proc/self` would be the
# opener instead of the one who asks.
KERNEL_FILE_SYSTEMS = frozenset(
    {
        0x9FA0,  # proc
        0x62656572,  # sysfs
        0x64626720,  # debugfs
        0x74726163,  # tracefs
        0x73636673,  # securityfs
        0x62656570,  # configfs
        0x27E0EB,  # cgroup
        0x63677270,  # cgroup2
        0xCAFE4A11,  # bpf
        0xDE5E81E4,  # efivarfs
        0x6165676C,  # pstore
        0x1CD1,  # devpts
    }
)

# What a path is that leads nowhere: the kernel's mark may make a name too long, and a directory above it may be
# something else by now.
NAMES_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)

KINDS = MappingProxyType(
    {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "symlink",
        stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "socket",
        stat.S_IFBLK: "device",
        stat.S_IFCHR: "device",
    }
)

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The opener will not do this; `kind` is the word of the protocol for it, `why` a clause for a person."""

    def __init__(self, kind: str, number: int, why: str) -> None:
        super().__init__(why)
        self.kind, self.number, self.why = kind, number, why


class Held:
    """A descriptor that is closed at the end of the `with`, unless it was kept."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._kept = False

    def keep(self) -> int:
        """Return the descriptor, which is the caller's from now on."""
        self._kept = True
        return self.fd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._kept:
            os.close(self.fd)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_path(path: str, *, dir_fd: int = AT_FDCWD, flags: int = 0) -> int:
    """Open *path* `O_PATH`: symbolic links are followed, magic links (`/proc/self/root`) are not.

    Raises: OSError as open(2); ELOOP also for a magic link.
    """
    flags |= os.O_PATH | os.O_CLOEXEC
    how = _OpenHow(flags, 0, RESOLVE_NO_MAGICLINKS)
    name = os.fsencode(path)
    while True:
        opened = _libc.syscall(
            ctypes.c_long(SYS_OPENAT2),
            ctypes.c_int(dir_fd),
            ctypes.c_char_p(name),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if opened >= 0:
            return int(opened)
        number = ctypes.get_errno()
        if number in (errno.ENOSYS, errno.EPERM):
            # Kernels before 5.6, and containers whose filter predates the call. A magic link is then
            # followed, but its real path and its type are what is decided on, as for any other.
            return os.open(path, flags, dir_fd=None if dir_fd == AT_FDCWD else dir_fd)
        if number not in (errno.EAGAIN, errno.EINTR):  # a rename raced with the walk: walk again
            raise OSError(number, os.strerror(number))


def reopen(fd: int, flags: int) -> int:
    """Open the file behind an `O_PATH` descriptor; the caller has seen that it is a file or a directory.

    O_NONBLOCK and O_NOCTTY are belts to those braces.
    """
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def real_path(fd: int) -> str:
    """Return where *fd* is now. Raises: Refused when no name leads to it any more."""
    path = os.readlink(f"/proc/self/fd/{fd}")
    if not path.startswith("/"):
        raise Refused("changed", errno.ESTALE, "it is not reachable from the root directory")
    # The kernel marks a removed name in the text itself. A file may really be called so, and a removed
    # name must not pass as another name that no rule knows: only the directory can tell.
    if path.endswith(" (deleted)") and not _names(path, fd):
        raise Refused("changed", errno.ESTALE, "it was removed or replaced meanwhile")
    return path


def _names(path: str, fd: int) -> bool:
    status = os.fstat(fd)
    try:
        return os.path.samestat(os.lstat(path), status)
    except OSError as fault:
        if fault.errno not in NAMES_NOTHING:
            raise
        return False


def kind_of(fd: int, status: os.stat_result) -> str:
    """Return the kind of *fd*: one of KINDS, or `kernel` for a file or directory of /proc, /sys and the like."""
    kind = KINDS.get(stat.S_IFMT(status.st_mode), "device")
    if kind in ("file", "directory") and file_system(fd) in KERNEL_FILE_SYSTEMS:
        return "kernel"
    return kind


def file_system(fd: int) -> int:
    """Return the magic number of the file system that *fd* is on."""
    answer = ctypes.create_string_buffer(256)  # struct statfs has 120 bytes; its first word is f_type
    if _libc.fstatfs(ctypes.c_int(fd), answer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(ctypes.c_ulong.from_buffer(answer).value) & 0xFFFFFFFF


def facts_of(fd: int) -> dict[str, Any]:
    """Return what is known of *fd*, as the protocol carries it."""
    path, status = real_path(fd), os.fstat(fd)
    return {
        "path": path,
        "kind": kind_of(fd, status),
        "size_bytes": status.st_size,
        "mode": stat.S_IMODE(status.st_mode),
        "nlink": status.st_nlink,
        "uid": status.st_uid,
        "dev": status.st_dev,
        "ino": status.st_ino,
        "mtime_ns": status.st_mtime_ns,
    }
