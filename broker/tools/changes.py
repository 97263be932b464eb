"""Arranging files: make_directory, move_path, copy_path, delete_path.

Names are changed in directories that were pinned and decided on; a link in the last place is the thing itself and
never followed, so that no change reaches where it leads. What is in a tree is decided on path by path, by the worker
that walks it.
"""

from __future__ import annotations

import errno
import posixpath
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Never

import trio

from broker.contract.errors import BrokerError, ErrorCode
from broker.contract.names import shown_path
from broker.contract.trees import (
    CopyPath,
    CopyPathResult,
    DeletePath,
    DeletePathResult,
    MakeDirectory,
    MakeDirectoryResult,
    MovePath,
    MovePathResult,
    Skipped,
)
from broker.decisions import TwoPaths, require_path
from broker.scope import Host, Scope, Step
from broker.tools.rules import (
    bounded_s,
    held,
    require_existing,
    require_file,
    require_finished,
    require_no_blocked_link,
    require_not_own,
    tree_spec,
    written,
)
from sandbox.files.errors import (
    Changed,
    Exists,
    FileError,
    HoldsClosedPaths,
    NotEmpty,
    NotFound,
    OutcomeUnknown,
    TookTooLong,
    WrongKind,
    from_refusal,
)
from sandbox.files.files import EntryPlace, FileFacts, Files, Resolved, Work
from sandbox.files.trees import COPY_FILE, COPY_TREE, MOVE_TREE, REMOVE, SURVEY
from sandbox.paths import is_beneath_any

if TYPE_CHECKING:
    from sandbox.protocol.files import Bounds, Copied, CopyFile, CopyTree, MoveTree, Nothing, RemoveTree, SurveyTree

GROWTH_BYTES = 64 * 1024 * 1024
"""By which a directory may grow while it is moved to another file system, if the session may write as much."""
PUT_BACK_S = 2.0


async def perform_make_directory(scope: Scope, request: MakeDirectory, path: str) -> MakeDirectoryResult:
    """Make a directory and, where asked, those it is in; each is decided on by its real path."""
    host, files = scope.host, scope.own.files
    found, missing = await _nearest(files, path, parents=request.parents)
    with ExitStack() as pinned:
        pinned.enter_context(found)
        created = False
        for name in missing:
            require_path(host, f"{found.path.rstrip('/')}/{name}", "make")
            found, created = await files.names.make(found, name)
            pinned.enter_context(found)
        require_path(host, found.path, "make")
        if found.facts.kind != "directory" or (missing and not created and not request.parents):
            raise Exists(path, f"{path}: something has this name already", "EEXIST")
        return MakeDirectoryResult(path=shown_path(found.path), created=created)


async def _nearest(files: Files, path: str, *, parents: bool) -> tuple[Resolved, tuple[str, ...]]:
    """Find what there is of a path, and the names that are missing below it; without *parents* the last is one."""
    missing: tuple[str, ...] = ()
    if not parents and path != "/":
        path, missing = posixpath.dirname(path), (posixpath.basename(path),)
    while True:
        try:
            return await files.resolve(path), missing
        except NotFound:
            if not parents or path == "/":
                raise
            path, missing = posixpath.dirname(path), (posixpath.basename(path), *missing)


async def perform_delete_path(scope: Scope, request: DeletePath, path: str) -> DeletePathResult:
    """Delete one name, or a tree that holds nothing that is closed."""
    files = scope.own.files
    async with held(scope, files.names.entry, (path, "remove")) as (entry,):
        facts = require_existing(entry, "be deleted")
        require_not_own(scope, entry.path)
        deleted = 1
        if facts.kind == "directory" and request.recursive:
            work = await _remove_tree(scope, entry, facts, request.timeout_seconds)
            deleted = work.counts.get("removed", 0)
            require_finished(work, path, f"{deleted} entries are deleted, the rest is as it was")
        else:
            await _remove_one(files, entry)
        return DeletePathResult(path=shown_path(entry.path), entries_deleted=deleted)


async def _remove_one(files: Files, entry: EntryPlace) -> None:
    try:
        await files.names.remove(entry)
    except NotEmpty as full:
        raise NotEmpty(
            entry.asked, f"{entry.asked}: it is not empty; say recursive: true to delete all it holds", "ENOTEMPTY"
        ) from full


async def _remove_tree(scope: Scope, entry: EntryPlace, facts: FileFacts, timeout_s: float) -> Work[Nothing, Never]:
    tree = tree_spec(scope.host, entry.path)
    spec: RemoveTree = {**tree, "name": entry.name, "identity": [*facts.identity]}
    return await scope.own.files.trees.run(
        REMOVE, entry.asked, spec, (entry.fd,), timeout_s=bounded_s(scope.host, timeout_s), changes=True
    )


async def perform_move_path(scope: Scope, request: MovePath, paths: TwoPaths) -> MovePathResult:
    """Rename, in one step; to another file system by a copy that must be complete before the source goes."""
    files = scope.own.files
    async with held(scope, files.names.entry, (paths.source, "remove"), (paths.destination, "write")) as (
        source,
        target,
    ):
        facts = require_existing(source, "be moved")
        require_not_own(scope, source.path)
        await _require_free(scope, target, overwrite=request.overwrite and facts.kind != "directory")
        if facts.kind == "directory":
            _require_outside(source.path, target.path)
            await _require_open_tree(scope, source, facts, target, request.timeout_seconds)
        try:
            await files.names.rename(source, target, replace=request.overwrite and facts.kind != "directory")
        except FileError as fault:
            if fault.errno_name != "EXDEV":
                raise
            await _move_by_copy(scope, request, source, target)
        return MovePathResult(path=shown_path(target.path), moved_from=shown_path(source.path))


async def _require_free(scope: Scope, target: EntryPlace, *, overwrite: bool) -> None:
    """Refuse a destination that is taken, unless by a file that may be replaced."""
    if target.existing is None:
        return
    if target.existing.kind != "file" or not overwrite:
        raise Exists(target.asked, f"{target.asked}: a {target.existing.kind} has this name already", "EEXIST")
    await require_no_blocked_link(scope, target.existing)


def _require_outside(source: str, target: str) -> None:
    if is_beneath_any(target, (source,)):
        raise BrokerError(ErrorCode.INVALID_ARGUMENTS, "destination is inside of source: choose a place beside it")


async def _require_open_tree(
    scope: Scope, source: EntryPlace, facts: FileFacts, target: EntryPlace, timeout_s: float
) -> None:
    """Refuse to move a tree that holds a closed path, or would hold one at its new place."""
    with await _same_directory(scope.own.files, source, facts) as found:
        spec: SurveyTree = {**tree_spec(scope.host, source.path), "new_path": target.path, "leaves": True}
        work = await scope.own.files.trees.run(
            SURVEY, source.asked, spec, (found.directory(),), timeout_s=bounded_s(scope.host, timeout_s)
        )
    require_finished(work, source.asked, "nothing was moved")
    if work.done["blocked"]:
        names = ", ".join(shown_path(name) for name in work.done["blocked"])
        raise HoldsClosedPaths(source.asked, f"{source.asked}: it holds paths that the policy keeps closed: {names}")


async def _same_directory(files: Files, entry: EntryPlace, facts: FileFacts) -> Resolved:
    """The directory that was decided on, open for reading. Ownership: the caller closes it."""
    found = await files.resolve(entry.path, read=True)
    if found.facts.identity != facts.identity:
        found.close()
        raise Changed(entry.asked, f"{entry.asked}: it was replaced meanwhile; try again", "ESTALE")
    return found


async def _move_by_copy(scope: Scope, request: MovePath, source: EntryPlace, target: EntryPlace) -> None:
    facts = require_existing(source, "be moved")
    if facts.kind == "directory":
        await _move_tree(scope, source, facts, target, bounded_s(scope.host, request.timeout_seconds))
        return
    if facts.kind != "file":
        raise WrongKind(source.asked, f"{source.asked}: only files and directories move to another file system")
    with await _same_directory(scope.own.files, source, facts) as found:
        await require_file(scope, found, "read")
        await _copy_file(scope, found, target, request, keep_times=True)
    await scope.own.files.names.remove(source)


async def _move_tree(scope: Scope, source: EntryPlace, facts: FileFacts, target: EntryPlace, timeout_s: float) -> None:
    """Move a directory to another file system, with all that is changed in it until its paths lead there no more."""
    trees, quota = scope.own.files.trees, scope.own.transfers.quota
    tree: SurveyTree = {**tree_spec(scope.host, source.path), "new_path": target.path, "leaves": True}
    with await _same_directory(scope.own.files, source, facts) as found:
        survey = await trees.run(SURVEY, source.asked, tree, (found.directory(),), timeout_s=timeout_s)
    require_finished(survey, source.asked, "nothing was moved")
    size_bytes = survey.counts.get("bytes", 0)
    most = size_bytes + max(0, min(GROWTH_BYTES, quota.limit_bytes - quota.used_bytes - size_bytes))
    aside = f"{source.name[:50]}.being-moved-{secrets.token_hex(12)}"
    spec: MoveTree = {
        **tree,
        "name": source.name,
        "identity": [*facts.identity],
        "aside": aside,
        "new_name": target.name,
        "max_total_bytes": most,
        **_bounds(scope.host),
    }
    async with written(scope, target.fd, most):
        async with _put_back(scope, source, aside):
            fds = (source.fd, target.fd)
            work = await trees.run(MOVE_TREE, target.asked, spec, fds, timeout_s=timeout_s, changes=True)
        require_finished(work, source.asked, "nothing was moved")
    quota.give_back(most - work.counts.get("bytes", 0))
    if left := work.done["left"]:
        raise _partly_removed(source.asked, left, work.counts.get("removed", 0))


@asynccontextmanager
async def _put_back(scope: Scope, source: EntryPlace, aside: str) -> AsyncIterator[None]:
    """Give the source its name again where its worker could not, because it was ended by force."""
    names = scope.own.files.names
    try:
        yield
    except (OutcomeUnknown, trio.Cancelled):
        with (
            trio.move_on_after(PUT_BACK_S, shield=True),
            suppress(FileError),
            await names.entry(f"{source.parent.path.rstrip('/')}/{aside}") as moved,
        ):
            if moved.existing is not None:
                await names.rename(moved, source, replace=False)
        raise


def _partly_removed(asked: str, left: tuple[str, int, str], removed: int) -> FileError:
    """The error for a move whose copy has its name, and whose source is not gone: nothing of it is lost."""
    kind, number, why = left
    known = (
        TookTooLong
        if number == errno.ETIMEDOUT
        else type(from_refusal(asked, {"refused": kind, "errno": number, "why": why}))
    )
    sentence = f"{asked}: all of it was copied to the destination, and then {why}. {removed} entries of the source are "
    return known(asked, f"{sentence}removed, the others are where they were", errno.errorcode[number])


async def perform_copy_path(scope: Scope, request: CopyPath, paths: TwoPaths) -> CopyPathResult:
    """Copy a file, or a tree; the copy has its name only when it is complete and on the disk."""
    host, files = scope.host, scope.own.files
    async with AsyncExitStack() as pinned:
        source = pinned.enter_context(await files.resolve(paths.source, read=True))
        require_path(host, source.path, "read")
        (target,) = await pinned.enter_async_context(held(scope, files.names.entry, (paths.destination, "write")))
        is_tree = source.facts.kind == "directory"
        if is_tree and not request.recursive:
            raise WrongKind(paths.source, f"{paths.source} is a directory; say recursive: true to copy all it holds")
        if is_tree:
            source.directory()
        else:
            await require_file(scope, source, "read")
        await _require_free(scope, target, overwrite=request.overwrite and not is_tree)
        if is_tree:
            _require_outside(source.path, target.path)
            work = await _copy_tree(scope, source, target, request.timeout_seconds)
        else:
            work = await _copy_file(scope, source, target, request, keep_times=False)
    return _copied(work, target)


async def _copy_file(
    scope: Scope, source: Resolved, target: EntryPlace, request: CopyPath | MovePath, *, keep_times: bool
) -> Work[Copied, Never]:
    spec: CopyFile = {
        "name": target.name,
        "replace": request.overwrite,
        "keep_times": keep_times,
        **_bounds(scope.host),
    }
    fds = (source.file(), target.fd)
    async with written(scope, target.fd, source.facts.size_bytes):
        work = await scope.own.files.trees.run(
            COPY_FILE, target.asked, spec, fds, timeout_s=bounded_s(scope.host, request.timeout_seconds), changes=True
        )
        require_finished(work, target.asked, "nothing was copied")
    return work


def _bounds(host: Host) -> Bounds:
    limits = host.policy.file_limits
    return {"max_file_bytes": limits.max_write_size, "reserve_bytes": limits.min_free_bytes}


async def _copy_tree(scope: Scope, source: Resolved, target: EntryPlace, timeout_s: float) -> Work[Copied, Never]:
    trees, timeout_s = scope.own.files.trees, bounded_s(scope.host, timeout_s)
    tree: SurveyTree = {**tree_spec(scope.host, source.path), "new_path": target.path, "leaves": False}
    survey = await trees.run(SURVEY, source.asked, tree, (source.directory(),), timeout_s=timeout_s)
    require_finished(survey, source.asked, "nothing was copied")
    most = survey.counts.get("bytes", 0)
    spec: CopyTree = {**tree, "name": target.name, "max_total_bytes": most, **_bounds(scope.host)}
    async with written(scope, target.fd, most):
        fds = (source.directory(), target.fd)
        work = await trees.run(COPY_TREE, target.asked, spec, fds, timeout_s=timeout_s, changes=True)
        require_finished(work, target.asked, "nothing was copied")
    scope.own.transfers.quota.give_back(most - work.counts.get("bytes", 0))
    return work


def _copied(work: Work[Copied, Never], target: EntryPlace) -> CopyPathResult:
    return CopyPathResult(
        path=shown_path(target.path),
        files_copied=work.done.get("files", work.counts.get("files", 0)),
        bytes_copied=work.done.get("bytes", work.counts.get("bytes", 0)),
        skipped_count=work.counts.get("skipped", 0),
        skipped=tuple(Skipped(path=shown_path(p), reason=why) for p, why in work.done.get("skipped", ())),
    )


STEPS = (
    Step(
        MakeDirectory,
        perform_make_directory,
        paths={"path": "make"},
        completed="FILE_MAKE_DIRECTORY",
        failed="FILE_FAILED",
    ),
    Step(
        MovePath,
        perform_move_path,
        paths={"source": "remove", "destination": "write"},
        completed="FILE_MOVE",
        failed="FILE_FAILED",
    ),
    Step(
        CopyPath,
        perform_copy_path,
        paths={"source": "read", "destination": "write"},
        completed="FILE_COPY",
        failed="FILE_FAILED",
    ),
    Step(DeletePath, perform_delete_path, paths={"path": "remove"}, completed="FILE_DELETE", failed="FILE_FAILED"),
)
