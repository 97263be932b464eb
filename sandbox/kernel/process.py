"""Settings of the calling process: prctl(2), descriptors, signals, memory. Child side, stdlib only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

from sandbox.kernel import syscalls

SET_PDEATHSIG = 1
GET_DUMPABLE = 3
SET_DUMPABLE = 4
SET_CHILD_SUBREAPER = 36
GET_CHILD_SUBREAPER = 37
SET_NO_NEW_PRIVS = 38
GET_NO_NEW_PRIVS = 39
SYS_CLOSE_RANGE = 436
KEPT_FD = 3
NO_LAST_FD = 0xFFFFFFFF  # of close_range: whatever the highest one is
OOM_SCORE_ADJ = "/proc/self/oom_score_adj"
FIRST_TO_GO = 500
"""Of 1000, which stand for all the memory that may be used: whatever has this is ended before a broker that is using
less than half of it."""


def prctl(option: int, value: int = 0) -> int:
    """Make the system call with one number; raise OSError with the kernel's reason."""
    return syscalls.call_c("prctl", option, value, 0, 0, 0)


def is_subreaper() -> bool:
    """Tell whether orphans among our descendants become our children."""
    flag = ctypes.c_int(0)
    syscalls.call_c("prctl", GET_CHILD_SUBREAPER, ctypes.byref(flag), 0, 0, 0)
    return bool(flag.value)


def die_with(parent_pid: int, signum: int) -> None:
    """Have the kernel send *signum* here when the thread that forked us ends; exit if it already did.

    A change of credentials clears this, and so it is asked for again after one.
    """
    prctl(SET_PDEATHSIG, signum)
    if os.getppid() != parent_pid:
        os._exit(0)


def go_first() -> None:
    """Have the kernel end this process, and all that come of it, before the broker when memory is short.

    Who started the broker may have said so of all its processes already. It cannot be taken back inside the walls,
    where nothing in /proc may be written.
    """
    with open(OOM_SCORE_ADJ, "r+b", buffering=0) as score:
        if int(score.read(16)) < FIRST_TO_GO:
            score.write(b"%d" % FIRST_TO_GO)


def keep_only(fd: int) -> int:
    """Close every descriptor but the standard three and *fd*; return its new number, 3, close-on-exec."""
    if fd != KEPT_FD:
        os.dup2(fd, KEPT_FD)
    os.set_inheritable(KEPT_FD, False)
    try:
        syscalls.call_number(SYS_CLOSE_RANGE, KEPT_FD + 1, NO_LAST_FD, 0)
    except OSError:  # before Linux 5.9
        for name in os.listdir("/proc/self/fd"):
            if int(name) > KEPT_FD:
                with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed already
                    os.close(int(name))
    return KEPT_FD


def default_signals(*signums: int) -> None:
    """Give *signums*, or all there are, the disposition that a program expects to start with."""
    for signum in signums or signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError):  # the C library keeps two real-time signals for itself
            signal.signal(signum, signal.SIG_DFL)
