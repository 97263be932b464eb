"""Copy, move and remove, one file or whole trees (child side, stdlib only).

A copy comes into being under a hidden name and gets its own in one step, flushed to the disk: a reader sees nothing
or all of it. A removal looks at the whole tree first and begins only when nothing in it is in the way; it
cannot be undone, so what it has removed is counted as it goes.

A move to another file system is both, and loses nothing that is changed meanwhile. The copy is made again, file by
file, where the source is not as it was when it was copied. Then the source gets another name, so that no path leads
into it, and is compared until nothing has changed and nobody has a file of it open for writing. Only then the copy gets
its name, and the source is removed: each file is taken out of reach first and compared once more. What cannot be
settled is put back.

A change is seen by device, inode, mode, size and times. The clock of those steps every 10 ms at most: what was changed
just before it was copied is copied again. Writers are found by leases, where the file system has them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import struct
import time

from sandbox.inside.unfinished.parts import PLAIN_MODE, Parts
from sandbox.inside.unfinished.stage import Stage
from sandbox.inside.worker.copy import Copier, copy_content
from sandbox.inside.worker.job import Stop
from sandbox.inside.worker.look import survey_tree
from sandbox.inside.worker.walk import SETTLED_NS, Rules, open_directory
from sandbox.kernel.files import (
    Held,
    Refused,
    flush_file_system,
    flush_names,
    free_bytes,
    real_path,
    rename_to_free_name,
    require_room,
)
from sandbox.protocol.files import MAX_DEPTH

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from sandbox.inside.worker.job import Job
    from sandbox.protocol.files import (
        Copied,
        CopyFile,
        CopyTree,
        IntoTree,
        Left,
        MoveTree,
        Nothing,
        RemoveTree,
        Surveyed,
        TreeMoved,
    )

ROUNDS = 50  # of comparing what no path leads into, a moment apart: a second, for those who are in it already
_STATE = struct.Struct("=3Q3q")  # a million of these fit in a worker's memory; tuples of numbers do not
_CTIME_BYTES = 8  # at its end; a rename changes that


def remove(job: Job, spec: RemoveTree, fds: list[int]) -> Nothing:
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


def require_free_of(obstacles: Surveyed) -> None:
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


def copy_file(job: Job, spec: CopyFile, fds: list[int]) -> Copied:
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


def copy_tree(job: Job, spec: CopyTree, fds: list[int]) -> Copied:
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


# --- to another file system


def move_tree(job: Job, spec: MoveTree, fds: list[int]) -> TreeMoved:
    """Move the directory `name` of one pinned directory to the free name `new_name` of another.

    Returns: `left`, empty when nothing is; else [kind, errno, why] of what stopped the removal after the copy, which
        is complete and has its name then. What was not removed is back where it was.
    Raises: Refused and others, and then nothing was moved.
    """
    parent, new_parent = fds
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # sent to us when somebody opens a file that has our lease
    rules = Rules(spec["rules"])
    with Held(open_directory(spec["name"], parent)) as source:
        require_same(source.fd, spec["identity"])
        require_free_of(survey_tree(job, rules, source.fd, spec["new_path"], leaves=True))
        needed = job.counts.get("bytes", 0)
        job.counts = {"needed": needed}
        require_fit(new_parent, needed, 1 << 62, spec["reserve_bytes"])
        with Stage(new_parent) as stage:
            mirror = Mirror(job, rules, spec, source.fd)
            mirror.follow(stage.fd)
            mirror.follow(stage.fd)  # what was changed meanwhile, while its paths still lead there
            flush_file_system(stage.fd)  # so that little is left to flush when they do not
            with Aside(parent, spec["name"], spec["aside"], source.fd) as aside:
                mirror.settle(stage.fd)
                stage.commit(spec["new_name"])
                return {"left": _removed(mirror, aside)}


def _removed(mirror: Mirror, aside: Aside) -> Left:
    try:
        mirror.take_away()
        aside.remove()
    except Refused as refusal:
        return refusal.kind, refusal.number, refusal.why
    except Stop:
        return "", errno.ETIMEDOUT, "there was no time left to remove all of the source"
    except OSError as fault:
        number = fault.errno or errno.EIO
        if number == errno.ENOTEMPTY:
            return "changed", errno.ESTALE, "something was made in its source afterwards"
        return "", number, f"its source could not be removed ({os.strerror(number)})"
    return ()


class Aside:
    """The source under another name of its directory. Leaving gives it its own again, unless it is removed by then."""

    def __init__(self, parent: int, name: str, aside: str, fd: int) -> None:
        self._parent, self._name, self._aside, self._fd = parent, name, aside, fd
        self._gone = False

    def __enter__(self) -> Self:
        rename_to_free_name(self._parent, self._name, self._parent, self._aside)
        if not os.path.samestat(os.lstat(self._aside, dir_fd=self._parent), os.fstat(self._fd)):
            self._put_back()
            raise Refused("changed", errno.ESTALE, "it was replaced meanwhile; try again")
        return self

    def remove(self) -> None:
        """Remove the directory itself, which is empty. Raises: OSError when it is not."""
        os.rmdir(self._aside, dir_fd=self._parent)
        self._gone = True
        flush_names(self._parent)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._gone:
            self._put_back()

    def _put_back(self) -> None:
        try:
            rename_to_free_name(self._parent, self._aside, self._parent, self._name)
        except FileExistsError as taken:
            why = f"something took its name while it was moved; it is now called {self._aside!r}"
            raise Refused("done", errno.EEXIST, why) from taken
        flush_names(self._parent)


class Mirror(Copier):
    """A copy that follows its source: each time what is not as it was copied is copied again."""

    def __init__(self, job: Job, rules: Rules, spec: IntoTree, root: int) -> None:
        super().__init__(job, rules, spec, strict=True)
        self._root, self._path = root, real_path(root)
        self._at = self._path
        self._known: dict[str, dict[str, bytes]] = {}
        """By directory and name: how it was before it was copied; empty when that was a moment ago."""
        self._last = ""
        self._all_must_be_closed = False

    def follow(self, target: int) -> bool:
        """Make *target* the same as the source; tell whether it already was."""
        self._last, self._at = "", real_path(self._root)
        self.copy(self._root, target, 0)
        status = os.fstat(self._root)
        os.fchmod(target, status.st_mode & PLAIN_MODE)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        return not self._last

    def settle(self, target: int) -> None:
        """Follow until nothing has changed and nobody writes. Raises: Refused when that does not come."""
        self._all_must_be_closed = True
        for _ in range(ROUNDS):
            os.fchmod(target, 0o700)  # the copy of one that may not be written
            if self.follow(target):
                return
            time.sleep(SETTLED_NS / 1e9)
        raise Refused("changed", errno.ESTALE, f"{self._last}; nothing was moved")

    def copy(self, source: int, target: int, depth: int, relative: str = "") -> None:
        """Copy what is not as it was in and below *source*, and remove what is not there any more."""
        super().copy(source, target, depth, relative)
        here = os.listdir(source)
        if here and not os.access(".", os.W_OK | os.X_OK, dir_fd=source, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))  # before anything was moved
        known = self._known.get(relative.rstrip("/"), {})
        if known.keys() == set(here):
            return
        self._differs(relative.rstrip("/") or ".", "is being changed")
        for name in known.keys() - set(here):
            self._drop(target, name, f"{relative}{name}")

    def _copy_entry(self, source: int, target: int, name: str, status: os.stat_result, depth: int, entry: str) -> None:
        known = self._known.setdefault(entry.rpartition("/")[0], {})
        if self._all_must_be_closed and stat.S_ISREG(status.st_mode) and is_open_for_writing(name, source):
            self._differs(entry, "is open for writing")
            return
        try:
            began_ns, status = time.time_ns(), os.lstat(name, dir_fd=source)
            state = _state(status)
            if known.get(name) == state:
                if stat.S_ISDIR(status.st_mode):
                    self._copy_directory(source, target, name, depth, entry)
                return
            self._differs(entry, "is being changed")
            self._drop(target, name, entry)
            super()._copy_entry(source, target, name, status, depth, entry)
        except FileNotFoundError:
            return  # removed meanwhile: its directory tells
        except Refused as refusal:
            if refusal.kind != "changed":
                raise
            self._differs(entry, f"cannot be copied now: {refusal.why}")
            self._drop(target, name, entry)
            return
        is_settled = stat.S_ISDIR(status.st_mode) or not 0 <= began_ns - status.st_ctime_ns < SETTLED_NS
        known[name] = state if is_settled else b""

    def _differs(self, entry: str, why: str) -> None:
        self._last = f"{entry!r} in its source {why}"

    def _drop(self, target: int, name: str, entry: str) -> None:
        """Remove the copy of an entry, and forget all that is known of it and below it."""
        state = self._known[entry.rpartition("/")[0]].pop(name, None)
        try:
            status = os.lstat(name, dir_fd=target)
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=target)
            if state is not None and stat.S_ISREG(status.st_mode):
                self._job.count("bytes", -status.st_size)
            return
        with Held(open_directory(name, target)) as below:
            os.fchmod(below.fd, 0o700)  # the copy of one that may not be written
            for inner in os.listdir(below.fd):
                self._known.setdefault(entry, {})
                self._drop(below.fd, inner, f"{entry}/{inner}")
        os.rmdir(name, dir_fd=target)
        self._known.pop(entry, None)

    def _place_of(self, fd: int) -> str:
        """Return the path under which the rules know it, also when the source has another name."""
        path = real_path(fd)
        if path != self._at and not path.startswith(f"{self._at}/"):
            raise Refused("changed", errno.ESTALE, "it was moved elsewhere meanwhile; try again")
        return self._path + path[len(self._at) :]

    def _make(self, name: str, target: int) -> int:
        try:
            return super()._make(name, target)
        except FileExistsError:
            fd = open_directory(name, target)
            os.fchmod(fd, 0o700)  # the copy of one that may not be written
            return fd

    def take_away(self) -> None:
        """Remove what the source holds, each entry if it is as it was copied. Raises: Refused at the first else."""
        self._take_away(self._root, "")

    def _take_away(self, fd: int, folder: str) -> None:
        known = self._known.get(folder, {})
        for name in os.listdir(fd):
            self._job.tick()
            entry = f"{folder}/{name}" if folder else name
            try:
                status = os.lstat(name, dir_fd=fd)
                if not known.get(name) or _state(status) != known[name]:
                    raise _late(entry)
                if stat.S_ISDIR(status.st_mode):
                    self._take_directory(fd, name, entry)
                else:
                    _take(fd, name, known[name], entry)
            except FileNotFoundError:
                continue  # somebody removed it first, which is what is wanted
            self._job.count("removed")

    def _take_directory(self, fd: int, name: str, entry: str) -> None:
        with Held(open_directory(name, fd)) as below:
            self._place_of(below.fd)
            self._take_away(below.fd, entry)
        try:
            os.rmdir(name, dir_fd=fd)
        except OSError as fault:
            if fault.errno == errno.ENOTEMPTY:
                raise _late(entry) from fault
            raise


def _take(fd: int, name: str, state: bytes, entry: str) -> None:
    """Remove a file or link: first its name, by which others find it, then itself, if it still is what was copied."""
    taken = f".taken-{os.urandom(12).hex()}"
    os.rename(name, taken, src_dir_fd=fd, dst_dir_fd=fd)
    try:
        _require_as_copied(fd, taken, state, entry)
        os.unlink(taken, dir_fd=fd)
    except BaseException:
        try:
            rename_to_free_name(fd, taken, fd, name)
        except FileExistsError as fault:
            raise _late(f"{entry}, which is called {taken} now,") from fault
        raise


def _require_as_copied(fd: int, taken: str, state: bytes, entry: str) -> None:
    """Refuse a file that is written, or was. Writers are looked for first, so that what they wrote by then shows."""
    if stat.S_ISREG(os.lstat(taken, dir_fd=fd).st_mode) and is_open_for_writing(taken, fd):
        raise _late(entry)
    if _state(os.lstat(taken, dir_fd=fd))[:-_CTIME_BYTES] != state[:-_CTIME_BYTES]:
        raise _late(entry)


def _late(entry: str) -> Refused:
    return Refused("changed", errno.ESTALE, f"{entry!r} was changed in its source afterwards")


def _state(status: os.stat_result) -> bytes:
    """Return what shows whether an entry is as it was. The content of a directory is shown by its own entries."""
    if stat.S_ISDIR(status.st_mode):
        return _STATE.pack(status.st_dev, status.st_ino, 0, 0, 0, 0)
    times = status.st_mtime_ns, status.st_ctime_ns
    return _STATE.pack(status.st_dev, status.st_ino, status.st_mode, status.st_size, *times)


def is_open_for_writing(name: str, parent: int) -> bool:
    """Tell whether somebody has a file open, or mapped, for writing: then no lease on reading is to be had."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=parent)
    except BlockingIOError:
        return True  # somebody has a lease on writing
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False  # another user's, or a file system without leases: comparing is all there is
    finally:
        os.close(fd)
    return False
