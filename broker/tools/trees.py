"""Looking through trees: search_files, find_files, list_directory, stat_path.

The work on a tree is a worker's, inside the walls (`sandbox/files/trees.py`); here it is decided what it may begin
with, and what it found is put into words.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import trio

from broker.contract.errors import BrokerError, ErrorCode
from broker.contract.names import cursor_after, place_of_cursor, shown_path, usable_path
from broker.contract.trees import (
    DirectoryEntry,
    FindFiles,
    FindFilesResult,
    FoundEntry,
    ListDirectory,
    ListDirectoryResult,
    Match,
    SearchFiles,
    SearchFilesResult,
    StatPath,
    StatPathResult,
)
from broker.decisions import require_path
from broker.scope import Scope, Step
from broker.tools.rules import (
    bounded_s,
    kind_shown,
    require_existing,
    require_file,
    size_shown,
    timestamp,
    tree_spec,
)
from sandbox.files.errors import Changed, TookTooLong
from sandbox.files.files import FileFacts, Resolved, Work
from sandbox.files.trees import FIND, LIST, SEARCH
from sandbox.protocol.files import MAX_DEPTH
from sandbox.threads import run_in_thread

if TYPE_CHECKING:
    from sandbox.protocol.files import Find, ListTree, Search

LIST_S = 20.0
"""Seconds for a listing in depth: about a million entries."""
CHECKSUM_S = 300.0
HASHED_HERE_BYTES = 1024 * 1024
"""As much of a file is hashed by the broker itself, some milliseconds; whatever is larger the session hashes."""


async def perform_search_files(scope: Scope, request: SearchFiles, path: str) -> SearchFilesResult:
    """Search the text of a tree, or of one file."""
    host, own = scope.host, scope.own
    with await own.files.resolve(path, read=True) as found:
        require_path(host, found.path, "read")
        if found.facts.kind == "file":
            await require_file(scope, found, "read")
        fd = found.file() if found.facts.kind == "file" else found.directory()
        spec: Search = {
            **tree_spec(host, found.path),
            "pattern": request.pattern,
            "literal": request.literal,
            "case_sensitive": request.case_sensitive,
            "include": request.include,
            "exclude": request.exclude,
            "hidden": request.include_hidden,
            "context": request.context_lines,
            "max_items": request.max_matches,
            "max_bytes": request.max_bytes,
        }
        work = await own.files.trees.run(SEARCH, path, spec, (fd,), timeout_s=bounded_s(host, request.timeout_seconds))
        counts = work.counts
        return SearchFilesResult(
            path=shown_path(found.path),
            matches=tuple(_match(scope, found, *item) for item in work.items),
            truncated=bool(work.stopped),
            stopped_by=_stopped(work),
            files_searched=counts.get("files", 0),
            files_with_matches=counts.get("files_matching", 0),
            bytes_searched=counts.get("bytes", 0),
            skipped_binary=counts.get("binary", 0),
            skipped_closed=counts.get("blocked", 0),
            skipped_unreadable=counts.get("unreadable", 0),
            skipped_hard_links=counts.get("linked", 0),
        )


def _match(
    scope: Scope,
    root: Resolved,
    relative: str,
    line: int,
    column: int,
    text: str,
    cut: bool,  # noqa: FBT001  as the worker's list has it
    *around: list[str],
) -> Match:
    before, after = around
    return Match(
        path=_usable(scope, root, relative),
        line=line,
        column=column,
        text=text,
        text_truncated=cut,
        before=tuple(before),
        after=tuple(after),
    )


async def perform_find_files(scope: Scope, request: FindFiles, path: str) -> FindFilesResult:
    """Find entries of a tree by their names."""
    host, own = scope.host, scope.own
    with await own.files.resolve(path, read=True) as found:
        require_path(host, found.path, "list")
        spec: Find = {
            **tree_spec(host, found.path),
            "globs": (request.pattern,),
            "exclude": request.exclude,
            "kind": "" if request.type == "any" else request.type,
            "hidden": request.include_hidden,
            "depth": MAX_DEPTH,
            "max_items": request.max_matches,
        }
        work = await own.files.trees.run(
            FIND, path, spec, (found.directory(),), timeout_s=bounded_s(host, request.timeout_seconds)
        )
        return FindFilesResult(
            path=shown_path(found.path),
            entries=tuple(_found(scope, found, *item) for item in work.items),
            truncated=bool(work.stopped),
            stopped_by=_stopped(work),
            entries_searched=work.counts.get("looked_at", 0),
            skipped_closed=work.counts.get("blocked", 0),
            skipped_unreadable=work.counts.get("unreadable", 0),
        )


def _found(scope: Scope, root: Resolved, relative: str, kind: str, size_bytes: int, mtime_ns: int) -> FoundEntry:
    return FoundEntry(
        path=_usable(scope, root, relative),
        type=kind_shown(kind),
        size_bytes=size_shown(kind, size_bytes),
        modified_at=timestamp(mtime_ns),
    )


def _usable(scope: Scope, root: Resolved, relative: str) -> str:
    path = f"{root.path.rstrip('/')}/{relative}" if relative else root.path
    return usable_path(path, scope.own.working_dir)


def _stopped(work: Work[Any, Any]) -> Any:
    return work.stopped or None


async def perform_list_directory(scope: Scope, request: ListDirectory, path: str) -> ListDirectoryResult:
    """List the names of a directory, or of its tree down to a depth."""
    after = _place_of(request.cursor)
    with await scope.own.files.resolve(path, read=True) as found:
        require_path(scope.host, found.path, "list")
        if request.depth > 1:
            return await _list_tree(scope, request, found, after)
        listing = await scope.own.files.list_directory(
            found, limit=request.max_entries, include_hidden=request.include_hidden, after=after
        )
    return ListDirectoryResult(
        path=shown_path(found.path),
        entries=tuple(_entry(e.name, e.kind, e.size_bytes, e.mtime_ns) for e in listing.entries),
        total_count=listing.total_count,
        truncated=listing.more or not listing.counted_all,
        next_cursor=cursor_after(listing.entries[-1].name) if listing.more and listing.entries else None,
    )


async def _list_tree(scope: Scope, request: ListDirectory, found: Resolved, after: str) -> ListDirectoryResult:
    spec: ListTree = {
        **tree_spec(scope.host, found.path),
        "depth": request.depth,
        "hidden": request.include_hidden,
        "after": after,
        "limit": request.max_entries,
    }
    work = await scope.own.files.trees.run(LIST, found.asked, spec, (found.directory(),), timeout_s=LIST_S)
    more = work.counts.get("later", 0) > len(work.items) or bool(work.stopped)
    return ListDirectoryResult(
        path=shown_path(found.path),
        entries=tuple(_entry(*item) for item in work.items),
        total_count=work.counts.get("total", 0),
        truncated=more,
        next_cursor=cursor_after(work.items[-1][0]) if more and work.items else None,
    )


def _place_of(cursor: str | None) -> str:
    if cursor is None:
        return ""
    try:
        return place_of_cursor(cursor)
    except ValueError:
        raise BrokerError(
            ErrorCode.INVALID_ARGUMENTS, "cursor is none that list_directory returned: pass next_cursor unchanged"
        ) from None


def _entry(name: str, kind: str, size_bytes: int, mtime_ns: int) -> DirectoryEntry:
    return DirectoryEntry(
        name=shown_path(name),
        type=kind_shown(kind),
        size_bytes=size_shown(kind, size_bytes),
        modified_at=timestamp(mtime_ns),
    )


async def perform_stat_path(scope: Scope, request: StatPath, path: str) -> StatPathResult:
    """Tell about one path; about a link itself when it is not to be followed."""
    host, files = scope.host, scope.own.files
    if request.follow_symlinks or request.checksum:
        with await files.resolve(path, read=request.checksum) as found:
            require_path(host, found.path, "read")
            sha256 = await _checksum(scope, found) if request.checksum else None
            return _stat(found.facts, None, sha256)
    with await files.names.entry(path) as entry:
        require_path(host, entry.path, "read")
        return _stat(require_existing(entry, "be read"), entry.target, None)


def _stat(facts: FileFacts, target: str | None, sha256: str | None) -> StatPathResult:
    return StatPathResult(
        path=shown_path(facts.path),
        type=kind_shown(facts.kind),
        size_bytes=facts.size_bytes,
        modified_at=timestamp(facts.mtime_ns),
        mode=f"{facts.mode:04o}",
        owner_uid=facts.uid,
        link_count=facts.nlink,
        link_target=None if target is None else shown_path(target),
        sha256=sha256,
    )


async def _checksum(scope: Scope, found: Resolved) -> str:
    """Hash the file that was pinned, all of it and nothing else. A small one here: a process would cost more."""
    await require_file(scope, found, "read")
    files, fd, size_bytes = scope.own.files, found.file(), found.facts.size_bytes
    if size_bytes <= HASHED_HERE_BYTES:
        data = await files.read(found, 0, size_bytes)
        length, sha256 = len(data), (await run_in_thread(hashlib.sha256, data)).hexdigest()
    else:
        with trio.move_on_after(CHECKSUM_S) as limit:
            length, sha256 = await files.hashes.whole(found.asked, fd, size_bytes)
        if limit.cancelled_caught:
            sentence = f"{found.asked}: it was not hashed to its end in {CHECKSUM_S:g} s"
            raise TookTooLong(found.asked, sentence, "ETIMEDOUT")
    now = os.fstat(fd)
    if (length, now.st_size, now.st_mtime_ns) != (size_bytes, size_bytes, found.facts.mtime_ns):
        raise Changed(found.asked, f"{found.asked}: it was changed while it was hashed; try again", "ESTALE")
    return sha256


STEPS = (
    Step(ListDirectory, perform_list_directory, paths={"path": "list"}, completed="FILE_LIST", failed="FILE_FAILED"),
    Step(SearchFiles, perform_search_files, paths={"path": "read"}, completed="FILE_SEARCH", failed="FILE_FAILED"),
    Step(FindFiles, perform_find_files, paths={"path": "list"}, completed="FILE_FIND", failed="FILE_FAILED"),
    Step(StatPath, perform_stat_path, paths={"path": "read"}, completed="FILE_STAT", failed="FILE_FAILED"),
)
