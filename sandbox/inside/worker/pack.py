"""Pack a tree into a tar stream (child side, stdlib only).

Plain files and directories, what they hold, their modes and their times (whole seconds). What is something else, or
closed, or cannot be read, is left out, counted and named. A file must be at its end what it was at its beginning:
else the work ends there, and the stream in the middle of that file.
"""

from __future__ import annotations

import errno
import os
import stat

from sandbox.inside.unfinished import hidden
from sandbox.inside.unfinished.parts import PLAIN_MODE
from sandbox.inside.worker.tar import BROKEN_OFF, END, member, padding
from sandbox.inside.worker.tar_pipe import CHUNK_BYTES, Outlet
from sandbox.inside.worker.walk import Links, Rules, Walk
from sandbox.kernel.files import Held, Refused, kind_of, open_path, real_path, reopen

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from sandbox.inside.worker.job import Job
    from sandbox.inside.worker.walk import Found
    from sandbox.protocol.files import Pack, Packed

REPORTED = 50  # of what was left out
UNENTERED = ("unreadable", "blocked", "too_deep")  # as the walk counts them
SAME = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")


def pack(job: Job, spec: Pack, fds: list[int]) -> Packed:
    """Pack what the open directory holds into the pipe. Names are relative to it; it is not an entry itself."""
    directory, pipe = fds
    outlet = Outlet(job, pipe, max_bytes=spec["max_bytes"], gzip=spec["gzip"])
    packer = _Packer(job, outlet, spec)
    try:
        for found in Walk(job, packer.rules).tree(directory):
            packer.take(found)
        packer.note_unentered()
        outlet.put(END)
        outlet.finish()
    except (Refused, OSError):
        outlet.break_off(BROKEN_OFF)
        raise
    finally:
        job.counts["bytes"] = outlet.taken
    return {"left_out": packer.left_out}


class _Packer:
    def __init__(self, job: Job, outlet: Outlet, spec: Pack) -> None:
        self._job = job
        self._outlet = outlet
        self._max_entries: int = spec["max_entries"]
        self._entries = 0
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        self.rules = Rules(spec["rules"])
        self._links = Links(job, self.rules, [*spec["link_roots"]])
        self.left_out: list[list[str]] = []
        self._last: Found | None = None
        self._unentered = 0

    def take(self, found: Found) -> None:
        """Pack one name of the tree."""
        self.note_unentered()
        self._last = found
        if not found.permitted:
            self._leave_out(found, "the policy keeps it closed")
        elif hidden.is_part(found.name):
            found.descend = False
            self._leave_out(found, "it is half of a write that is under way")
        elif found.kind == "directory":
            self._directory(found)
        elif found.kind == "file":
            self._file(found)
        else:
            self._leave_out(found, f"it is a {found.kind}")

    def note_unentered(self) -> None:
        """Tell of a directory that the walk could not enter, which it only counts: it is the name before."""
        unentered = sum(self._job.counts.get(why, 0) for why in UNENTERED)
        if unentered > self._unentered and self._last is not None:
            self._unentered = unentered
            self._leave_out(self._last, "what is in it: it cannot be entered, or is too deep")

    def _directory(self, found: Found) -> None:
        status = found.status()
        if status is not None and stat.S_ISDIR(status.st_mode):
            self._begin(found, status)
            self._job.count("directories")

    def _file(self, found: Found) -> None:
        try:
            pinned = open_path(found.name, dir_fd=found.parent_fd, flags=os.O_NOFOLLOW)
        except FileNotFoundError:
            return  # removed since its name was read
        except PermissionError:
            self._leave_out(found, "it cannot be read")
            return
        with Held(pinned):
            status, path = os.fstat(pinned), real_path(pinned)
            if kind_of(pinned, status) != "file" or not self.rules.permit(path):
                self._leave_out(found, "it was replaced meanwhile")
            elif not self._links.are_innocent(pinned):
                self._leave_out(found, "one of its other names (hard links) is closed or unknown")
            else:
                self._open_and_copy(found, pinned)

    def _open_and_copy(self, found: Found, pinned: int) -> None:
        try:
            file = reopen(pinned, os.O_RDONLY)
        except PermissionError:
            self._leave_out(found, "it cannot be read")
            return
        with Held(file):
            before = os.fstat(file)
            self._begin(found, before)
            self._outlet.inside = before.st_size > 0
            self._copy(found, file, before)
            self._outlet.inside = False
        self._job.count("files")

    def _begin(self, found: Found, status: os.stat_result) -> None:
        """Write the header, if there is room for all that belongs to it and for the archive's end."""
        if self._entries >= self._max_entries:
            raise Refused("too_large", errno.EFBIG, f"it has more than archive_max_entries, {self._entries} entries")
        self._entries += 1
        is_directory = stat.S_ISDIR(status.st_mode)
        size = 0 if is_directory else status.st_size
        header = member(
            os.fsencode(found.relative),
            directory=is_directory,
            size=size,
            mode=status.st_mode & PLAIN_MODE,
            mtime_s=status.st_mtime_ns // 1_000_000_000,
        )
        self._outlet.require(len(header) + size + padding(size) + len(END))
        self._outlet.put(header)

    def _copy(self, found: Found, file: int, before: os.stat_result) -> None:
        """Write the content. The last piece is kept back until it is known that the file did not change."""
        at = 0
        while at < before.st_size:
            count = os.preadv(file, [self._buffer[: before.st_size - at]], at)
            at += count
            if not count or (at == before.st_size and not _same(before, os.fstat(file))):
                raise Refused("changed", errno.ESTALE, f"{found.relative!r} was changed while it was packed; try again")
            self._outlet.put(self._buffer[:count])
        self._outlet.put(bytes(padding(before.st_size)))

    def _leave_out(self, found: Found, why: str) -> None:
        self._job.count("left_out")
        if len(self.left_out) < REPORTED:
            self.left_out.append([found.relative, why])


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    return all(getattr(before, name) == getattr(after, name) for name in SAME)
