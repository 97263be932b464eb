"""What the tests of archives share: the worker's own code on real files in this process, and whole workers."""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from sandbox import wire
from sandbox.files.archives import Summary
from sandbox.inside.worker.job import Job
from sandbox.inside.worker.pack import pack
from sandbox.inside.worker.unpack import unpack
from sandbox.kernel.files import Refused
from tests.support.door import Door

OPEN_RULES = {
    "allowed": r"[\s\S]*",
    "blocked_from_root": "(?!)",
    "blocked_anywhere": "(?!)",
    "guarded_from_root": "(?!)",
    "guarded_anywhere": "(?!)",
    "opened": "(?!)",
    "blocked_extensions": (),
}
CLOSED_SECRETS = {**OPEN_RULES, "blocked_anywhere": "/(?:secret|[.]ssh)(?=/|\\Z)", "blocked_extensions": ("exe",)}
LIMITS = {"max_entries": 10_000, "max_bytes": 1 << 40, "gzip": False}


def pack_spec(source: Path, **fields: Any) -> dict[str, Any]:
    return {"rules": OPEN_RULES, "link_roots": [str(source)], **LIMITS, **fields}


def unpack_spec(target: Path, **fields: Any) -> dict[str, Any]:
    return {
        "rules": OPEN_RULES,
        "new_path": str(target),
        "mode": None,
        "replace_empty": False,
        "max_file_bytes": 1 << 40,
        "max_content_bytes": 1 << 40,
        "reserve_bytes": 0,
        **LIMITS,
        **fields,
    }


def extract_all(archive: tarfile.TarFile, folder: Path, *, guarded: bool = True) -> None:
    """Unpack as Python's own module does, with its guard against hostile members where it has one, or without.

    Set as an attribute, which 3.11.0 takes as well; the argument `filter` came with 3.11.4 (test_architecture.py).
    """
    name = "data_filter" if guarded else "fully_trusted_filter"
    archive.extraction_filter = getattr(tarfile, name, None)
    archive.extractall(folder)  # noqa: S202  only ours, or the attack's victim


@attrs.frozen
class Done:
    counts: dict[str, int]
    done: dict[str, Any]


@contextmanager
def job() -> Iterator[Job]:
    """A job whose broker listens and does not leave."""
    ours, theirs = wire.pair()
    with ours, theirs:
        yield Job(theirs, {"timeout_s": 60})


@contextmanager
def opened(path: Path | str, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def pack_here(source: Path, **fields: Any) -> tuple[bytes, Done]:
    """What the worker does, in this process, into a file instead of a pipe."""
    with tempfile.TemporaryFile() as file, job() as one, opened(source, os.O_DIRECTORY) as directory:
        done = pack(one, pack_spec(source, **fields), [directory, file.fileno()])
        file.seek(0)
        return file.read(), Done(one.counts, done)


def unpack_here(data: bytes, target: Path, **fields: Any) -> Done:
    """What the worker does, in this process, from a file instead of a pipe."""
    with tempfile.TemporaryFile() as file, job() as one, opened(target.parent, os.O_DIRECTORY) as parent:
        file.write(data)
        file.seek(0)
        done = unpack(one, {**unpack_spec(target, **fields), "name": target.name}, [parent, file.fileno()])
        return Done(one.counts, done)


def refused(data: bytes, target: Path, **fields: Any) -> Refused:
    """Unpack what must be refused, and see that nothing is left of it."""
    before = sorted(os.listdir(target.parent))
    with pytest.raises(Refused) as caught:
        unpack_here(data, target, **fields)
    assert sorted(os.listdir(target.parent)) == before
    return caught.value


async def pack_from(door: Door, source: Path, *, timeout_s: float = 20, **fields: Any) -> tuple[bytes, Summary]:
    """The whole way: a worker behind the door, and a pipe."""
    with await door.files.resolve(str(source), read=True) as found:
        async with door.files.archives.open_pack(found, pack_spec(source, **fields), timeout_s=timeout_s) as packing:
            data = b"".join([piece async for piece in packing])
            return data, packing.summary


async def unpack_to(door: Door, target: Path, data: bytes, *, timeout_s: float = 20, **fields: Any) -> Summary:
    """The whole way: a worker behind the door, and a pipe."""
    with await door.files.names.entry(str(target)) as entry:
        spec = unpack_spec(target, **fields)
        async with door.files.archives.open_unpack(entry, spec, timeout_s=timeout_s) as unpacking:
            for at in range(0, len(data), 65536):
                await unpacking.write(data[at : at + 65536])
            return await unpacking.finish()


Tree = dict[str, Any]
"""What a directory holds: bytes of a file, a Tree of a directory; names in surrogateescape."""


def tree_of(folder: Path) -> Tree:
    found: Tree = {}
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            found[entry.name] = tree_of(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            found[entry.name] = Path(entry.path).read_bytes()
    return found


def plant(folder: Path, tree: Tree) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in tree.items():
        if isinstance(content, dict):
            plant(folder / name, content)
        else:
            (folder / name).write_bytes(content)
    return folder
