"""What lies under a log: a disk of its own that can be full or frozen, or something in the way of the file.

Real ones, mounted; who may not mount skips.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BOUND_S = 20


@contextmanager
def in_the_way(log: Path) -> Iterator[None]:
    """A log that cannot be written, because a directory has its name; the log is moved aside."""
    aside = log.with_name(f"{log.name}-aside")
    log.rename(aside)
    log.mkdir()
    try:
        yield
    finally:
        log.rmdir()


@contextmanager
def disk(base: Path, *options: str, source: str = "tmpfs") -> Iterator[Path]:
    """A file system of its own at `base/disk`, with a folder for logs and one for sessions."""
    folder = base / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", *options, source, str(folder)], capture_output=True, text=True, check=False, timeout=BOUND_S
    )
    if mounted.returncode:
        pytest.skip(f"a disk needs the right to mount: {mounted.stderr.strip()}")
    try:
        folder.chmod(0o755)
        (folder / "log").mkdir(mode=0o700)
        (folder / "ws").mkdir()
        (folder / "ws").chmod(0o777)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=BOUND_S)


@contextmanager
def full_after(limit_bytes: int) -> Iterator[None]:
    """A disk that takes so many bytes of a file and then no more, for this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """A disk without room for one more byte."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size_bytes in (1 << 20, 4096, 1):
            try:
                while file.write(b"\0" * size_bytes) == size_bytes:
                    pass
            except OSError:
                continue
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def freezable_disk(base: Path) -> Iterator[tuple[Path, Path]]:
    """A file in *base*, and the file system in it, mounted as by `disk`; it can be `frozen`."""
    if missing := [tool for tool in ("mkfs.ext4", "fsfreeze") if shutil.which(tool) is None]:
        pytest.skip(f"freezing a disk needs {', '.join(missing)}")
    image = base / "image"
    with image.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, timeout=BOUND_S)
    with disk(base, "-o", "loop", source=str(image)) as folder:
        yield image, folder


@contextmanager
def frozen(folder: Path) -> Iterator[None]:
    """The disk frozen: who writes there waits."""
    done = subprocess.run(["fsfreeze", "-f", str(folder)], capture_output=True, text=True, check=False, timeout=BOUND_S)
    if done.returncode:
        pytest.skip(f"this disk cannot be frozen: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "-u", str(folder)], check=True, timeout=BOUND_S)
