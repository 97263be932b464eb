"""System calls that fail once, in a process that runs, by strace's fault injection; the kernel itself is not changed.

`traced` lets one system call of one thread fail at its nth time; `counted` says which calls a thread makes at all. Both
wait until strace says that it is attached, and until it has let go.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import psutil
import trio

ATTACH_BOUND_S = 20
CALL = re.compile(r"(?:\d+ +)?(\w+)\(")

SHORT = ("EMFILE", "ENOMEM")
ERRORS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("openat", "openat2", "open", "memfd_create"), (*SHORT, "EIO")),
    **dict.fromkeys(("pidfd_open", "socketpair", "dup", "pipe2"), SHORT),
    **dict.fromkeys(("clone", "clone3", "fork", "vfork"), ("EAGAIN", "ENOMEM")),
    **dict.fromkeys(("read", "pread64", "getdents64", "readlinkat", "readlink"), ("EIO", "ENOMEM")),
    "preadv2": ("EIO",),
    **dict.fromkeys(("write", "pwrite64", "ftruncate", "fallocate", "copy_file_range"), ("ENOSPC", "EIO")),
    **dict.fromkeys(("fsync", "fdatasync"), ("EIO", "ENOSPC")),
    **dict.fromkeys(("linkat", "renameat2", "renameat", "rename", "mkdirat", "unlinkat", "unlink"), ("EIO", "ENOSPC")),
    **dict.fromkeys(("fstat", "newfstatat", "statx", "stat", "lstat", "fstatfs", "statfs"), ("EIO", "ENOMEM")),
    **dict.fromkeys(("fchmod", "fchown", "fchmodat", "fchownat", "utimensat"), ("EIO", "EPERM")),
    "sendmsg": ("ENOBUFS", "ETOOMANYREFS", "EPIPE"),
    "recvmsg": ("ENOMEM", "ENOBUFS"),
    "mmap": ("ENOMEM",),
    **dict.fromkeys(("unshare", "mount", "setresuid", "setresgid", "setgroups", "prlimit64"), ("EPERM", "ENOMEM")),
    **dict.fromkeys(("open_tree", "move_mount", "mount_setattr", "pivot_root", "umount2"), ("EPERM", "ENOMEM")),
    **dict.fromkeys(("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"), ("EPERM", "ENOMEM")),
    "seccomp": ("EINVAL", "ENOMEM"),
}
"""What each can answer on a machine that is out of something or whose disk fails. Not here: what never fails so (futex,
epoll_wait, wait4), what a failure of would leak by itself (close), the sockets to clients (sendto, recvfrom), and
epoll_ctl: for a new descriptor the kernel may lack memory, for a known one never, and strace cannot tell them apart; at
the second, Trio would end the broker."""


@attrs.frozen(order=True)
class Fault:
    """The *nth* time that a thread of a kind of process makes the call, it fails with *error*."""

    process: str
    call: str
    error: str
    nth: int


def why_not() -> str:
    """Why nothing can be made to fail here; empty where it can."""
    if shutil.which("strace") is None:
        return "there is no strace"
    sleeper = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        with tempfile.NamedTemporaryFile() as log:
            tracer = subprocess.Popen(
                ["strace", "-o", log.name, "-p", str(sleeper.pid), "-e", "inject=read:error=EIO:when=1"],
                stderr=subprocess.PIPE,
                text=True,
            )
            assert tracer.stderr is not None
            with tracer.stderr as said:
                first = said.readline()
                tracer.terminate()
                tracer.wait()
        return "" if "attached" in first else f"ptrace is refused: {first.strip()}"
    finally:
        assert sleeper.stdin is not None
        sleeper.stdin.close()
        sleeper.wait()


@asynccontextmanager
async def traced(pid: int, what: tuple[str, ...], *, threads: bool) -> AsyncIterator[list[str]]:
    """Have strace attached to *pid* in this block; the lines of its log are there afterwards."""
    with tempfile.NamedTemporaryFile(prefix="faults-") as log:
        lines: list[str] = []
        follow = ("-f",) if threads else ()
        tracer = await trio.lowlevel.open_process(
            ["strace", *follow, "-o", log.name, *what, "-p", str(pid)], stderr=subprocess.PIPE
        )
        assert tracer.stderr is not None
        try:
            with trio.fail_after(ATTACH_BOUND_S):
                said = b""
                while b"attached" not in said:
                    some = await tracer.stderr.receive_some()
                    if not some:
                        raise ProcessLookupError(f"strace did not attach to {pid}: {said.decode()}")
                    said += some
            yield lines
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + ATTACH_BOUND_S):
                if tracer.poll() is None:
                    tracer.terminate()
                while await tracer.stderr.receive_some():
                    continue
                await tracer.wait()
            lines += Path(log.name).read_text(errors="replace").splitlines()


def injection(fault: Fault) -> tuple[str, ...]:
    """What strace is told to make *fault* happen, and to log nothing else."""
    return ("-e", f"trace={fault.call}", "-e", f"inject={fault.call}:error={fault.error}:when={fault.nth}")


def calls_in(log: list[str]) -> Counter[str]:
    """How often each system call is in a log."""
    return Counter(found[1] for line in log if (found := CALL.match(line)))


def happened(log: list[str]) -> bool:
    """Whether the call that was to fail was made."""
    return any("(INJECTED)" in line for line in log)


def session_processes(broker_pid: int) -> dict[str, int]:
    """The processes of the one session that lives, and the one that waits for the next, by kind."""
    found = {"broker": broker_pid}
    for child in psutil.Process(broker_pid).children():
        with contextlib.suppress(psutil.Error):  # it ended
            below = sorted(child.children(), key=lambda each: (each.create_time(), each.pid))
            if not in_namespace(child.pid) or child.status() == psutil.STATUS_ZOMBIE:
                continue
            if below:
                found |= {"init": child.pid, "opener": below[0].pid}
                found |= {"keeper": below[1].pid} if len(below) > 1 else {}
            else:
                found["spare"] = child.pid
    return found


def in_namespace(pid: int) -> bool:
    """Whether it has a number of its own in a pid namespace: the process that made that is on its way out."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(line.startswith("NSpid:") and len(line.split()) > 2 for line in status.splitlines())
