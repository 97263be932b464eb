"""Processes by /proc: which number is whose, which trees they form, and how one is ended. Both sides, stdlib only.

A process in a pid namespace of its own knows itself and its children by numbers that mean something else, or
nobody, outside. So it hands over pidfds, which mean the same everywhere, and the kernel says the number.

A tree ends in one stroke where its members are alone in a Landlock domain with signal scope: kill(-1) then
reaches them and nobody else, and the kernel lets no member fork past it. Elsewhere it ends in rounds.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

ROUND = 200  # processes stopped per step: each costs a descriptor, and the usual limit of those is 1024


class ProcessEntry:
    """One line of /proc: enough to build trees and to count what a user has."""

    __slots__ = ("parent", "pid", "threads", "zombie")

    def __init__(self, pid: int, fields: list[bytes]) -> None:
        """Take the fields of /proc/PID/stat from the state on."""
        self.pid = pid
        self.parent = int(fields[1])
        self.threads = int(fields[17])
        self.zombie = fields[0] in b"ZX"


def read_entry(pid: int) -> ProcessEntry | None:
    """Read one process, or None when it is gone."""
    line = _read(f"/proc/{pid}/stat")
    # The name in parentheses may hold anything, spaces and parentheses included; no field after it does.
    return ProcessEntry(pid, line[line.rindex(b")") + 2 :].split()) if line else None


def number_inside(pid: int) -> int:
    """Return the number that a process has in its own pid namespace; 0 when it is gone."""
    _, _, rest = _read(f"/proc/{pid}/status").partition(b"\nNSpid:\t")
    return int(rest.split(b"\n", 1)[0].split()[-1]) if rest else 0


def _read(path: str) -> bytes:
    """Return what a small file of a process says, or nothing when the process is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # it ended, or hidepid= hides another user's
        return b""
    try:
        return os.read(fd, 4096)
    except OSError:  # it ended after the open
        return b""
    finally:
        os.close(fd)


def pid_of(pidfd: int) -> int:
    """Return the number of the process behind *pidfd* in our pid namespace, or 0 when it is gone.

    Ownership: the descriptor stays the caller's.
    """
    fd = os.open(f"/proc/self/fdinfo/{pidfd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 4096)
    finally:
        os.close(fd)
    _, _, rest = text.partition(b"\nPid:\t")
    return max(0, int(rest.split(b"\n", 1)[0] or 0))


def take_pid(pidfd: int) -> int:
    """Return the number as `pid_of` does. Ownership: closes *pidfd*."""
    try:
        return pid_of(pidfd)
    finally:
        os.close(pidfd)


def entries() -> Iterator[ProcessEntry]:
    """Read every process there is. Not a snapshot: processes come and go meanwhile."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (entry := read_entry(int(name))) is not None:
            yield entry


def descendants(root: int, *, spare: Collection[int] = ()) -> list[ProcessEntry]:
    """List what lives below *root*, parents first; *spare* processes are left out with all below them."""
    children: dict[int, list[ProcessEntry]] = {}
    for entry in entries():
        children.setdefault(entry.parent, []).append(entry)
    found: list[ProcessEntry] = []
    queue = [root]
    for pid in queue:
        kept = [entry for entry in children.get(pid, ()) if entry.pid not in spare]
        found += kept
        queue += [entry.pid for entry in kept]
    return found


def is_below(pid: int, roots: Collection[int]) -> bool:
    """Tell whether one of *roots* is an ancestor of *pid*.

    Looked up twice: an ancestor that ends between two reads may come back as somebody else.
    """
    line = _ancestors(pid)
    return any(root in line for root in roots) and line == _ancestors(pid)


def _ancestors(pid: int) -> list[int]:
    line: list[int] = []
    while (entry := read_entry(pid)) is not None and entry.parent > 0:
        pid = entry.parent
        line.append(pid)
    return line


def threads_of_user(uid: int) -> int:
    """Count the tasks of a user, as RLIMIT_NPROC does."""
    count = 0
    with os.scandir("/proc") as listing:
        for item in listing:
            if item.name.isdigit():
                with contextlib.suppress(OSError):  # it ended meanwhile
                    if item.stat().st_uid == uid and (entry := read_entry(int(item.name))):
                        count += entry.threads
    return count


def scope_holds(outside_pid: int) -> bool:
    """Tell whether signals to *outside_pid* are refused: only then may kill(-1) be used."""
    try:
        os.kill(outside_pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return False


def end_domain(on_exit: Callable[[int, int], None]) -> None:
    """Kill and reap everything else in our domain. Only where `scope_holds`; blocks until all is gone."""
    while True:
        # ESRCH: nobody left to kill, EPERM: nobody left whom we may kill. What is left is to be reaped.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(-1, signal.SIGKILL)
        try:
            on_exit(*os.waitpid(-1, 0))
        except ChildProcessError:
            return


def end_in_rounds(on_exit: Callable[[int, int], None], *, spare: Collection[int] = ()) -> None:
    """Stop, kill and reap all descendants but *spare* and theirs; blocks until none is left.

    Stopping comes first because a stopped process cannot fork: the tree holds still before it is killed. What
    forks and exits faster than /proc can be read may escape for as long as it does so.
    """
    me = os.getpid()
    while victims := [entry for entry in descendants(me, spare=spare) if not entry.zombie]:
        held: dict[int, int] = {}
        try:
            while _hold(victims, held):
                victims = [entry for entry in descendants(me, spare=spare) if not entry.zombie]
            _kill_held(held)
        finally:
            for pidfd in held.values():
                os.close(pidfd)
        _reap_exited(on_exit)
    _reap_exited(on_exit)


def _hold(victims: list[ProcessEntry], held: dict[int, int]) -> int:
    """Stop those not yet held, through pidfds so that no reused pid is hit; return how many were new."""
    fresh = [entry for entry in victims if entry.pid not in held][: ROUND - len(held)]
    stopped = 0
    for entry in fresh:
        with contextlib.suppress(ProcessLookupError):  # it ended: what we want
            pidfd = os.pidfd_open(entry.pid)
            now = read_entry(entry.pid)
            if now is None or now.parent not in {entry.parent, os.getpid()}:
                os.close(pidfd)
                continue
            held[entry.pid] = pidfd
            stopped += 1
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
    return stopped


def _kill_held(held: dict[int, int]) -> None:
    poll = select.poll()
    for pidfd in held.values():
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        poll.register(pidfd, select.POLLIN)
    waiting = set(held.values())
    while waiting:
        for pidfd, _ in poll.poll():
            poll.unregister(pidfd)
            waiting.discard(pidfd)


def _reap_exited(on_exit: Callable[[int, int], None]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            on_exit(pid, status)
