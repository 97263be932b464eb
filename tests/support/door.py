"""A real opener process behind its door: what the file tests share."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest

from sandbox.files import files as rooms
from sandbox.files.disk import Disk

ROOT = Path(__file__).parents[2]
OTHER_UID = 61190
ANSWER_S = 20.0
STOPPED_S = 0.3
landlock_abi = ctypes.CDLL(None).syscall(444, None, 0, 1)
needs_landlock = pytest.mark.skipif(landlock_abi < 1, reason="this kernel has no Landlock, or it is switched off")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")

# Imports first: the other user may not be able to read the interpreter's folders.
OPENER = """
import ctypes, os, platform, resource, socket, struct, sys
sys.path.insert(0, sys.argv[1])
from sandbox.inside.opener.main import serve
libc = ctypes.CDLL(None)
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[5]),) * 2)
uid = int(sys.argv[3])
if uid:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: as in a session
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
if sys.argv[4]:
    rights = 0x1FFF  # every right of Landlock's first version, given on one folder only
    rules = libc.syscall(444, struct.pack("Q", rights), 8, 0)
    rule = struct.pack("=Qi", rights, os.open(sys.argv[4], os.O_PATH | os.O_CLOEXEC))
    assert libc.syscall(445, rules, 1, rule, 0) == libc.syscall(446, rules, 0) == 0
os.umask(0o022)
"""
SERVE = """
serve(socket.socket(fileno=int(sys.argv[2])))
"""

# What disks and kernels do here rarely or never, seccomp does for them: it answers a call, or ends the process at it.
FAULT = """
import ctypes, platform, struct
numbers = {{"openat": (257, 56), "fsync": (74, 82), "sendmsg": (46, 211)}}["{call}"]
rules = [
    (0x20, 0, 0, 0), (0x15, 0, 3, numbers[platform.machine() == "aarch64"]),  # which call
    (0x20, 0, 0, {word}), (0x45, 0, 1, {bits}),  # any of these bits in the lower half of an argument
    (0x06, 0, 0, {answer}), (0x06, 0, 0, 0x7FFF0000),
]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
"""
FLAGS = 32  # where openat's are
ANYTHING = {"word": 16, "bits": 0xFFFFFFFF}  # of the first argument


def failing(number: int) -> int:
    """The answer of a call that fails with an errno."""
    return 0x00050000 | number


FATAL = 0x80000000
"""The answer of a call that ends its process."""
WITHOUT_TMPFILE = FAULT.format(call="openat", word=FLAGS, bits=0x400000, answer=failing(errno.EOPNOTSUPP))
# What the opener opens behind a change, to have it flushed: no other openat of its has this flag.
AT_THE_FLUSH = {"call": "openat", "word": FLAGS, "bits": os.O_NONBLOCK}


@attrs.frozen
class Door:
    files: rooms.Files
    opener: subprocess.Popen[bytes]

    def stop(self) -> None:
        """Have the opener answer nothing any more; it is not waited for as long as one that is only slow."""
        self.opener.send_signal(signal.SIGSTOP)
        self.files._exchange.answer_s = STOPPED_S

    def go_on(self) -> None:
        """Have it serve what it was asked for meanwhile, and what comes."""
        self.files._exchange.answer_s = ANSWER_S
        self.opener.send_signal(signal.SIGCONT)


def start_opener(
    *, uid: int = 0, tmpfile: bool = True, walls: Path | None = None, open_files: int = 256, fault: str = ""
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start an opener as another user, with a fault, without O_TMPFILE, or inside Landlock walls around one folder."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = OPENER + fault + ("" if tmpfile else WITHOUT_TMPFILE) + SERVE
    command = [sys.executable, "-I", "-S", "-c", code, str(ROOT), str(theirs.fileno()), str(uid), str(walls or "")]
    command.append(str(open_files))
    with theirs:
        return ours, subprocess.Popen(command, pass_fds=[theirs.fileno()])


@asynccontextmanager
async def open_door(
    *,
    uid: int = 0,
    tmpfile: bool = True,
    walls: Path | None = None,
    open_files: int = 256,
    answer_s: float = ANSWER_S,
    fault: str = "",
    disk: Disk | None = None,
) -> AsyncIterator[Door]:
    ours, opener = start_opener(uid=uid, tmpfile=tmpfile, walls=walls, open_files=open_files, fault=fault)
    try:
        async with rooms.open_files(ours, answer_s=answer_s, disk=disk) as files:
            yield Door(files, opener)
        opener.wait(5)  # the end of the socket is its end
    finally:
        opener.kill()
        opener.wait()


def descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


def reachable(folder: Path) -> Path:
    """Open *folder* to every user, whoever runs the tests; pytest makes its folders private."""
    folder.chmod(0o777)
    for above in folder.parents:
        if above != Path("/") and above.stat().st_uid == os.geteuid():
            above.chmod(above.stat().st_mode | 0o055)
    return folder


async def read(files: rooms.Files, path: Path | str) -> bytes:
    with await files.resolve(str(path), read=True) as found:
        return await files.read(found, 0, 1 << 30)
