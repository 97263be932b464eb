"""Opening a directory as a transfer: what must hold before it is packed, or an archive unpacked."""

from __future__ import annotations

from functools import partial

from broker.decisions import require_path
from broker.scope import Host, Scope
from broker.session.archives import ArchiveSink, ArchiveSource
from broker.tools.rules import full_disk_told, in_turn, require_not_own, tree_spec
from sandbox import protocol
from sandbox.files.errors import Exists
from sandbox.files.files import EntryPlace
from transfers.declared import Declared


async def open_archive_source(scope: Scope, path: str, *, gzip: bool) -> ArchiveSource:
    """Pin the directory *path* to pack it.

    Raises: Denied; WrongKind when it is no directory. Ownership: the caller closes the source.
    """
    files = scope.own.files
    found = await files.resolve(path, read=True)
    try:
        require_path(scope.host, found.path, "read")
        found.directory()
    except BaseException:
        found.close()
        raise
    spec: protocol.Pack = {**tree_spec(scope.host, found.path), **_caps(scope.host, gzip=gzip)}
    return ArchiveSource(found=found, archives=files.archives, spec=spec)


async def open_archive_sink(scope: Scope, path: str, declared: Declared, *, gzip: bool) -> ArchiveSink:
    """Pin the place *path*, a free name or an empty directory, to unpack there what was *declared*.

    Raises: Denied; Exists when something else has the name. Ownership: the caller aborts or closes the sink.
    """
    host, own = scope.host, scope.own
    quota = own.transfers.quota
    target = await own.files.names.entry(path)
    try:
        require_path(host, target.path, "make")
        _require_new_or_empty(scope, target)
    except BaseException:
        target.close()
        raise
    spec: protocol.UnpackAnywhere = {
        **tree_spec(host, target.path),
        **_caps(host, gzip=gzip),
        "new_path": target.path,
        "replace_empty": target.existing is not None,
        "mode": None if target.existing is None else target.existing.mode,
        "max_file_bytes": host.policy.file_limits.max_write_size,
        "reserve_bytes": host.policy.file_limits.min_free_bytes,
    }
    return ArchiveSink(
        target=target,
        archives=own.files.archives,
        quota=quota,
        declared=declared,
        spec=spec,
        full_disk_told=partial(full_disk_told, host),
        in_turn=in_turn(scope, target),
    )


def _require_new_or_empty(scope: Scope, target: EntryPlace) -> None:
    """Whether a directory is empty shows when the archive takes its place; then it is not replaced unless it is."""
    there = target.existing
    if there is None:
        return
    if there.kind != "directory":
        sentence = f"{target.asked}: a {there.kind} has this name; an archive becomes a new directory"
        raise Exists(target.asked, sentence, "EEXIST")
    require_not_own(scope, target.path)


def _caps(host: Host, *, gzip: bool) -> protocol.ArchiveLimits:
    limits = host.policy.file_limits
    return {"max_entries": limits.archive_max_entries, "max_bytes": limits.archive_max_bytes, "gzip": gzip}
