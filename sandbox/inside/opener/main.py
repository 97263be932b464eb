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
from types import MappingProxyType

from sandbox import wire
from sandbox.inside.opener.names import NameOps, facts_of, flushable_of
from sandbox.inside.unfinished import hidden
from sandbox.inside.unfinished.parts import Parts, pin_existing
from sandbox.inside.worker.main import refusal_of
from sandbox.kernel.files import KINDS, Held, Refused, open_path, real_path, reopen
from sandbox.protocol.files import TO_OPENER

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from sandbox.inside.blocked_paths import Search
    from sandbox.protocol.files import (
        TO_OPENER,
        AnyRequest,
        CommitPart,
        Content,
        DiscardPart,
        FindPlace,
        FromOpener,
        Listed,
        ListNames,
        Named,
        OpenAppend,
        PartStarted,
        Pieces,
        PlaceFound,
        Resolve,
        Resolved,
        StartPart,
    )

    Fds = list[int]
    Reply = tuple[FromOpener, Fds]
    Perform = Callable[["Opener", Any, Fds], Reply]

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
            while (received := wire.receive(sock)) is not None:
                request: Any
                request, fds = received
                opener.answer(request, fds)
        except (ConnectionError, wire.WireBroken):
            return  # the broker died, or what it says can no longer be understood: both end here


class Opener(NameOps):
    """Performs the requests of TABLE. Each method takes a request and its descriptors and returns its reply."""

    def __init__(self, sock: socket.socket, parts: Parts, search: Search | None) -> None:
        self._sock = sock
        self._number = 0
        self._parts = parts
        self._search = search

    def answer(self, request: AnyRequest, fds: Fds) -> None:
        """Perform one request and send its answer or its failure; close every descriptor it came with."""
        number = self._number = request["n"]
        try:
            body, opened = self._performed(request, fds)
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

    def _performed(self, request: AnyRequest, fds: Fds) -> Reply:
        try:
            return self._accepted(request, fds)(self, request, fds)
        except Refused as refusal:
            return refusal_of(refusal), []
        except ConnectionError:
            raise
        except OSError as fault:
            refused = refusal_of(fault)
            if fault.errno == errno.ENOENT and "path" in request:
                # A link may lead out of what a session sees; that it must not is for the broker to say.
                refused["led_to"] = os.path.realpath(request["path"])
            return refused, []

    def _accepted(self, request: AnyRequest, fds: Fds) -> Perform:
        if len(fds) not in TO_OPENER.get(request["op"], ()):
            raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
        return TABLE[request["op"]]

    def resolve(self, request: Resolve, _fds: Fds) -> Reply:
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
                    unreadable: Resolved = {**facts, "unreadable": fault.errno or errno.EIO}
                    return unreadable, [pinned.keep()]
            return facts, [pinned.keep()]

    def place(self, request: FindPlace, _fds: Fds) -> Reply:
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

    def append(self, request: OpenAppend, fds: Fds) -> Reply:
        """Open an existing regular file of the directory for appending."""
        existing = pin_existing(fds[0], request["name"])
        if existing is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with Held(existing):
            facts = facts_of(existing)
            if facts["kind"] != "file":
                raise Refused("wrong_kind", errno.EINVAL, f"it is a {facts['kind']}; a file is meant")
            return facts, [reopen(existing, os.O_WRONLY | os.O_APPEND)]

    def part(self, request: StartPart, fds: Fds) -> Reply:
        """Start a part file for a name of the directory."""
        fd, hidden_name = self._parts.start(fds[0], request["name"])
        reply: PartStarted = {"hidden": hidden_name}
        return reply, [fd]

    def commit(self, request: CommitPart, fds: Fds) -> Reply:
        """Give the part file its name; answer with the directory, open for fsync, where it can be read."""
        part, parent = fds
        if request["hidden"] and not self._parts.has(request["hidden"]):
            raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
        _require_unchanged(parent, request["name"], request["expect"])
        self._parts.commit(part, parent, request["name"], hidden=request["hidden"], replace=request["replace"])
        return {}, flushable_of(parent)  # none of what may not be read: the broker makes the name last by other means

    def discard(self, request: DiscardPart, _fds: Fds) -> Reply:
        """Remove a part file that has a name."""
        self._parts.discard(request["hidden"])
        return {}, []

    def list_names(self, request: ListNames, fds: Fds) -> Reply:
        """List a directory after the name `after`: pieces go out on their own; the reply counts all names."""
        total, later, counted_all, parts = 0, 0, True, []

        def visible() -> Iterator[str]:
            nonlocal total, later, counted_all
            with os.scandir(fds[0]) as entries:
                for seen, entry in enumerate(entries):
                    if seen >= MAX_NAMES:
                        counted_all = False
                        return
                    if hidden.is_part(entry.name):
                        parts.append(entry.name)
                    if request["hidden"] or not entry.name.startswith("."):
                        total += 1
                        if entry.name > request["after"]:
                            later += 1
                            yield entry.name

        # Memory follows the limit, not the directory.
        names = heapq.nsmallest(request["limit"], visible())
        for name in parts[:MAX_PARTS]:
            hidden.was_reclaimed(fds[0], name, trees=False)
        for piece in _pieces(fds[0], names):
            pieces: Pieces = {"piece": piece}
            wire.send(self._sock, {"n": self._number, **pieces})
        reply: Listed = {"total_count": total, "counted_all": counted_all, "more": later > len(names)}
        return reply, []


TABLE: Mapping[str, Perform] = MappingProxyType(
    {
        "resolve": Opener.resolve,
        "place": Opener.place,
        "entry": Opener.entry,
        "append": Opener.append,
        "part": Opener.part,
        "commit": Opener.commit,
        "discard": Opener.discard,
        "list": Opener.list_names,
        "make": Opener.make,
        "rename": Opener.rename,
        "remove": Opener.remove,
        "sweep": Opener.sweep,
        "worker": Opener.fork_worker,
    }
)
"""By name, what performs a request of `TO_OPENER`; any other is refused, and the opener goes on."""


def _require_unchanged(parent: int, name: str, expect: Content | None) -> None:
    """Refuse to replace another file than the one that the new content was made from, or a changed one.

    Requests are served one by one, so two edits of one session cannot both pass here.
    """
    if expect is None:
        return
    status = _lstat(parent, name)
    now = status and {"dev": status.st_dev, "ino": status.st_ino, "size": status.st_size, "mtime": status.st_mtime_ns}
    if now != expect:
        raise Refused("changed", errno.ESTALE, "it was changed meanwhile; read it again")


def _placed(parent: int, name: str) -> PlaceFound:
    facts = facts_of(parent)
    existing = pin_existing(parent, name)
    if existing is None:
        return {"parent": facts, "name": name, "existing": None}
    with Held(existing):
        return {"parent": facts, "name": name, "existing": facts_of(existing)}


def _pieces(directory: int, names: list[str]) -> Iterator[list[Named]]:
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


def _entry(directory: int, name: str) -> Named | None:
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
