"""Numbers of the system calls we make or refuse, and the one way to call the C library. Both sides, stdlib only.

Knows two machines, x86-64 and aarch64. From 424 on (Linux 5.1) every machine has the same numbers.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from types import MappingProxyType

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Mapping

# The youngest call this list was written against (file_setattr, Linux 6.17). A filter that refuses what lies
# beyond it stays tight on kernels that are younger than itself: programs take it for an older kernel.
NEWEST = 469

# Each machine's AUDIT_ARCH_ value, as a filter sees it, and its column in the table below.
_MACHINES = MappingProxyType({"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)})
_ABSENT = -1

_NUMBERS = MappingProxyType(
    {
        "acct": (163, 89),
        "add_key": (248, 217),
        "adjtimex": (159, 171),
        "bpf": (321, 280),
        "brk": (12, 214),
        "capset": (126, 91),
        "chmod": (90, _ABSENT),
        "chroot": (161, 51),
        "clock_adjtime": (305, 266),
        "clock_gettime": (228, 113),
        "clock_settime": (227, 112),
        "clone": (56, 220),
        "clone3": (435, 435),
        "creat": (85, _ABSENT),
        "delete_module": (176, 106),
        "exit": (60, 93),
        "exit_group": (231, 94),
        "fanotify_init": (300, 262),
        "fchmod": (91, 52),
        "fchmodat": (268, 53),
        "fchmodat2": (452, 452),
        "finit_module": (313, 273),
        "fsconfig": (431, 431),
        "fsmount": (432, 432),
        "fsopen": (430, 430),
        "fspick": (433, 433),
        "futex": (202, 98),
        "getrandom": (318, 278),
        "init_module": (175, 105),
        "io_uring_enter": (426, 426),
        "io_uring_register": (427, 427),
        "io_uring_setup": (425, 425),
        "ioctl": (16, 29),
        "ioperm": (173, _ABSENT),
        "iopl": (172, _ABSENT),
        "kcmp": (312, 272),
        "kexec_file_load": (320, 294),
        "kexec_load": (246, 104),
        "keyctl": (250, 219),
        "madvise": (28, 233),
        "memfd_create": (319, 279),
        "mknod": (133, _ABSENT),
        "mknodat": (259, 33),
        "mmap": (9, 222),
        "modify_ldt": (154, _ABSENT),
        "mount": (165, 40),
        "mount_setattr": (442, 442),
        "move_mount": (429, 429),
        "mprotect": (10, 226),
        "mremap": (25, 216),
        "munmap": (11, 215),
        "name_to_handle_at": (303, 264),
        "open": (2, _ABSENT),
        "open_by_handle_at": (304, 265),
        "open_tree": (428, 428),
        "open_tree_attr": (467, 467),
        "openat": (257, 56),
        "openat2": (437, 437),
        "perf_event_open": (298, 241),
        "pidfd_getfd": (438, 438),
        "pivot_root": (155, 41),
        "prlimit64": (302, 261),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "ptrace": (101, 117),
        "quotactl": (179, 60),
        "quotactl_fd": (443, 443),
        "reboot": (169, 142),
        "recvfrom": (45, 207),
        "request_key": (249, 218),
        "restart_syscall": (219, 128),
        "rt_sigprocmask": (14, 135),
        "rt_sigreturn": (15, 139),
        "sched_yield": (24, 124),
        "seccomp": (317, 277),
        "sendto": (44, 206),
        "setitimer": (38, 103),
        "setns": (308, 268),
        "settimeofday": (164, 170),
        "socket": (41, 198),
        "socketpair": (53, 199),
        "swapoff": (168, 225),
        "swapon": (167, 224),
        "syslog": (103, 116),
        "umount2": (166, 39),
        "unshare": (272, 97),
        "userfaultfd": (323, 282),
        "vhangup": (153, 58),
    }
)

AT_FDCWD = -100
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 0x02, 0x04

_OPENAT2, _ = _NUMBERS["openat2"]
_LONG = ctypes.c_long
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class UnknownMachine(Exception):
    """Lack of a table for this machine: nothing is known about its system calls."""


def this_machine() -> str:
    """Return the name of the machine this interpreter was built for. Raises UnknownMachine."""
    name = os.uname().machine
    if name not in _MACHINES or sys.maxsize < 1 << 32:  # a 32-bit program on a 64-bit kernel makes other calls
        raise UnknownMachine(f"only {' and '.join(_MACHINES)} are known, this is {name}")
    return name


def audit_arch(machine: str) -> int:
    """Return what a seccomp filter sees as the architecture."""
    return _MACHINES[machine][0]


def numbers(machine: str) -> Mapping[str, int]:
    """Return the number of each call that the machine has."""
    column = _MACHINES[machine][1]
    return {name: row[column] for name, row in _NUMBERS.items() if row[column] != _ABSENT}


def call(name: str, *arguments: object) -> int:
    """Make a system call on this machine; raise OSError with the kernel's reason."""
    return call_number(_NUMBERS[name][_MACHINES[this_machine()][1]], *arguments)


def call_number(number: int, *arguments: object) -> int:
    """Make a system call by its number, for those that every machine has by the same; raise OSError as `call`."""
    return call_c("syscall", number, *arguments)


def call_c(function: str, *arguments: object) -> int:
    """Call a function of the C library that `os` lacks and that fails with -1; raise OSError as `call`."""
    # A number fills a whole register: ctypes passes a bare int as 32 bits and leaves the rest to chance.
    result: int = getattr(_libc, function)(*[_LONG(each) if isinstance(each, int) else each for each in arguments])
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def openat2(dir_fd: int, path: str, flags: int, resolve: int) -> int:
    """Open *path* close-on-exec, its links resolved as the RESOLVE_ bits of *resolve* say; raise OSError as `call`."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, resolve)
    return call_c("syscall", _OPENAT2, dir_fd, os.fsencode(path), how, len(how))
