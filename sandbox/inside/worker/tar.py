"""The headers of a tar stream, as they are read: strictly, and only what a tree of plain files needs.

Pure, child side, stdlib only. What is understood: the header of POSIX (ustar), of GNU tar and of the seventh edition,
PAX records, GNU's long names and numbers. All else is refused and named: a program that guesses what a header may
mean can be made to guess something else than the one that looked at the archive before.
"""

from __future__ import annotations

import errno
import re
from types import MappingProxyType

from sandbox.kernel.files import Refused

METADATA_BYTES = 1024 * 1024  # of one extended header; names have 4 KiB, attributes that we ignore may have more
MAX_TIME_S = 1 << 40  # thirty thousand years
FILE, DIRECTORY, EXTENDED, GLOBAL, LONG_NAME = "file", "directory", "extended", "global", "long name"
_KINDS = MappingProxyType({b"0": FILE, b"\0": FILE, b"5": DIRECTORY, b"x": EXTENDED, b"g": GLOBAL, b"L": LONG_NAME})
_REFUSED = MappingProxyType(
    {
        b"1": "a hard link",
        b"2": "a symbolic link",
        b"3": "a character device",
        b"4": "a block device",
        b"6": "a FIFO",
        b"7": "a contiguous file",
        b"D": "a directory of an incremental dump",
        b"K": "a link",
        b"M": "a piece of a file of another volume",
        b"S": "a sparse file",
        b"V": "a volume's label",
    }
)
_MAGICS = (b"ustar\0", b"ustar ", bytes(6))
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*").fullmatch
_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ").match
_SIZE = re.compile(rb"[0-9]{1,18}").fullmatch
_TIME = re.compile(rb"(-?)([0-9]{1,18})(?:\.([0-9]*))?").fullmatch


def bad(why: str) -> Refused:
    """Return what refuses an archive."""
    return Refused("archive", errno.EBADMSG, why)


class Header:
    """One header block, checked. `name` is bytes as they stand there, `mtime_ns` nanoseconds."""

    __slots__ = ("kind", "mode", "mtime_ns", "name", "old_directory", "refused", "size")

    def __init__(self, block: bytes) -> None:
        _require_sum(block)
        magic = block[257:263]
        if magic not in _MAGICS:
            raise bad(f"it has a header of an unknown kind, {magic!r}")
        self.name = _text(block[:100])
        if magic == b"ustar\0" and (prefix := _text(block[345:500])):
            self.name = prefix + b"/" + self.name
        letter = block[156:157]
        self.kind = _KINDS.get(letter, "")
        self.refused = "" if self.kind else _REFUSED.get(letter, f"of an unknown type, {letter!r}")
        self.old_directory = letter == b"\0"  # before there was a type for it, a slash at the end of the name said so
        self.mode = number(block[100:108], "mode")
        self.size = number(block[124:136], "size")
        self.mtime_ns = number(block[136:148], "time", signed=True) * 1_000_000_000
        if abs(self.mtime_ns) > MAX_TIME_S * 1_000_000_000:
            raise bad("it has a time that no calendar has")


def _require_sum(block: bytes) -> None:
    if number(block[148:156], "checksum") != sum(block) - sum(block[148:156]) + 8 * 0x20:
        raise bad("it has a header whose checksum is wrong, or is no tar archive")


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def number(field: bytes, what: str, *, signed: bool = False) -> int:
    """Return a header's number: octal digits, or GNU's binary form. Raises: Refused."""
    if field[0] in (0x80, 0xFF):
        value = int.from_bytes(field, "big", signed=False) & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] == 0xFF:
            value -= 1 << (8 * len(field) - 1)
        if value < 0 and not signed:
            raise bad(f"it has a header with a negative {what}")
        return value
    digits = _OCTAL(field)
    if digits is None:
        raise bad(f"it has a header whose {what} is no number")
    return int(digits[1] or b"0", 8)


def long_name(content: bytes) -> bytes:
    """Return the name that GNU's header before the file's carries. Raises: Refused."""
    name = content.rstrip(b"\0")
    if not name or b"\0" in name or name == content:  # without an end, GNU tar reads on in what fills the block
        raise bad("it has a long name that is empty, has a NUL in it, or none at its end")
    return name


def records(content: bytes) -> dict[bytes, bytes]:
    """Return the PAX records of an extended header.

    Raises: Refused, also where it says twice what matters, or is about a sparse file.
    """
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(content):
        length = _RECORD(content, at)
        end = at + int(length[1]) if length else 0
        key, is_record, value = content[length.end() if length else 0 : end - 1].partition(b"=")
        if length is None or end > len(content) or content[end - 1 : end] != b"\n" or not (key and is_record):
            raise bad("it has an extended header that is none")
        if key.startswith(b"GNU.sparse.") or key == b"SCHILY.realsize":
            raise bad("it has a sparse file; only plain files and directories are taken")
        if key in (b"path", b"size", b"mtime") and (key in found or not value):
            raise bad(f"it has an extended header whose {key.decode()} is empty or said twice")
        found[key] = value
        at = end
    return found


def path_of(value: bytes) -> bytes:
    """Return a record's path. Raises: Refused."""
    if b"\0" in value:
        raise bad("it has a name with a NUL in it")
    return value


def size_of(value: bytes) -> int:
    """Return a record's size in bytes. Raises: Refused."""
    if not _SIZE(value):
        raise bad(f"it has a file whose size is said to be {value[:40]!r}")
    return int(value)


def time_ns_of(value: bytes) -> int:
    """Return a record's time in nanoseconds, what is finer cut off. Raises: Refused."""
    parts = _TIME(value)
    if not parts or int(parts[2]) > MAX_TIME_S:
        raise bad(f"it has a file whose time is said to be {value[:40]!r}")
    total = int(parts[2]) * 1_000_000_000 + int((parts[3] or b"")[:9].ljust(9, b"0"))
    return -total if parts[1] else total
