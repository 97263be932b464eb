"""Look at a tree without reading a file: find by glob, list in depth, survey before a change (child side)."""

from __future__ import annotations

import os

from sandbox.inside.unfinished import hidden
from sandbox.inside.worker.globs import compile_globs
from sandbox.inside.worker.walk import Rules, Walk

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from sandbox.inside.worker.job import Job
    from sandbox.inside.worker.walk import Found
    from sandbox.protocol.files import Counted, Find, ListTree, Nothing, Surveyed, SurveyTree, SweepTrees

COUNTED_ENTRIES = 1_000_000
SHOWN_PATHS = 5
ENTRY_BYTES = 80  # of an answer, beside the name itself


def find(job: Job, spec: Find, fds: list[int]) -> Nothing:
    """Report what matches one of the globs and is of the kind asked for."""
    matches, excluded = compile_globs(spec["globs"]), compile_globs(spec["exclude"])
    walk = Walk(job, Rules(spec["rules"]), hidden=spec["hidden"], depth=spec["depth"])
    for found in walk.tree(fds[0]):
        job.count("looked_at")
        if not found.permitted:
            job.count("blocked")
        elif excluded and excluded(found.relative):
            found.descend = False
        elif (not spec["kind"] or found.kind == spec["kind"]) and (matches is None or matches(found.relative)):
            _emit(job, found)
    return {}


def listing(job: Job, spec: ListTree, fds: list[int]) -> Counted:
    """Report the entries after a place, a directory before what it holds, and count all there are.

    A name that must not be touched is shown, as in any listing, and not looked into.
    """
    after = tuple(spec["after"].split("/")) if spec["after"] else ()
    limit, shown = spec["limit"], 0
    walk = Walk(job, Rules(spec["rules"]), hidden=spec["hidden"], depth=spec["depth"])
    for total, found in enumerate(walk.tree(fds[0]), 1):
        later = not after or tuple(found.relative.split("/")) > after
        if later and shown < limit:
            _emit(job, found)
        shown += later
        job.counts.update(total=total, later=shown)  # before the next look at the clock
        if total >= COUNTED_ENTRIES:
            return {"counted_all": False}
    return {"counted_all": True}


def _emit(job: Job, found: Found) -> None:
    status = found.status()
    size, mtime_ns = (status.st_size, status.st_mtime_ns) if status else (0, 0)
    job.emit((found.relative, found.kind, size, mtime_ns), ENTRY_BYTES + len(found.relative))


def survey(job: Job, spec: SurveyTree, fds: list[int]) -> Surveyed:
    """Tell what a tree holds that stands against copying it to `new_path`, or with `leaves` against moving it there."""
    return survey_tree(job, Rules(spec["rules"]), fds[0], spec["new_path"], leaves=spec["leaves"])


def survey_tree(job: Job, rules: Rules, root_fd: int, new_path: str, *, leaves: bool) -> Surveyed:
    """Do as `survey`, for a caller that goes on with the tree.

    `new_path` is empty where nothing gets a new path. `leaves`: nothing stays where it is, so that all must be open
    to changes; what is only copied must be open to reading.
    """
    may_go = rules.permit_change if leaves else rules.permit
    blocked: list[str] = []
    mounted: list[str] = []
    device = os.fstat(root_fd).st_dev
    for found in Walk(job, rules).tree(root_fd):
        job.count("entries")
        if not may_go(found.path) or (new_path and not rules.permit_change(f"{new_path}/{found.relative}")):
            found.descend = False
            _remember(blocked, found.relative)
        status = found.status()
        if status is not None and status.st_dev != device:
            found.descend = False
            _remember(mounted, found.relative)
        if status is not None and found.kind == "file":
            job.count("bytes", status.st_size)
    return {"blocked": blocked, "mounted": mounted}


def _remember(paths: list[str], path: str) -> None:
    if len(paths) < SHOWN_PATHS:
        paths.append(path)


def sweep(job: Job, spec: SweepTrees, fds: list[int]) -> Nothing:
    """Remove what crashed brokers left in a directory, half-made copies of trees included."""
    hidden.reclaim(fds[0], spec["limit"], trees=True)
    job.tick()
    return {}
