"""Open files inside the walls for the broker (child side, stdlib only, one thread).

Owns one SEQPACKET socket and answers the numbered requests on it one by one until it ends. It lives in the
session's own domain and under the session's user, so a mistake of the broker reaches no further than the
session itself could. It decides nothing: it says what is really there and the broker decides before use.
It keeps no descriptor between requests; what belongs together travels with each request.
"""

from __future__ import annotations

import errno
import heapq
import os
import signal
import stat

from sandbox import wire
from sandbox.inside.opener.names import NameOps, flushable_of
from sandbox.inside.unfinished import hidden as leftovers
from sandbox.inside.unfinished.parts import Parts, pin_existing
from sandbox.kernel.files import KINDS, Held, Refused, facts_of, open_path, real_path, reopen

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from typing import Any

    from sandbox.inside.blocked_paths import Search

    Fds = list[int]
    Reply = tuple[dict[str, Any], Fds]

CHANGES = ("commit", "rename", "remove", "make")
UNSAID = "it was done, and the answer, with what it is flushed with, could not be handed over"
MAX_LINKS = 40  # as the kernel
MAX_NAMES = 1_000_000  # a bigger directory is counted this far, so that others need not wait for ever
MAX_PARTS = 64  # leftovers looked at in one listing
MESSAGE_BUDGET_BYTES = 48 * 1024  # of one piece of a listing; the socket takes about four times that


def serve(sock: socket.socket, search: Search | None = None) -> None:
    """Answer requests until the broker closes *sock*; part files with a name are removed at the end.

    *search* is what the birth knows of closed names, which workers have with them.
    """
    sock.setblocking(True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # workers are reaped by the kernel; their ends are seen elsewhere
    with Parts() as parts:
        opener = Opener(sock, parts, search)
        try:
            while (message := wire.receive(sock)) is not None:
                opener.answer(*message)
        except (ConnectionError, wire.WireBroken):
            return  # the broker died, or what it says can no longer be understood: both end here


class Opener(NameOps):
    """Performs requests. Each `do_` method takes the request and its descriptors and returns its reply."""

    def __init__(self, sock: socket.socket, parts: Parts, search: Search | None) -> None:
        self._sock = sock
        self._parts = parts
        self._search = search

    def answer(self, request: dict[str, Any], fds: Fds) -> None:
        """Perform one request and send its answer or its failure; close every descriptor it came with."""
        number = request["n"]
        try:
            body, opened = getattr(self, "do_" + request["op"])(request, fds)
        except Refused as refusal:
            body, opened = {"refused": refusal.kind, "errno": refusal.number, "why": refusal.why}, []
        except ConnectionError:
            raise
        except OSError as fault:
            body, opened = {"refused": "", "errno": fault.errno or errno.EIO, "why": ""}, []
            if fault.errno == errno.ENOENT and "path" in request:
                # A link may lead out of what a session sees; that it must not is for the broker to say.
                body["led_to"] = os.path.realpath(request["path"])
        finally:
            _close(fds)
        try:
            wire.send(self._sock, {"n": number, **body}, opened)
        except ConnectionError:
            raise
        except OSError as fault:
            # Of descriptors on their way in sockets a user has only so many, and memory may be short: refuse, do not
            # die of it.
            refused, why = ("done", UNSAID) if request["op"] in CHANGES else ("", "")
            wire.send(self._sock, {"n": number, "refused": refused, "errno": fault.errno or errno.EIO, "why": why})
        finally:
            _close(opened)

    def do_resolve(self, request: dict[str, Any], _fds: Fds) -> Reply:
        """Pin a path; with `read`, open a file or directory for reading as well, in the same round trip.

        Opening those for reading acts on nothing. What cannot be opened is still answered with its facts:
        the broker decides on the real path first and only then says why it cannot be read.
        """
        with Held(open_path(request["path"])) as pinned:
            facts = facts_of(pinned.fd)
            if request["read"] and facts["kind"] in ("file", "directory"):
                try:
                    return facts, [reopen(pinned.fd, os.O_RDONLY)]
                except OSError as fault:
                    facts["unreadable"] = fault.errno
            return facts, [pinned.keep()]

    def do_place(self, request: dict[str, Any], _fds: Fds) -> Reply:
        """Find the directory and the last name that a path really leads to; that name need not exist yet.

        The last symbolic link is followed here, by its text, so that what comes back is always a directory
        and a name in it that is not a link: no later step follows anything.
        """
        path = request["path"]
        for _ in range(MAX_LINKS):
            folder, name = os.path.split(path)
            if name in ("", ".", ".."):
                raise Refused("wrong_kind", errno.EISDIR, "it is a directory; a file is meant")
            with Held(open_path(folder, flags=os.O_DIRECTORY)) as parent:
                found = _lstat(parent.fd, name)
                if found is None or not stat.S_ISLNK(found.st_mode):
                    return _placed(parent.fd, name), [parent.keep()]
                _may_follow(parent.fd, name)
                target = os.readlink(name, dir_fd=parent.fd)
                path = target if target.startswith("/") else f"{real_path(parent.fd)}/{target}"
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def do_append(self, request: dict[str, Any], fds: Fds) -> Reply:
        """Open an existing regular file of the directory for appending."""
        existing = pin_existing(fds[0], request["name"])
        if existing is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with Held(existing):
            facts = facts_of(existing)
            if facts["kind"] != "file":
                raise Refused("wrong_kind", errno.EINVAL, f"it is a {facts['kind']}; a file is meant")
            return facts, [reopen(existing, os.O_WRONLY | os.O_APPEND)]

    def do_part(self, request: dict[str, Any], fds: Fds) -> Reply:
        """Start a part file for a name of the directory."""
        fd, hidden = self._parts.start(fds[0], request["name"])
        return {"hidden": hidden}, [fd]

    def do_commit(self, request: dict[str, Any], fds: Fds) -> Reply:
        """Give the part file its name; answer with the directory, open for fsync, where it can be read."""
        part, parent = fds
        _require_unchanged(parent, request["name"], request.get("expect"))
        self._parts.commit(part, parent, request["name"], hidden=request["hidden"], replace=request["replace"])
        return {}, flushable_of(parent)  # none of what may not be read: the broker makes the name last by other means

    def do_discard(self, request: dict[str, Any], _fds: Fds) -> Reply:
        """Remove a part file that has a name."""
        self._parts.discard(request["hidden"])
        return {}, []

    def do_list(self, request: dict[str, Any], fds: Fds) -> Reply:
        """List a directory after the name `after`: pieces go out on their own; the reply counts all names."""
        total, later, counted_all, parts = 0, 0, True, []

        def visible() -> Iterator[str]:
            nonlocal total, later, counted_all
            with os.scandir(fds[0]) as entries:
                for seen, entry in enumerate(entries):
                    if seen >= MAX_NAMES:
                        counted_all = False
                        return
                    if leftovers.is_part(entry.name):
                        parts.append(entry.name)
                    if request["hidden"] or not entry.name.startswith("."):
                        total += 1
                        if entry.name > request["after"]:
                            later += 1
                            yield entry.name

        # Memory follows the limit, not the directory.
        names = heapq.nsmallest(request["limit"], visible())
        for name in parts[:MAX_PARTS]:
            leftovers.was_reclaimed(fds[0], name, trees=False)
        for piece in _pieces(fds[0], names):
            wire.send(self._sock, {"n": request["n"], "piece": piece})
        return {"total_count": total, "counted_all": counted_all, "more": later > len(names)}, []


def _require_unchanged(parent: int, name: str, expect: dict[str, int] | None) -> None:
    """Refuse to replace another file than the one that the new content was made from, or a changed one.

    Requests are served one by one, so two edits of one session cannot both pass here.
    """
    if expect is None:
        return
    status = _lstat(parent, name)
    now = status and {"dev": status.st_dev, "ino": status.st_ino, "size": status.st_size, "mtime": status.st_mtime_ns}
    if now != expect:
        raise Refused("changed", errno.ESTALE, "it was changed meanwhile; read it again")


def _placed(parent: int, name: str) -> dict[str, Any]:
    facts = facts_of(parent)
    existing = pin_existing(parent, name)
    if existing is None:
        return {"parent": facts, "name": name, "existing": None}
    with Held(existing):
        return {"parent": facts, "name": name, "existing": facts_of(existing)}


def _pieces(directory: int, names: list[str]) -> Iterator[list[tuple[str, str, int, int]]]:
    piece, weight_bytes = [], 0
    for name in names:
        entry = _entry(directory, name)
        if entry is None:
            continue
        piece.append(entry)
        weight_bytes += 12 * len(name) + 64  # JSON may write 12 bytes for a character
        if weight_bytes > MESSAGE_BUDGET_BYTES:
            yield piece
            piece, weight_bytes = [], 0
    if piece:
        yield piece


def _entry(directory: int, name: str) -> tuple[str, str, int, int] | None:
    try:
        status = os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return None  # removed since its name was read
    except PermissionError:
        return name, "unknown", 0, 0  # a directory that may be read but not searched shows names only
    return name, KINDS.get(stat.S_IFMT(status.st_mode), "device"), status.st_size, status.st_mtime_ns


def _lstat(parent: int, name: str) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=parent)
    except FileNotFoundError:
        return None


def _may_follow(parent: int, name: str) -> None:
    """Let the kernel say whether it would follow this link (`fs.protected_symlinks`, magic links)."""
    try:
        os.close(open_path(name, dir_fd=parent))
    except FileNotFoundError:
        return  # it leads to a name that does not exist yet, which is fine for a file to be written


def _close(fds: Fds) -> None:
    for fd in fds:
        os.close(fd)
