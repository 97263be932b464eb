"""Rules that must hold before a file tool uses what was pinned, and what the tools tell of it.

One place for the order of design section 5: the real path, the kind, the other names; and for the limits of
`file_limits` and a full disk.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import attrs

from broker.contract.encode import utc_text
from broker.contract.errors import BrokerError, ErrorCode
from broker.contract.names import shown_path
from broker.contract.trees import Kind
from broker.decisions import Denied, require_path
from broker.scope import Host, Scope
from broker.session.name_locks import name_of
from policy.decision import Deny, shown
from policy.path import Purpose
from sandbox.files.disk import Data
from sandbox.files.errors import Changed, NoSpace, NotFound, OutcomeUnknown, TookTooLong
from sandbox.files.files import EntryPlace, FileFacts, FilePlace, Resolved, Work
from sandbox.files.trees import JUDGE_NAMES
from sandbox.paths import is_beneath_any
from sandbox.threads import run_in_thread

if TYPE_CHECKING:
    from sandbox.protocol.files import JudgeNames, OfTree, TreeRules

P = TypeVar("P", FilePlace, EntryPlace)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LINKS_S = 10.0
"""Seconds in which the other names of a file are looked for; what is not found by then refuses the file."""

LOOKS = 3
"""How often a path is followed again that leads elsewhere each time, until its caller is told."""


@asynccontextmanager
async def held(
    scope: Scope, look: Callable[[str], Awaitable[P]], *wanted: tuple[str, Purpose]
) -> AsyncIterator[tuple[P, ...]]:
    """Pin the places of paths, and be the only one of this broker who changes what is there.

    Each is decided on by its real path, before anything waits for it. The facts about them were seen after their last
    holder was done, so that a check of them holds until the change.

    Args:
        look: `Files.place`, which follows a link in the last place, or `NameWork.entry`, which does not.
        wanted: paths as they are asked for, each with what is to become of it.
    Raises: what *look* raises; Denied; BrokerError (FILE_BUSY); Changed.
    """
    locks, asked = scope.host.locks, " and ".join(shown_path(path) for path, _ in wanted)
    for _ in range(LOOKS):
        changes = locks.changes
        with ExitStack() as pinned:
            places = await _pinned(scope, look, wanted, pinned)
            names = [name_of(place) for place in places]
            async with locks.hold(names, asked, scope.own.files.when_settled):
                if locks.changes != changes:  # somebody was here since: look again
                    places = await _pinned(scope, look, wanted, pinned)
                if [name_of(place) for place in places] == names:
                    yield places
                    return
    raise Changed(wanted[0][0], f"{asked}: it leads elsewhere each time one looks; try again", "ESTALE")


async def _pinned(
    scope: Scope, look: Callable[[str], Awaitable[P]], wanted: tuple[tuple[str, Purpose], ...], pinned: ExitStack
) -> tuple[P, ...]:
    places: list[P] = []
    for path, purpose in wanted:
        places.append(pinned.enter_context(await look(path)))
        require_path(scope.host, places[-1].path, purpose)
    return tuple(places)


def in_turn(scope: Scope, place: FilePlace | EntryPlace) -> Callable[[], AbstractAsyncContextManager[None]]:
    """Return what makes its user the only one of this broker that changes a place, which must be pinned then."""
    name, asked = name_of(place), shown_path(place.path)
    return lambda: scope.host.locks.hold([name], asked, scope.own.files.when_settled)


def sha256_of(*pieces: Data) -> str:
    """Return the SHA-256, in hexadecimal, of *pieces* one after the other."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


@contextmanager
def told_what_it_makes(*pieces: Data, sha256: str | None = None) -> Iterator[None]:
    """Let an outcome that is not known say what the file holds if it was made: *pieces*, and their SHA-256.

    Hashed here: it is in memory, to be written, and no more than may be.
    """
    try:
        yield
    except OutcomeUnknown as unknown:
        unknown.size_bytes, unknown.sha256 = sum(map(len, pieces)), sha256 or sha256_of(*pieces)
        raise


async def require_file(scope: Scope, found: Resolved, purpose: Purpose) -> None:
    """Decide on the file that was pinned: its real path, its kind, its other names."""
    require_path(scope.host, found.path, purpose)
    found.file()
    await require_no_blocked_link(scope, found.facts)


async def require_place(scope: Scope, place: FilePlace) -> None:
    """Decide on where a file is to be written."""
    require_path(scope.host, place.path, "write")
    await require_writable(scope, place)


async def require_writable(scope: Scope, place: FilePlace) -> None:
    """Decide on what is at a place whose path was decided on: its kind, its other names."""
    place.check()
    if place.existing is not None:
        await require_no_blocked_link(scope, place.existing)


async def require_no_blocked_link(scope: Scope, facts: FileFacts) -> None:
    """Refuse a file that has, or may have, a blocked name as well (`sandbox/inside/worker/walk.py` looks for them).

    Raises:
        Denied: which name is blocked is not told, only that one is.
        Changed: another file has this path by now.
    """
    if facts.kind != "file" or facts.nlink < 2:
        return
    spec: JudgeNames = {
        **tree_spec(scope.host, posixpath.dirname(facts.path)),
        "path": facts.path,
        "dev": facts.dev,
        "ino": facts.ino,
    }
    asked = shown_path(facts.path)
    work = await scope.own.files.links.run(JUDGE_NAMES, asked, spec, (), timeout_s=LINKS_S)
    fault = "unknown" if work.stopped else work.done["fault"]
    if fault:
        why = {
            "closed": "one of them is blocked",
            "changing": "they, or the file, are being changed",
            "unknown": f"only {work.done.get('found', 0)} could be found beneath the allowed paths",
        }[fault]
        reason = f"{shown(facts.path)} has {facts.nlink} names (hard links) and {why}: copy the file instead."
        raise Denied(ErrorCode.POLICY_PATH_VIOLATION, Deny(rule="blocked_paths", reason=reason))


def require_existing(entry: EntryPlace, purpose: str) -> FileFacts:
    """Return what has the name. Raises: NotFound; Denied for what only the kernel makes."""
    if entry.existing is None:
        raise NotFound(entry.asked, f"{entry.asked}: No such file or directory", "ENOENT")
    if entry.existing.kind in ("kernel", "device"):
        reason = f"{shown(entry.path)} is a device or part of the kernel's own tree: it is not to {purpose}."
        raise Denied(ErrorCode.POLICY_PATH_VIOLATION, Deny(rule="path", reason=reason))
    return entry.existing


def require_not_own(scope: Scope, path: str) -> None:
    """Refuse to take the ground from under the session: its home, its working directory, what they are in."""
    for own in (scope.host.user.home, scope.host.user.own_home, scope.own.working_dir):
        if is_beneath_any(own, (path,)):
            reason = f"{shown(path)} holds the session's own directory {shown(own)}: choose what is in it instead."
            raise Denied(ErrorCode.POLICY_PATH_VIOLATION, Deny(rule="path", reason=reason))


def require_size(host: Host, size_bytes: int, what: str = "content") -> None:
    """Refuse what is larger than file_limits.max_write_size."""
    limit = host.policy.file_limits.max_write_size
    if size_bytes > limit:
        raise BrokerError(
            ErrorCode.FILE_TOO_LARGE,
            f"{what} has {size_bytes} bytes and file_limits.max_write_size is {limit}; write less, or use upload_file",
            size_bytes=size_bytes,
            limit_bytes=limit,
        )


def tree_spec(host: Host, root: str) -> OfTree:
    """Return what a worker that walks the tree of *root* must know: the policy, and where to look for other names."""
    rules = cast("TreeRules", attrs.asdict(host.paths.tree))
    return {"rules": rules, "link_roots": [root, host.user.home, *host.grants.write_paths]}


def bounded_s(host: Host, asked_s: float) -> float:
    """Return the seconds that work on a tree may take: as asked, at most timeouts.command_max, as any work may."""
    return min(asked_s, host.timeouts.command_max)


def require_finished(work: Work[Any, Any], asked: str, done: str) -> None:
    """Raise TookTooLong for work that was stopped; *done* says what that leaves."""
    if work.stopped:
        raise TookTooLong(asked, f"{asked}: it was not done in timeout_seconds; {done}", "ETIMEDOUT")


@asynccontextmanager
async def written(scope: Scope, directory_fd: int, size_bytes: int) -> AsyncIterator[None]:
    """Write *size_bytes* inside, all or none: on the session's account, and with what a full disk must tell.

    Raises: QuotaExceeded; BrokerError with the numbers for a disk that is full.
    """
    with scope.own.transfers.quota.taken(size_bytes):
        async with full_disk_told(scope.host, directory_fd, size_bytes):
            yield


@asynccontextmanager
async def full_disk_told(host: Host, directory_fd: int, needed_bytes: int) -> AsyncIterator[None]:
    """Let what fails for want of room say how much is needed, if a worker knows no better, and how much there is."""
    full = None
    try:
        yield
    except NoSpace as error:
        full = error
    if full is not None:
        room = await run_in_thread(os.fstatvfs, directory_fd)
        free_bytes = room.f_bavail * room.f_frsize
        needed = needed_bytes if full.needed_bytes is None else full.needed_bytes
        reserve = host.policy.file_limits.min_free_bytes
        raise BrokerError(
            ErrorCode.FILE_WRITE_ERROR,
            f"{full.sentence}; {needed} bytes are to be written, its file system has {free_bytes} bytes and "
            f"{room.f_favail} file entries free; {reserve} bytes stay free (file_limits.min_free_bytes). "
            "The destination is as it was",
            needed_bytes=needed,
            free_bytes=free_bytes,
            free_files=room.f_favail,
            reserve_bytes=reserve,
        ) from full


def kind_shown(kind: str) -> Kind:
    """Name the type of an entry as results do."""
    match kind:
        case "file" | "directory" | "symlink":
            return kind
        case _:
            return "other"


def size_shown(kind: str, size_bytes: int) -> int | None:
    """Return the size of an entry where it means something."""
    return size_bytes if kind == "file" else None


def timestamp(mtime_ns: int) -> str | None:
    """Return a file's time in UTC with milliseconds; None for one that no calendar has."""
    try:
        moment = EPOCH + timedelta(microseconds=mtime_ns // 1000)
    except OverflowError:
        return None
    return utc_text(moment)
