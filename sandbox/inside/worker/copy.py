"""Copy contents, holes included, and trees entry by entry (child side, stdlib only)."""

from __future__ import annotations

import errno
import os
import stat

from sandbox.inside.unfinished.parts import PLAIN_MODE
from sandbox.inside.worker.walk import Links, Rules, open_directory
from sandbox.kernel.files import STEP_BYTES, Held, Refused, open_path, real_path, reopen, require_room
from sandbox.protocol.files import MAX_DEPTH

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from sandbox.inside.worker.job import Job
    from sandbox.protocol.files import IntoTree

BUFFER_BYTES = 1024 * 1024
# The kernel copies within and between most file systems itself; where it does not, we do.
NOT_IN_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM, errno.ETXTBSY)
REPORTED = 50  # of what was passed over


def copy_content(job: Job, source: int, target: int, limit: int, reserve: int) -> int:
    """Copy all bytes; holes stay holes. Return how many there are.

    Raises: Refused when the file changes meanwhile or is larger than *limit*; ReserveReached.
    """
    before = os.fstat(source)
    if before.st_size > limit:
        raise Refused(
            "too_large", errno.EFBIG, f"it has {before.st_size} bytes and file_limits.max_write_size is {limit}"
        )
    at = 0
    while at < before.st_size:
        start, end = _data_after(source, at, before.st_size)
        while start < end:
            job.tick()
            step = min(STEP_BYTES, end - start)
            require_room(target, step, reserve)
            copied = _copy_range(source, target, start, step)
            if not copied:
                break
            start += copied
        at = end
    os.ftruncate(target, before.st_size)
    after = os.fstat(source)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise Refused("changed", errno.ESTALE, "it was changed while it was copied; try again")
    return before.st_size


def _data_after(fd: int, at: int, size: int) -> tuple[int, int]:
    """The next stretch that is no hole; an empty one at the end."""
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
        return start, min(size, os.lseek(fd, start, os.SEEK_HOLE))
    except OSError as fault:
        if fault.errno == errno.ENXIO:
            return size, size
        return at, size  # a file system that does not know of holes


def _copy_range(source: int, target: int, at: int, length: int) -> int:
    try:
        return os.copy_file_range(source, target, length, at, at)
    except OSError as fault:
        if fault.errno not in NOT_IN_KERNEL:
            raise
    data = os.pread(source, min(length, BUFFER_BYTES), at)
    view, written = memoryview(data), 0
    while written < len(data):
        written += os.pwrite(target, view[written:], at + written)
    return written


class Copier:
    """Copies what a directory holds into another; passes over what must not or cannot be copied.

    With *strict* all must be copied, with its times, as for a move.
    """

    def __init__(self, job: Job, rules: Rules, spec: IntoTree, *, strict: bool) -> None:
        self._job = job
        self._rules = rules
        self._links = Links(job, rules, [*spec["link_roots"]])
        self._limit: int = spec["max_file_bytes"]
        self._most: int = spec["max_total_bytes"]
        self._reserve: int = spec["reserve_bytes"]
        self._strict = strict
        # a move takes the source away
        self._may_go = rules.permit_change if self._strict else rules.permit
        self._top: str = spec["new_path"]
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self.skipped: list[list[str]] = []

    def copy(self, source: int, target: int, depth: int, relative: str = "") -> None:
        """Copy everything below *source*, which is open and permitted."""
        path = self._place_of(source)
        if not self._rules.permit(path):
            self._pass_over(relative.rstrip("/"), "the policy keeps it closed")
            return
        for name in sorted(os.listdir(source)):
            self._job.tick()
            entry = f"{relative}{name}"
            if not (self._may_go(f"{path}/{name}") and self._rules.permit_change(f"{self._top}/{entry}")):
                self._pass_over(entry, "the policy keeps it closed")
                continue
            try:
                status = os.lstat(name, dir_fd=source)
            except FileNotFoundError:
                continue  # removed since its name was read
            self._copy_entry(source, target, name, status, depth, entry)

    def _copy_entry(self, source: int, target: int, name: str, status: os.stat_result, depth: int, entry: str) -> None:
        if stat.S_ISDIR(status.st_mode):
            self._copy_directory(source, target, name, depth, entry)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            self._job.count("links")
        elif stat.S_ISREG(status.st_mode):
            self._copy_file(source, target, name, entry)
        else:
            self._pass_over(entry, "it is no file, directory or link")

    def _copy_directory(self, source: int, target: int, name: str, depth: int, entry: str) -> None:
        if depth >= MAX_DEPTH:
            raise Refused("too_large", errno.ELOOP, f"it is deeper than {MAX_DEPTH} directories")
        with Held(open_directory(name, source)) as below:
            if os.fstat(below.fd).st_dev != os.fstat(source).st_dev:
                self._pass_over(entry, "another file system is mounted there")
                return
            with Held(self._make(name, target)) as made:
                self.copy(below.fd, made.fd, depth + 1, f"{entry}/")
                status = os.fstat(below.fd)
                os.fchmod(made.fd, status.st_mode & PLAIN_MODE)
                if self._strict:
                    os.utime(made.fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        self._job.count("directories")

    def _place_of(self, fd: int) -> str:
        """Return where something in the source is, as the rules are asked about it."""
        return real_path(fd)

    def _make(self, name: str, target: int) -> int:
        """Make the copy of a directory, to be filled; return it open."""
        os.mkdir(name, 0o700, dir_fd=target)
        return open_directory(name, target)

    def _copy_file(self, source: int, target: int, name: str, entry: str) -> None:
        with Held(open_path(name, dir_fd=source, flags=os.O_NOFOLLOW)) as pinned:
            status, path = os.fstat(pinned.fd), self._place_of(pinned.fd)
            if not stat.S_ISREG(status.st_mode) or not self._rules.permit(path):
                self._pass_over(entry, "it was replaced meanwhile")
            elif not self._strict and not self._rules.permit_file(f"{self._top}/{entry}"):
                self._pass_over(entry, "files with its extension must not be written")
            elif not self._links.are_innocent(pinned.fd):
                self._pass_over(entry, "one of its other names (hard links) is closed or unknown")
            else:
                self._copy_pinned(pinned.fd, target, name, status)

    def _copy_pinned(self, pinned: int, target: int, name: str, status: os.stat_result) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with Held(reopen(pinned, os.O_RDONLY)) as file, Held(os.open(name, flags, 0o600, dir_fd=target)) as copy:
            self._require_as_large_as_surveyed(os.fstat(file.fd).st_size)
            self._job.count("bytes", copy_content(self._job, file.fd, copy.fd, self._limit, self._reserve))
            os.fchmod(copy.fd, status.st_mode & PLAIN_MODE & ~(0 if self._strict else self._umask))
            if self._strict:
                os.utime(copy.fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        self._job.count("files")

    def _require_as_large_as_surveyed(self, more: int) -> None:
        """Keep to what was counted before, and taken from the quota of the session."""
        if self._job.counts.get("bytes", 0) + more > self._most:
            raise Refused("changed", errno.ESTALE, "it grew while it was copied; try again")

    def _pass_over(self, entry: str, why: str) -> None:
        if self._strict:
            raise Refused("blocked", errno.EACCES, f"{entry!r} cannot be moved: {why}")
        self._job.count("skipped")
        if len(self.skipped) < REPORTED:
            self.skipped.append([entry, why])
