"""A file with more than one name: is one of the others blocked?

A hard link gives a blocked file a second, innocent name, and no path tells. So before a file with several links is
used its other names are looked for beneath the allowed roots. Found all and none is blocked: it may be used. A
blocked one, or names that the search did not find, refuse it (fail closed).
"""

from __future__ import annotations

import os
import posixpath
from collections import deque
from collections.abc import Iterator

import trio

from broker.decisions import Denied
from broker.errors import ErrorCode
from broker.host import Host
from policy.decision import Deny, shown
from policy.path import decide_path
from sandbox.files import FileFacts

SEARCHED_ENTRIES = 100_000
"""Names looked at for one file: about half a second of a thread."""


async def require_no_blocked_link(host: Host, facts: FileFacts) -> None:
    """Refuse a file that has, or may have, a blocked name as well.

    Raises:
        Denied: which name is blocked is not told, only that one is.
    """
    if facts.kind != "file" or facts.nlink < 2:
        return
    roots = (posixpath.dirname(facts.path), host.user.home, *host.grants.write_paths)
    names = await trio.to_thread.run_sync(_names_of, facts, roots, abandon_on_cancel=True)
    if any(isinstance(decide_path(host.paths, name, "read"), Deny) for name in names):
        raise _denied(facts, "one of them is blocked")
    if len(names) < facts.nlink:
        raise _denied(facts, f"only {len(names)} could be found beneath the allowed paths")


def _denied(facts: FileFacts, why: str) -> Denied:
    reason = f"{shown(facts.path)} has {facts.nlink} names (hard links) and {why}: copy the file instead."
    return Denied(ErrorCode.POLICY_PATH_VIOLATION, Deny(rule="blocked_paths", reason=reason))


def _names_of(facts: FileFacts, roots: tuple[str, ...]) -> frozenset[str]:
    """Every name of the file that is found, nearest directories first, until all are known; for a thread."""
    names: set[str] = set()
    for looked_at, (name, inode) in enumerate(_entries(facts.dev, roots)):
        if inode == facts.ino:
            names.add(name)
        if len(names) >= facts.nlink or looked_at >= SEARCHED_ENTRIES:
            break
    return frozenset(names)


def _entries(device: int, roots: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """(path, inode) of all names beneath the roots on this device, breadth first, each directory once."""
    pending, seen = deque(dict.fromkeys(roots)), set[tuple[int, int]]()
    while pending:
        directory = pending.popleft()
        try:
            facts = os.stat(directory, follow_symlinks=False)
            if facts.st_dev != device or (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(directory) as entries:
                for entry in entries:
                    yield entry.path, entry.inode()
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except OSError:
            continue  # it went away, or the broker may not look: its names stay unknown, which refuses the file
