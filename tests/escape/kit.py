# ruff: noqa: T201, S606 - it is a part of programs that print and become others
"""What the attack scripts share; copied beside each of them, because it runs inside the walls. Stdlib only."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import sys

AT_FDCWD = -100
# x86-64, aarch64; from 424 on both have the same numbers.
NUMBERS = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "unshare": (272, 97),
    "mount": (165, 40),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "add_key": (248, 217),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "io_uring_setup": (425, 425),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "openat2": (437, 437),
    "renameat2": (316, 276),
    "fchmodat2": (452, 452),
    "pidfd_getfd": (438, 438),
    "clone": (56, 220),
    "setns": (308, 268),
    "memfd_create": (319, 279),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "ioprio_set": (251, 30),
}
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def call(name: str, *arguments: object) -> int:
    """Make a system call; raise OSError where the kernel refuses."""
    number = NUMBERS[name][platform.machine() == "aarch64"]
    filled = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *filled)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def escaped(*what: object) -> None:
    """Say that the attack went through."""
    print("ESCAPED", *what, flush=True)


def ancestors() -> list[int]:
    """The processes above this one, as far as they can be seen: keeper, init, broker."""
    found, pid = [], os.getppid()
    while pid > 0:
        found.append(pid)
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
                pid = int(stat.read().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found


def everyone() -> list[int]:
    """Every process that can be seen, but for this one."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def daemon(*argv: str) -> None:
    """Start *argv* out of reach of its parent (two forks, a session of its own, nothing of ours held open); say UP."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            null = os.open("/dev/null", os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            lock = os.open("lock", os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(lock, fcntl.LOCK_EX)  # held as long as it lives, or anything it forks
            os.set_inheritable(lock, True)
            os.execv(argv[0], argv)
        os._exit(0)
    os.wait()
    os.close(write)
    os.read(read, 1)  # its end closes with the exec
    print("UP", flush=True)


def me() -> str:
    """The interpreter that runs this."""
    return os.path.realpath(sys.executable)
