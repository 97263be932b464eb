"""Facts about an executable that the kernel will act on: the real file, its interpreters, its loader.

The policy matches on real paths, and a Landlock EXECUTE list must name every file that execve(2) opens: the
program, the chain of `#!` interpreters, and the ELF loader. Blocking; runs at start.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

HEAD_BYTES = 4096  # of a program header table this is plenty; of a `#!` line the kernel itself reads 256 bytes
SHEBANG_BYTES = 256
CHAIN_MAX = 5  # the kernel follows no more interpreters than this
PT_INTERP = 3
# Where `#!/usr/bin/env name` looks, because commands get just this PATH.
SEARCH_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


@attrs.frozen(kw_only=True)
class Program:
    """Program that an absolute path leads to; `problem` is empty where it can be executed."""

    path: str
    real_path: str
    interpreters: tuple[str, ...]
    problem: str

    @property
    def exec_paths(self) -> tuple[str, ...]:
        """Real files that a domain must allow to be executed for this program to run."""
        return (self.real_path, *self.interpreters)


def resolve_program(path: str, *, search_path: Sequence[str] = SEARCH_PATH) -> Program:
    """Look up *path*; a missing program is a fact like any other, not an error."""
    real_path = os.path.realpath(path)
    try:
        interpreters = _interpreters(real_path, search_path)
    except OSError as error:
        return Program(path=path, real_path=real_path, interpreters=(), problem=error.strerror or str(error))
    except ValueError as error:
        return Program(path=path, real_path=real_path, interpreters=(), problem=str(error))
    return Program(path=path, real_path=real_path, interpreters=interpreters, problem="")


def _interpreters(real_path: str, search_path: Sequence[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    pending = [real_path]
    for _ in range(CHAIN_MAX):
        if not pending:
            break
        wanted = [name for path in pending for name in _wanted_by(_head(path), search_path)]
        pending = [name for name in dict.fromkeys(map(os.path.realpath, wanted)) if name not in found]
        found.update(dict.fromkeys(pending))
    return tuple(found)


def _head(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"{path} is no regular file")
        if not mode & 0o111:
            raise ValueError(f"{path} is not executable")
        return os.read(fd, HEAD_BYTES)
    finally:
        os.close(fd)


def _wanted_by(head: bytes, search_path: Sequence[str]) -> list[str]:
    if head.startswith(b"#!"):
        return _shebang(head, search_path)
    if head.startswith(b"\x7fELF"):
        loader = _elf_interpreter(head)
        return [loader] if loader else []
    raise ValueError("neither an ELF program nor a script with a #! line")


def _shebang(head: bytes, search_path: Sequence[str]) -> list[str]:
    words = os.fsdecode(head[2:SHEBANG_BYTES].split(b"\n", 1)[0]).split()
    if not words:
        raise ValueError("its #! line names no interpreter")
    names = words[:1]
    if Path(words[0]).name == "env":
        # `env` is not the end of it: what it looks up has to be on the list too.
        name = next((word for word in words[1:] if not word.startswith("-") and "=" not in word), None)
        places = (f"{directory}/{name}" for directory in search_path)
        names += [place for place in places if name and os.access(place, os.X_OK)][:1]
    return names


def _elf_interpreter(head: bytes) -> str | None:
    """Read the PT_INTERP entry of a program header table; None for a static program."""
    wide = head[4:5] == b"\2"
    order = ">" if head[5:6] == b"\2" else "<"
    try:
        (table,) = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)
        size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
        for index in range(count):
            at = table + index * size
            (kind,) = struct.unpack_from(order + "I", head, at)
            if kind == PT_INTERP:
                where, length = _segment(head, order, at, wide=wide)
                return os.fsdecode(head[where : where + length].rstrip(b"\0"))
    except struct.error:
        raise ValueError("its ELF header is damaged") from None
    return None


def _segment(head: bytes, order: str, at: int, *, wide: bool) -> tuple[int, int]:
    """Return where a segment lies in the file, and how long it is there."""
    if wide:
        where, _, _, length = struct.unpack_from(order + "QQQQ", head, at + 8)
    else:
        where, _, _, length = struct.unpack_from(order + "IIII", head, at + 4)
    return int(where), int(length)
