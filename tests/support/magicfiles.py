"""Databases for libmagic that claim a type and hang, and what a libmagic does that finds them by itself.

The pattern that hangs is a regular expression with back references: it takes seconds for 30 bytes, and doubles.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.sniffing import UNASKED, open_sniffing

CLAIMED = "application/x-claimed"
CLAIM = b"CLAIM anything"
HANG = b"HANG" + b"a" * 2000
DATABASE = f"""\
0\tstring\tCLAIM\tclaimed
!:mime\t{CLAIMED}
0\tstring\tHANG
>4\tregex/4000\t(a*)(a*)(a*)(a*)\\\\1\\\\2\\\\3\\\\4b\thung
!:mime\tapplication/x-hung
"""
COMPILE = """
import ctypes, magic
compile = magic.libmagic.magic_compile
compile.argtypes, compile.restype = [ctypes.c_void_p, ctypes.c_char_p], ctypes.c_int
library = magic.Magic()
raise SystemExit(compile(library.cookie, b"evil"))
"""
ASK = "import magic, sys; print(magic.from_buffer(sys.stdin.buffer.read(), mime=True))"
LOADED = "import magic; print(*{line.split()[-1] for line in open('/proc/self/maps') if 'libmagic' in line})"


def home_with_magic(base: Path) -> Path:
    """A home whose ~/.magic claims and hangs."""
    home = base / "home-with-magic"
    home.mkdir()
    (home / ".magic").write_text(DATABASE)
    return home


def compiled(base: Path) -> Path:
    """The same as a compiled database."""
    (base / "evil").write_text(DATABASE)
    subprocess.run([sys.executable, "-c", COMPILE], cwd=base, env=plain(), check=True, capture_output=True)
    return base / "evil.mgc"


def plain(**more: str) -> dict[str, str]:
    """An environment in which libmagic finds its own database, but for what *more* says."""
    return {"PATH": os.environ.get("PATH", os.defpath), **more}


def told_by_a_plain_libmagic(head: bytes, timeout_s: float = 20, **environment: str) -> str:
    """What python-magic says that finds its database by itself. Raises subprocess.TimeoutExpired: nothing in time."""
    asked = subprocess.run(
        [sys.executable, "-c", ASK],
        input=head,
        env=plain(**environment),
        capture_output=True,
        check=True,
        timeout=timeout_s,
    )
    return asked.stdout.decode().strip()


def library() -> str:
    """The real path of libmagic itself."""
    asked = subprocess.run([sys.executable, "-c", LOADED], env=plain(), capture_output=True, text=True, check=True)
    return os.path.realpath(asked.stdout.strip())


async def database() -> str:
    """The real path of the database that a broker uses here; skips where there is none."""
    async with open_sniffing(say=lambda _: None) as sniffing:
        while sniffing.report == UNASKED:
            await sniffing.look(b"x")
        if not sniffing.report.startswith("libmagic "):
            pytest.skip(sniffing.report)
        return sniffing.report.partition(" with ")[2].partition(";")[0]
