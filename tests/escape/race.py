# ruff: noqa: T201 - a program that prints
"""The two sides of a race: `swap F G` exchanges two names without pause; `read F OUTSIDE` checks F, then opens it.

The reader is the control: it does what a careless file tool does, until it has read what its check would have refused.
"""

from __future__ import annotations

import ctypes
import os
import sys

EXCHANGE = 2
AT_FDCWD = -100
ROUNDS = 20_000


def swap(one: str, other: str) -> None:
    """Exchange them until killed; the first line says that it has begun."""
    libc = ctypes.CDLL(None, use_errno=True)
    print("swapping", flush=True)
    while True:
        libc.renameat2(AT_FDCWD, one.encode(), AT_FDCWD, other.encode(), EXCHANGE)


def read(path: str, outside: str) -> None:
    """Read *path* after a look whether it leads *outside*, until the look was in vain."""
    for _ in range(ROUNDS):
        text = _careless(path, outside)
        if "secret-" in text:
            print(text)
            return


def _careless(path: str, outside: str) -> str:
    try:
        if os.path.realpath(path).startswith(outside):
            return ""
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:  # it was swapped while its name was looked up
        return ""


if __name__ == "__main__":
    {"swap": swap, "read": read}[sys.argv[1]](*sys.argv[2:])
