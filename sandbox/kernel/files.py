"""Files by the system calls that `os` lacks: open by path, say what was opened, rename, flush, and see what is free.

Both sides, stdlib only. Owns openat2, fstatfs, renameat2, syncfs, fallocate, and the two questions that every path
operation asks about a descriptor: where is it really, and what is it. Knows neither the protocol nor any rule.

A path is opened `O_PATH` first: that touches nothing, so a FIFO does not block and a device does not act.
Only what is then seen to be a regular file or a directory is opened again, through the descriptor itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from types import MappingProxyType

from sandbox.kernel import syscalls

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
SYS_RENAMEAT2 = 316 if os.uname().machine == "x86_64" else 276  # aarch64, riscv64
RENAME_NOREPLACE = 1
STEP_BYTES = 8 * 1024 * 1024  # written between two looks at the room

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
_NO_OPENAT2 = (errno.ENOSYS, errno.EPERM)  # before Linux 5.6, and in containers whose filter predates the call
_NO_RENAMEAT2 = (errno.ENOSYS, errno.EINVAL, errno.EPERM)  # no such call, or not with this flag on this file system

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

_StatFs = ctypes.c_ulong * 32  # struct statfs has 120 bytes; its first word is f_type


class Refused(Exception):
    """Refusal of the opener or a worker; `kind` is the word of the protocol for it, `why` a clause for a person."""

    def __init__(self, kind: str, number: int, why: str) -> None:
        super().__init__(why)
        self.kind, self.number, self.why = kind, number, why


class ReserveReached(OSError):
    """Refusal to write what would leave less room than must stay free; nothing of it was written."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, "it would take of what must stay free of its file system")


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


def open_path(path: str, *, dir_fd: int = syscalls.AT_FDCWD, flags: int = 0) -> int:
    """Open *path* `O_PATH`: symbolic links are followed, magic links (`/proc/self/root`) are not.

    Raises: OSError as open(2); ELOOP also for a magic link.
    """
    flags |= os.O_PATH
    while True:
        try:
            return syscalls.openat2(dir_fd, path, flags, syscalls.RESOLVE_NO_MAGICLINKS)
        except OSError as fault:
            if fault.errno in _NO_OPENAT2:
                # A magic link is then followed, but its real path and its type are what is decided on, as for any
                # other.
                return os.open(path, flags | os.O_CLOEXEC, dir_fd=None if dir_fd == syscalls.AT_FDCWD else dir_fd)
            if fault.errno not in (errno.EAGAIN, errno.EINTR):  # a rename raced with the walk: walk again
                raise


def pin(path: str) -> int:
    """Open *path* `O_PATH`. It has no symbolic links; one that appears meanwhile is an error and not followed."""
    resolve = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
    return syscalls.openat2(syscalls.AT_FDCWD, path, os.O_PATH, resolve)


def reopen(fd: int, flags: int) -> int:
    """Open the file behind an `O_PATH` descriptor; the caller has seen that it is a file or a directory.

    O_NONBLOCK and O_NOCTTY protect us should that be wrong.
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
    answer = _StatFs()
    syscalls.call_c("fstatfs", fd, answer)
    return int(answer[0]) & 0xFFFFFFFF


def rename_to_free_name(src_fd: int, src: str, dst_fd: int, dst: str) -> None:
    """Rename, unless something has the new name already.

    Raises: FileExistsError; OSError as rename(2). Where the file system cannot promise it, the name is looked
    at first, so that only something that appears in the microsecond between is replaced, as with mv(1).
    """
    names = (src_fd, os.fsencode(src), dst_fd, os.fsencode(dst))
    try:
        syscalls.call_number(SYS_RENAMEAT2, *names, RENAME_NOREPLACE)
    except OSError as fault:
        if fault.errno not in _NO_RENAMEAT2:
            raise
        _require_free(dst_fd, dst)
        os.rename(src, dst, src_dir_fd=src_fd, dst_dir_fd=dst_fd)


def _require_free(parent: int, name: str) -> None:
    try:
        os.lstat(name, dir_fd=parent)
    except FileNotFoundError:
        return
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def flush_file_system(fd: int) -> None:
    """Write all that is pending on the file system of *fd* to the disk: one flush for a whole tree."""
    syscalls.call_c("syncfs", fd)


def flush_names(directory: int) -> None:
    """Make names in a directory last, after a change; where it may not be read they reach the disk with the journal.

    Raises: Refused, of the kind for what was done and may not last.
    """
    try:
        fd = os.open(f"/proc/self/fd/{directory}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return
    except OSError as fault:
        raise unflushed(fault) from fault
    try:
        os.fsync(fd)
    except OSError as fault:
        raise unflushed(fault) from fault
    finally:
        os.close(fd)


def unflushed(fault: OSError) -> Refused:
    """Return the refusal to say that a change is safe: it was made, and it could not be flushed to the disk."""
    number = fault.errno or errno.EIO
    why = f"it was changed, and flushing that to the disk failed ({os.strerror(number)}); whether the change outlasts "
    return Refused("done", number, f"{why}a power cut is not known")


def unseen(fault: OSError) -> Refused:
    """Return the refusal to say that something was made and could not be looked at: what is there now is not known."""
    number = fault.errno or errno.EIO
    why = f"it was made, and looking at it failed ({os.strerror(number)}); whether it is still there is not known"
    return Refused("done", number, why)


def open_nameless(folder: str) -> int:
    """Open a file without a name in *folder*, which is made if need be: nothing of it is left, whatever ends us.

    Raises:
        OSError: it cannot be had.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC | os.O_EXCL, 0o600)
    except OSError:  # a file system without such files: there for an instant under a random name
        path = f"{folder}/{os.urandom(16).hex()}"
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(FileNotFoundError):  # somebody tidied up: it has no name, which is what we want
            os.unlink(path)
        return fd


def write_at(fd: int, data: bytes, at: int) -> None:
    """Write all of *data* from *at* on. Raises OSError."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(fd, rest, at)
        rest = rest[count:]
        at += count


def free_bytes(fd: int) -> int:
    """Return how many bytes an unprivileged user may still write where *fd* is."""
    room = os.fstatvfs(fd)
    return room.f_bavail * room.f_frsize


def require_room(fd: int, needed_bytes: int, reserve_bytes: int) -> None:
    """Raise ReserveReached where *needed_bytes* more do not fit above the reserve. No reserve: the disk decides."""
    if needed_bytes and reserve_bytes and free_bytes(fd) - needed_bytes < reserve_bytes:
        raise ReserveReached
