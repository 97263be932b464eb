"""Unpack a tar stream into a directory that nobody sees before it is complete (child side, stdlib only).

The tree grows in a hidden directory beside its place, and gets its name in one step when the archive was read to its
end, all of it was permitted, and it is on the disk. If anything is against it, nothing is left. Nothing here follows
a link: none is made, and each step opens one name in one open directory. A directory that is left gets back the time
that it had, or was given: what was made in it meanwhile does not count as a change.
"""

from __future__ import annotations

import errno
import os
import time

from sandbox.inside.unfinished.parts import PLAIN_MODE
from sandbox.inside.unfinished.stage import Stage
from sandbox.inside.worker.change import require_fit
from sandbox.inside.worker.tar import bad
from sandbox.inside.worker.tar_members import Members
from sandbox.inside.worker.tar_pipe import Inlet
from sandbox.inside.worker.walk import Rules, open_directory
from sandbox.kernel.files import Held, Refused, real_path

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from sandbox.inside.worker.job import Job
    from sandbox.inside.worker.tar_members import Member
    from sandbox.protocol.files import Packed, Unpack

PATH_BYTES = 4095
NEW_DIRECTORY = 0o777
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def unpack(job: Job, spec: Unpack, fds: list[int]) -> Packed:
    """Unpack what comes through the pipe to `name` of the pinned directory, which is free or an empty directory."""
    parent, pipe = fds
    inlet = Inlet(job, pipe, max_bytes=spec["max_bytes"], gzip=spec["gzip"])
    with Stage(parent) as stage, _Unpacker(job, spec, stage.fd) as unpacker:
        for member in Members(inlet, max_entries=spec["max_entries"]):
            job.tick()
            unpacker.take(member, inlet)
        unpacker.finish(spec["mode"])
        job.look(time.monotonic())  # a broker that gives up closes the job before the pipe: then this is no end
        if f"{real_path(parent).rstrip('/')}/{spec['name']}" != spec["new_path"]:
            raise Refused("changed", errno.ESTALE, "the directory that it is in was moved meanwhile; try again")
        stage.commit(spec["name"], replace_empty=spec["replace_empty"])
    return {}


class _Unpacker:
    def __init__(self, job: Job, spec: Unpack, top: int) -> None:
        self._job = job
        self._rules = Rules(spec["rules"])
        self._new_path: str = spec["new_path"].rstrip("/")
        self._max_file_bytes: int = spec["max_file_bytes"]
        self._max_content_bytes: int = spec["max_content_bytes"]
        self._reserve_bytes: int = spec["reserve_bytes"]
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._top = top
        self._descent = Descent(top, self._permit_directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._descent.close()  # first: removing what there is takes descriptors too

    def finish(self, mode: int | None) -> None:
        """Leave all directories; the top gets *mode*, or that of a new directory."""
        self._descent.enter([])
        os.fchmod(self._top, NEW_DIRECTORY & ~self._umask if mode is None else mode & PLAIN_MODE)

    def take(self, member: Member, inlet: Inlet) -> None:
        """Make one entry."""
        if len(os.fsencode(self._new_path)) + 1 + len(os.fsencode(member.relative)) > PATH_BYTES:
            raise bad(f"{member.relative[:200]!r} is too long: with where it goes it has more than {PATH_BYTES} bytes")
        try:
            if member.is_directory:
                self._directory(member)
            else:
                self._file(member, inlet)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise bad(f"{member.relative!r} is in it twice, or is a file and a directory") from None

    def _directory(self, member: Member) -> None:
        level = self._descent.enter(member.parts)
        if not member.parts:
            return  # the top, whose looks are not the archive's to say
        os.fchmod(level.fd, (member.mode & PLAIN_MODE & ~self._umask) | 0o700)
        level.mtime_ns = member.mtime_ns
        self._job.count("directories")

    def _file(self, member: Member, inlet: Inlet) -> None:
        path = f"{self._new_path}/{member.relative}"
        if not self._rules.permit_file(path):
            raise Refused("blocked", errno.EACCES, f"the policy keeps {member.relative!r} closed to writing")
        self._require_fit(member)
        folder = self._descent.enter(member.parts[:-1])
        with Held(os.open(member.parts[-1], NEW_FILE, 0o600, dir_fd=folder.fd)) as file:
            for piece in inlet.pieces(member.size):
                written = 0
                while written < len(piece):
                    written += os.write(file.fd, piece[written:])
                self._job.count("bytes", len(piece))
            os.fchmod(file.fd, member.mode & PLAIN_MODE & ~self._umask)
            os.utime(file.fd, ns=(member.mtime_ns, member.mtime_ns))
        self._job.count("files")

    def _require_fit(self, member: Member) -> None:
        needed = self._job.counts["needed"] = self._job.counts.get("bytes", 0) + member.size
        require_fit(self._top, member.size, self._max_file_bytes, self._reserve_bytes, what=repr(member.relative))
        if needed > self._max_content_bytes:
            why = f"its files have more than the {self._max_content_bytes} bytes that max_session_bytes leaves"
            raise Refused("too_large", errno.EFBIG, why)

    def _permit_directory(self, relative: str) -> None:
        if not self._rules.permit_change(f"{self._new_path}/{relative}"):
            raise Refused("blocked", errno.EACCES, f"the policy keeps {relative!r} closed")


class Level:
    """An open directory; set `mtime_ns` for the time that it is to have when it is left."""

    __slots__ = ("fd", "mtime_ns", "name")

    def __init__(self, name: str, fd: int) -> None:
        self.name, self.fd = name, fd
        self.mtime_ns = os.fstat(fd).st_mtime_ns


class Descent:
    """The way from the top to the directory in hand. `permit` is asked about each directory before it is made."""

    def __init__(self, top: int, permit: Callable[[str], None]) -> None:
        self._top = Level("", top)
        self._permit = permit
        self._way: list[Level] = []

    def enter(self, parts: Sequence[str]) -> Level:
        """Go to a directory, making what is missing on the way. No parts: the top, and all others are left."""
        common = 0
        for level, name in zip(self._way, parts, strict=False):
            if level.name != name:
                break
            common += 1
        while len(self._way) > common:
            self._leave()
        for depth in range(common, len(parts)):
            self._way.append(self._step(parts, depth))
        return self._way[-1] if self._way else self._top

    def close(self) -> None:
        """Close all descriptors but the top's, and leave the times as they are."""
        while self._way:
            os.close(self._way.pop().fd)

    def _step(self, parts: Sequence[str], depth: int) -> Level:
        above, name = self._way[-1] if self._way else self._top, parts[depth]
        try:
            return Level(name, open_directory(name, above.fd))
        except FileNotFoundError:
            self._permit("/".join(parts[: depth + 1]))
            os.mkdir(name, dir_fd=above.fd)
            return Level(name, open_directory(name, above.fd))

    def _leave(self) -> None:
        level = self._way.pop()
        try:
            os.utime(level.fd, ns=(level.mtime_ns, level.mtime_ns))
        finally:
            os.close(level.fd)
