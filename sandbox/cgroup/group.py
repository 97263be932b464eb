"""One control group (cgroup v2): its limits, its members, what they used, and their end. Outside the walls.

Every limit is read back after it was written, and no file is ever created: a directory that only looks like a
cgroup enforces nothing. The calls block for a fraction of a millisecond, `join` for some more when the kernel is
busy. Knows neither sessions (`session.py`) nor where the tree begins (`tree.py`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from typing import TYPE_CHECKING

import trio

from sandbox.cgroup.usage import Usage, read_flat
from sandbox.errors import SandboxError
from sandbox.kernel.files import file_system

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandbox.plan.limits import GroupLimits

CGROUP2_MAGIC = 0x63677270
READ_BYTES = 1 << 16


class CgroupFault(SandboxError):
    """Failure at a control group; the text says at which file and why."""

    def __init__(self, path: str, why: str) -> None:
        """Keep place and reason apart."""
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


def is_cgroup2(path: str) -> bool:
    """Tell whether *path* is a directory of a cgroup v2 file system, by asking the file system."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return file_system(fd) == CGROUP2_MAGIC
        finally:
            os.close(fd)
    except OSError:  # not there or no directory: certainly none
        return False


class Group:
    """One existing control group."""

    def __init__(self, path: str) -> None:
        """Take the group at *path*. Raises CgroupFault: it is none."""
        if not is_cgroup2(path):
            raise CgroupFault(path, "this is no cgroup v2 directory")
        self.path = path

    def create(self, name: str) -> Group:
        """Make a group below this one."""
        path = f"{self.path}/{name}"
        try:
            os.mkdir(path, 0o755)
        except OSError as error:
            raise CgroupFault(path, error.strerror or str(error)) from error
        return Group(path)

    def children(self) -> list[Group]:
        """List the groups directly below."""
        with os.scandir(self.path) as listing:
            return [Group(item.path) for item in listing if item.is_dir(follow_symlinks=False)]

    def controllers(self) -> frozenset[str]:
        """Return what this group could control in groups below it."""
        return frozenset(self.read("cgroup.controllers").split())

    def enabled(self) -> frozenset[str]:
        """Return what this group does control in groups below it."""
        return frozenset(self.read("cgroup.subtree_control").split())

    def enable(self, names: Iterable[str], *, sign: str = "+") -> None:
        """Control *names* in the groups below; fails with EBUSY while this group has members of its own."""
        if wanted := " ".join(f"{sign}{name}" for name in sorted(names)):
            self.write("cgroup.subtree_control", wanted)

    def limit(self, limits: GroupLimits) -> tuple[str, ...]:
        """Set *limits*; return the files that this kernel does not have, so that nothing limits there.

        Raises:
            CgroupFault: a limit was refused, or reads back as something else.
        """
        return tuple(name for name, value in limits.files() if not self._set(name, value))

    def _set(self, name: str, value: str) -> bool:
        """Write a limit and read it back; return whether there is such a file."""
        path = f"{self.path}/{name}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.write(fd, value.encode("ascii"))
                found = os.pread(fd, READ_BYTES, 0).decode("ascii").strip()
            finally:
                os.close(fd)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise CgroupFault(path, f"writing {value!r}: {error.strerror}") from error
        if found != value:
            raise CgroupFault(path, f"wrote {value!r}, but it reads {found!r}")
        return True

    def join(self, pid: int) -> None:
        """Move a process here, with all its threads. Raises CgroupFault, ProcessLookupError: it is gone."""
        try:
            self.write("cgroup.procs", str(pid))
        except CgroupFault as fault:
            if isinstance(fault.__cause__, ProcessLookupError):
                raise ProcessLookupError(errno.ESRCH, f"no process {pid}") from fault
            raise

    def vacate(self, to: Group) -> None:
        """Move every member, and whoever it forks meanwhile, to another group. Raises CgroupFault."""
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):  # it ended
                    to.join(pid)

    def open_entry(self) -> int:
        """Open the way in: a process that writes "0" to this descriptor moves here, whoever it is."""
        path = f"{self.path}/cgroup.procs"
        try:
            return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CgroupFault(path, error.strerror or str(error)) from error

    def pids(self) -> list[int]:
        """List the members, without those of groups below."""
        return [int(line) for line in self.read("cgroup.procs").split()]

    def freeze(self, *, frozen: bool = True) -> None:
        """Ask that everything here and below stands still or goes on; cgroup.events tells when it does."""
        self.write("cgroup.freeze", "1" if frozen else "0")

    def kill(self) -> None:
        """SIGKILL everything here and below at once; nothing can fork its way out, not even from a frozen group."""
        try:
            self.write("cgroup.kill", "1")
        except CgroupFault as fault:
            if isinstance(fault.__cause__, FileNotFoundError) and os.path.isdir(self.path):
                self._kill_frozen()  # before Linux 5.14
            elif os.path.isdir(self.path):
                raise

    def _kill_frozen(self) -> None:
        """Kill one by one what is on its way to a standstill, until a look finds nobody new: those fork no more."""
        self.freeze()
        killed = {0}  # how members show that are of no pid namespace of ours; to kill(2) it would mean ourselves
        try:
            while fresh := set(self.everyone()) - killed:
                killed |= fresh
                for pid in fresh:
                    with contextlib.suppress(ProcessLookupError):  # it is gone, which is what we want
                        os.kill(pid, signal.SIGKILL)
        finally:
            self.freeze(frozen=False)

    def everyone(self) -> list[int]:
        """List the members of this group and of all below it."""
        try:
            return [*self.pids(), *(pid for child in self.children() for pid in child.everyone())]
        except (CgroupFault, FileNotFoundError):
            if os.path.isdir(self.path):
                raise
            return []  # removed meanwhile, so nobody lives in it

    async def wait_empty(self) -> None:
        """Wait until nothing lives in this group or below it.

        A file like cgroup.events is always readable, so a change of it is waited for as an exceptional condition.
        """
        await trio.lowlevel.checkpoint()
        with select.epoll() as epoll:
            try:
                fd = os.open(f"{self.path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # the group was removed, so it is empty
                return
            try:
                epoll.register(fd, select.EPOLLPRI)
                while _reads_populated(fd):
                    await trio.lowlevel.wait_readable(epoll.fileno())
                    epoll.poll(0)
            finally:
                trio.lowlevel.notify_closing(epoll)
                os.close(fd)

    def usage(self) -> Usage:
        """Return what the members used so far."""
        cpu = read_flat(self.read("cpu.stat"))  # there without a controller too
        return Usage(
            memory_peak_bytes=self._number("memory.peak"),  # Linux 5.19
            cpu_user_us=cpu["user_usec"],
            cpu_system_us=cpu["system_usec"],
            oom_kills=self.counted("memory.events", "oom_kill"),
        )

    def _number(self, name: str) -> int | None:
        return int(self.read(name)) if os.path.exists(f"{self.path}/{name}") else None

    def counted(self, name: str, what: str) -> int:
        """Return one number of a file of counts; 0 where this kernel keeps no such count."""
        return read_flat(self.read(name)).get(what, 0) if os.path.exists(f"{self.path}/{name}") else 0

    def remove(self) -> None:
        """Remove this group and those below. Raises CgroupFault: something lives in one of them."""
        try:
            for child in self.children():
                child.remove()
            os.rmdir(self.path)
        except FileNotFoundError:  # it is gone, which is what we want
            return
        except OSError as error:
            raise CgroupFault(self.path, error.strerror or str(error)) from error

    def read(self, name: str) -> str:
        """Read one of the group's files."""
        path = f"{self.path}/{name}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                pieces = list(iter(lambda: os.read(fd, READ_BYTES), b""))
            finally:
                os.close(fd)
        except OSError as error:
            raise CgroupFault(path, error.strerror or str(error)) from error
        return b"".join(pieces).decode("ascii")

    def write(self, name: str, value: str) -> None:
        """Write one of the group's files in one system call, never making one."""
        path = f"{self.path}/{name}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.write(fd, value.encode("ascii"))
            finally:
                os.close(fd)
        except OSError as error:
            raise CgroupFault(path, f"writing {value!r}: {error.strerror}") from error


def _reads_populated(fd: int) -> bool:
    try:
        return read_flat(os.pread(fd, 4096, 0).decode("ascii")).get("populated", 0) != 0
    except OSError as error:
        if error.errno == errno.ENODEV:  # the group was removed while its file is open
            return False
        raise
