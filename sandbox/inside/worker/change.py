"""Copy and remove, one file or whole trees (child side, stdlib only).

A copy comes into being under a hidden name and gets its own in one step, flushed to the disk: whoever looks sees
nothing or all of it. A removal looks at the whole tree first and begins only when nothing in it is in the way; it
cannot be undone, so what it has removed is counted as it goes.
"""

from __future__ import annotations

import errno
import os
import stat

from sandbox.inside.unfinished.parts import PLAIN_MODE, Parts
from sandbox.inside.unfinished.stage import Stage
from sandbox.inside.worker.copy import Copier, copy_content
from sandbox.inside.worker.look import survey_tree
from sandbox.inside.worker.walk import Rules, open_directory
from sandbox.kernel.files import Refused, flush_names, free_bytes, real_path, require_room
from sandbox.protocol import MAX_DEPTH

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from sandbox import protocol
    from sandbox.inside.worker.job import Job


def remove(job: Job, spec: protocol.RemoveTree, fds: list[int]) -> protocol.Nothing:
    """Remove the directory `name` of the pinned parent, with all it holds."""
    parent, name, rules = fds[0], spec["name"], Rules(spec["rules"])
    fd = open_directory(name, parent)
    try:
        require_same(fd, spec["identity"])
        require_free_of(survey_tree(job, rules, fd, "", leaves=True))
        _Remover(job, rules).empty(fd, 0)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)
    job.count("removed")
    flush_names(parent)
    return {}


def require_same(fd: int, identity: list[int]) -> None:
    """Refuse another directory than the one that was decided on."""
    status = os.fstat(fd)
    if [status.st_dev, status.st_ino] != identity:
        raise Refused("changed", errno.ESTALE, "it was replaced meanwhile; try again")


def require_free_of(obstacles: protocol.Surveyed) -> None:
    """Refuse a tree of which something stays where it is: *obstacles* are what `survey_tree` found."""
    if obstacles["blocked"]:
        names = ", ".join(map(repr, obstacles["blocked"]))
        raise Refused("blocked", errno.EACCES, f"it holds paths that the policy keeps closed: {names}")
    if obstacles["mounted"]:
        names = ", ".join(map(repr, obstacles["mounted"]))
        raise Refused("wrong_kind", errno.EXDEV, f"another file system is mounted in it: {names}")


class _Remover:
    def __init__(self, job: Job, rules: Rules) -> None:
        self._job = job
        self._rules = rules

    def empty(self, fd: int, depth: int) -> None:
        """Remove what the directory holds, and check every name once more: the survey was a moment ago."""
        if depth > MAX_DEPTH:
            raise Refused("too_large", errno.ELOOP, f"it is deeper than {MAX_DEPTH} directories")
        path = real_path(fd)
        for name in os.listdir(fd):
            self._job.tick()
            if not self._rules.permit_change(f"{path}/{name}"):
                raise Refused("blocked", errno.EACCES, f"a closed path appeared in it: {name!r}")
            try:
                self._remove(fd, name, depth)
            except FileNotFoundError:
                continue  # somebody removed it first, which is what is wanted
            self._job.count("removed")

    def _remove(self, parent: int, name: str, depth: int) -> None:
        status = os.lstat(name, dir_fd=parent)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=parent)
            return
        fd = open_directory(name, parent)
        try:
            if os.fstat(fd).st_dev != os.fstat(parent).st_dev:
                raise Refused("wrong_kind", errno.EXDEV, f"another file system is mounted in it: {name!r}")
            self.empty(fd, depth + 1)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent)


def copy_file(job: Job, spec: protocol.CopyFile, fds: list[int]) -> protocol.Copied:
    """Copy the open file to `name` of the pinned directory, replacing a file there when `replace` says so."""
    source, parent = fds
    name, status = spec["name"], os.fstat(source)
    mode = status.st_mode & PLAIN_MODE
    job.count("needed", status.st_size)
    require_fit(parent, status.st_size, spec["max_file_bytes"], spec["reserve_bytes"])
    with Parts() as parts:
        part, hidden = parts.start(parent, name, mode)
        try:
            copied = copy_content(job, source, part, spec["max_file_bytes"], spec["reserve_bytes"])
            if spec["keep_times"]:
                os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns))
            os.fsync(part)
            parts.commit(part, parent, name, hidden=hidden, replace=spec["replace"], mode=mode)
        finally:
            os.close(part)
    flush_names(parent)
    return {"bytes": copied, "files": 1}


def copy_tree(job: Job, spec: protocol.CopyTree, fds: list[int]) -> protocol.Copied:
    """Copy the open directory to the free name `name` of the pinned directory; tell what was passed over."""
    source, parent = fds
    rules = Rules(spec["rules"])
    survey_tree(job, rules, source, spec["new_path"], leaves=False)
    needed = job.counts.get("bytes", 0)
    job.counts = {"needed": needed}  # what was only looked at does not count as copied
    require_fit(parent, needed, 1 << 62, spec["reserve_bytes"])
    with Stage(parent) as stage:
        copier = Copier(job, rules, spec, strict=False)
        copier.copy(source, stage.fd, 0)
        os.fchmod(stage.fd, os.fstat(source).st_mode & PLAIN_MODE)
        stage.commit(spec["name"])
    return {"skipped": copier.skipped}


def require_fit(parent: int, needed: int, limit: int, reserve: int, *, what: str = "it") -> None:
    """Refuse early what cannot end well. Raises: Refused with the numbers, ReserveReached."""
    if needed > limit:
        raise Refused("too_large", errno.EFBIG, f"{what} has {needed} bytes and file_limits.max_write_size is {limit}")
    free = free_bytes(parent)
    if needed > free:
        raise Refused("no_space", errno.ENOSPC, f"{what} has {needed} bytes and {free} are free there")
    require_room(parent, needed, reserve)
