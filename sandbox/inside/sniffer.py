"""The sniffer: a process that tells the type of bytes by libmagic, and holds nothing but the socket they come by.

Child side, stdlib only, but for python-magic, which it loads by name before it confines itself. A session chooses the
bytes, so they are parsed where a fault in libmagic finds nothing: no file, no network, no program, no other process.
Of libmagic's own search path (MAGIC, ~/.magic) nothing is used: the environment is empty, and the database is named
to it, one that only root can write.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import resource
import signal
import socket
import stat
import sys

from sandbox.inside.stages import StageFailed, stage
from sandbox.kernel import landlock, namespaces, process, rlimits, seccomp, syscalls
from sandbox.protocol.commands import PACKET_BYTES, READY, UNABLE

TYPE_CHECKING = False  # importing typing costs half a megabyte
if TYPE_CHECKING:
    from typing import Any, NoReturn

NOBODY = 65534
"""Its user under root: nobody, whose process no session may signal either."""
CPU_S = 0.5  # for one question, by the kernel: a busy machine does not make content look as if it hung
MEMORY_BYTES = 256 * 1024 * 1024  # of addresses; it takes about 40 MiB
PROT_EXEC = 4
CALLS = (
    "recvfrom sendto futex mmap munmap mremap mprotect madvise brk setitimer clock_gettime getrandom sched_yield "
    "rt_sigprocmask rt_sigreturn restart_syscall exit exit_group"
)
"""All it may ask of the kernel once it is confined: to receive, to answer, to compute."""


class Unable(Exception):
    """There will be no answers by content, and why."""


def main(fd: int, broker_pid: int, folder: str, module_name: str) -> NoReturn:
    """Load the library, say so, answer what comes by *fd* until the broker is gone.

    Args:
        fd: of the socket.
        broker_pid: of who started this process, and whose end ends it.
        folder: where python-magic was found.
        module_name: of python-magic.
    """
    process.die_with(broker_pid, signal.SIGKILL)
    process.default_signals()
    process.go_first()
    sock = socket.socket(fileno=process.keep_only(fd))
    try:
        sniffer, errors, report = _load(folder, module_name)
        walls = _confine(broker_pid)
    except (Unable, StageFailed) as why:
        sock.send(UNABLE + str(why).encode(errors="replace")[:PACKET_BYTES])
        os._exit(0)
    sock.send(READY + f"{report}; its walls: {walls}".encode())
    _serve(sock, sniffer, errors)
    os._exit(0)


def _load(folder: str, module_name: str) -> tuple[Any, type[Exception], str]:
    """Return libmagic with its database, the error it raises, and what a person calls it. Raises Unable."""
    sys.path.append(folder)  # last: what else is there must not shadow the standard library
    try:
        module: Any = importlib.import_module(module_name)
        errors: type[Exception] = module.MagicException
        version = module.version()
        database = _database(module)
    except (ImportError, AttributeError, NotImplementedError) as fault:
        raise Unable(str(fault)) from fault
    try:
        sniffer = module.Magic(mime=True, magic_file=database)
        sniffer.from_buffer(b"#!/bin/sh\n")  # whatever it does but once, it does before the walls
    except errors as fault:
        raise Unable(f"libmagic: {database}: {fault}") from fault
    return sniffer, errors, f"libmagic {version // 100}.{version % 100:02} with {database}"


def _database(module: Any) -> str:
    """Return the compiled database that this libmagic was built for. Raises Unable: there is none to be trusted."""
    ask = module.libmagic.magic_getpath  # as long as there is no MAGIC and no HOME: what was compiled in
    ask.restype, ask.argtypes = ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_int]
    told = ask(None, 0) or b""
    for place in os.fsdecode(told).split(":"):
        path = place if place.endswith(".mgc") else f"{place}.mgc"
        if os.path.isfile(path):
            return _trusted(os.path.realpath(path))
    raise Unable(f"libmagic has no compiled database at {os.fsdecode(told)!r}")


def _trusted(path: str) -> str:
    """Return *path* if nobody but root can write it or put another in its place. Raises Unable."""
    step = path
    while True:
        facts = os.lstat(step)
        shared = facts.st_mode & 0o022 and not (stat.S_ISDIR(facts.st_mode) and facts.st_mode & stat.S_ISVTX)
        if facts.st_uid != 0 or shared:
            raise Unable(f"libmagic's database {path} could be changed by others than root, at {step}")
        if step == "/":
            return path
        step = os.path.dirname(step)


def _confine(broker_pid: int) -> str:
    """Give up everything but the socket, for good; return the walls that hold. Raises StageFailed."""
    with stage("rlimits"):
        rlimits.no_core_dumps()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with stage("user"):
        namespaces.drop_bounding()
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        namespaces.drop_capabilities()
    process.prctl(process.SET_NO_NEW_PRIVS, 1)
    process.prctl(process.SET_DUMPABLE, 0)
    process.die_with(broker_pid, signal.SIGKILL)  # once more: a change of user clears it
    os.closerange(0, process.KEPT_FD)
    with stage("landlock"):
        version, no_landlock = landlock.abi()
        scopes = landlock.SCOPE_SIGNAL | landlock.SCOPE_ABSTRACT_UNIX
        landlock.enforce(version, handled=landlock.handled_rights(version), scoped=scopes)
    no_filter = _filter()
    if not (no_landlock and no_filter) and _can_read("/"):
        raise StageFailed("findings", "a file can be opened, although the kernel was told to refuse it")
    if no_filter:  # then at least no descriptor and no process more than there are
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    return ", ".join(
        (
            f"no Landlock ({no_landlock})" if no_landlock else f"Landlock ABI {version}",
            no_filter or "a system call filter",
        )
    )


def _filter() -> str:
    """Refuse every system call but CALLS; return why that cannot be done, or nothing."""
    refused = seccomp.refuse(errno.EPERM)
    table = (
        seccomp.Rule("mmap mprotect", refused, seccomp.has_any(2, PROT_EXEC)),
        seccomp.Rule(CALLS, seccomp.ALLOW),
    )
    try:
        seccomp.install(seccomp.assemble(syscalls.this_machine(), table, otherwise=refused))
    except (OSError, syscalls.UnknownMachine) as error:
        return f"no system call filter ({error})"
    return ""


def _can_read(path: str) -> bool:
    try:
        os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    return True


def _serve(sock: socket.socket, sniffer: Any, errors: type[Exception]) -> None:
    """Answer each packet with its type; with nothing for what libmagic gives up on."""
    while head := sock.recv(PACKET_BYTES):
        signal.setitimer(signal.ITIMER_PROF, CPU_S)  # SIGPROF ends the process
        try:
            found = sniffer.from_buffer(head)
        except (errors, MemoryError):
            found = ""
        signal.setitimer(signal.ITIMER_PROF, 0)
        sock.send(READY + found.encode())
