"""Work on names: look, make, rename, remove; and fork a worker for what takes its time.

Child side, stdlib only. Each operation gets a pinned directory and a name in it, so that nothing is followed here.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat

from sandbox import wire
from sandbox.inside.unfinished import hidden
from sandbox.inside.unfinished.parts import pin_existing, replaceable
from sandbox.inside.worker import main
from sandbox.kernel import process
from sandbox.kernel.files import (
    Held,
    Refused,
    kind_of,
    open_path,
    real_path,
    rename_to_free_name,
    reopen,
    unflushed,
    unseen,
)

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from sandbox.inside.blocked_paths import Search
    from sandbox.protocol.files import (
        DirectoryMade,
        EntryFound,
        Facts,
        FindEntry,
        FromOpener,
        MakeDirectory,
        Nothing,
        PartsLeft,
        Remove,
        Rename,
    )

    Fds = list[int]
    Reply = tuple[FromOpener, Fds]

SWEPT_NAMES = 10_000  # of a directory where a session begins: a millisecond or two


class NameOps:
    """Requests about names. Each method takes the request and its descriptors and returns its reply."""

    _search: Search | None

    def entry(self, request: FindEntry, _fds: Fds) -> Reply:
        """Pin the directory of a path and look at its last name, which is not followed when it is a link."""
        folder, name = os.path.split(request["path"])
        if name in ("", ".", ".."):
            raise Refused("wrong_kind", errno.EISDIR, "it has no name of its own")
        with Held(open_path(folder, flags=os.O_DIRECTORY)) as parent:
            existing = _pin_itself(parent.fd, name)
            reply: EntryFound
            reply = {"parent": facts_of(parent.fd), "name": name, "existing": None, "target": None}
            if existing is not None:
                with Held(existing):
                    facts = reply["existing"] = facts_of(existing)
                    if facts["kind"] == "symlink":
                        reply["target"] = os.readlink("", dir_fd=existing)
            return reply, [parent.keep()]

    def make(self, request: MakeDirectory, fds: Fds) -> Reply:
        """Make a directory; answer with it, pinned, and its parent, open for fsync where it can be read."""
        try:
            os.mkdir(request["name"], dir_fd=fds[0])
        except FileExistsError:
            return _directory(fds[0], request["name"], created=False)
        try:
            return _directory(fds[0], request["name"], created=True)
        except OSError as fault:
            raise unseen(fault) from fault

    def rename(self, request: Rename, fds: Fds) -> Reply:
        """Rename what was decided on, to a free name or, with `replace`, over a file that may be written."""
        source, target = fds
        name, new_name = request["name"], request["new_name"]
        status = _require_same(source, name, request["identity"])
        if not request["replace"]:
            rename_to_free_name(source, name, target, new_name)
        else:
            _require_replaceable(target, new_name, status)
            os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
        return {}, flushable_of(source, target)

    def remove(self, request: Remove, fds: Fds) -> Reply:
        """Remove a name that is no directory, or an empty directory."""
        status = _require_same(fds[0], request["name"], request["identity"])
        if stat.S_ISDIR(status.st_mode):
            os.rmdir(request["name"], dir_fd=fds[0])
        else:
            os.unlink(request["name"], dir_fd=fds[0])
        return {}, flushable_of(fds[0])

    def sweep(self, _request: Nothing, fds: Fds) -> Reply:
        """Remove part files that a crashed broker left in a directory; say how many parts are left there."""
        reply: PartsLeft = {"left": hidden.reclaim(fds[0], SWEPT_NAMES, trees=False)}
        return reply, []

    def fork_worker(self, _request: Nothing, _fds: Fds) -> Reply:
        """Fork a process for one slow job; answer with its socket and a pidfd."""
        ours, theirs = wire.pair()
        opener_pid = os.getpid()
        with theirs:
            pid = os.fork()
            if pid == 0:
                _be_worker(theirs.fileno(), opener_pid, self._search)
            ours_fd = ours.detach()
            try:
                # It cannot have ended and been replaced: it waits for its job, or its socket's end, which we hold.
                return {}, [ours_fd, os.pidfd_open(pid)]
            except BaseException:
                os.close(ours_fd)
                raise


def _be_worker(fd: int, opener_pid: int, search: Search | None) -> None:
    try:
        process.die_with(opener_pid, signal.SIGKILL)
        main.serve(socket.socket(fileno=process.keep_only(fd)), search)
    finally:
        os._exit(0)


def _directory(parent: int, name: str, *, created: bool) -> Reply:
    existing = pin_existing(parent, name)
    if existing is None:
        raise Refused("changed", errno.ESTALE, "it was removed meanwhile")
    with Held(existing) as pinned:
        facts = facts_of(pinned.fd)
        if facts["kind"] != "directory":
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        flushable = flushable_of(parent)
        made: DirectoryMade = {"facts": facts, "created": created}
        return made, [pinned.keep(), *flushable]


def facts_of(fd: int) -> Facts:
    """Return what is known of *fd*."""
    path, status = real_path(fd), os.fstat(fd)
    return {
        "path": path,
        "kind": kind_of(fd, status),
        "size_bytes": status.st_size,
        "mode": stat.S_IMODE(status.st_mode),
        "nlink": status.st_nlink,
        "uid": status.st_uid,
        "dev": status.st_dev,
        "ino": status.st_ino,
        "mtime_ns": status.st_mtime_ns,
    }


def _pin_itself(parent: int, name: str) -> int | None:
    try:
        return open_path(name, dir_fd=parent, flags=os.O_NOFOLLOW)
    except FileNotFoundError:
        return None


def _require_same(parent: int, name: str, identity: list[int]) -> os.stat_result:
    status = os.lstat(name, dir_fd=parent)
    if [status.st_dev, status.st_ino] != identity:
        raise Refused("changed", errno.ESTALE, "it was replaced meanwhile; try again")
    return status


def _require_replaceable(parent: int, name: str, source: os.stat_result) -> None:
    existing = pin_existing(parent, name)
    if existing is None:
        return
    with Held(existing):
        replaceable(existing)
    if stat.S_ISDIR(source.st_mode):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def flushable_of(*directories: int) -> Fds:
    """Open changed directories for fsync, those that can be read. Raises: Refused, saying that they were changed."""
    opened: Fds = []
    for directory in directories:
        try:
            opened.append(reopen(directory, os.O_RDONLY | os.O_DIRECTORY))
        except PermissionError:
            continue  # write and search, but not read: it reaches the disk with the journal
        except OSError as fault:
            for fd in opened:
                os.close(fd)
            raise unflushed(fault) from fault
    return opened
