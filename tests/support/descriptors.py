"""The descriptors of the process that runs the tests."""

from __future__ import annotations

from pathlib import Path


def open_descriptors() -> frozenset[tuple[int, str]]:
    """Every one with what it refers to, without the listing's own.

    What is open in /proc is left out: nothing that is tested so keeps any of it, and a thread of an earlier test, which
    nobody waits for any more, may still look at processes.
    """
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.add((int(link.name), str(link.readlink())))
        except FileNotFoundError:
            continue
    return frozenset((number, name) for number, name in found if not name.startswith("/proc/"))
