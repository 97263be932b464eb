"""The system calls for renaming that `os` lacks (child side, stdlib only)."""

from __future__ import annotations

import ctypes
import errno
import os

from sandbox.kernel.files import Refused

SYS_RENAMEAT2 = 316 if os.uname().machine == "x86_64" else 276  # aarch64, riscv64
RENAME_NOREPLACE = 1
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.EPERM)  # no such call, or not with this flag on this file system

_libc = ctypes.CDLL(None, use_errno=True)


def rename_to_free_name(src_fd: int, src: str, dst_fd: int, dst: str) -> None:
    """Rename, unless something has the new name already.

    Raises: FileExistsError; OSError as rename(2). Where the file system cannot promise it, the name is looked
    at first, so that only something that appears in the microsecond between is replaced, as with mv(1).
    """
    result = _libc.syscall(
        ctypes.c_long(SYS_RENAMEAT2),
        ctypes.c_int(src_fd),
        ctypes.c_char_p(os.fsencode(src)),
        ctypes.c_int(dst_fd),
        ctypes.c_char_p(os.fsencode(dst)),
        ctypes.c_uint(RENAME_NOREPLACE),
    )
    if result == 0:
        return
    number = ctypes.get_errno()
    if number not in _UNKNOWN:
        raise OSError(number, os.strerror(number))
    _require_free(dst_fd, dst)
    os.rename(src, dst, src_dir_fd=src_fd, dst_dir_fd=dst_fd)


def flush_file_system(fd: int) -> None:
    """Write all that is pending on the file system of *fd* to the disk: one flush for a whole tree."""
    if _libc.syncfs(ctypes.c_int(fd)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


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


def _require_free(parent: int, name: str) -> None:
    try:
        os.lstat(name, dir_fd=parent)
    except FileNotFoundError:
        return
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
