"""The headers of a tar stream: read strictly, written plainly. Pure, child side, stdlib only.

Read is what a tree of plain files needs: the header of POSIX (ustar), of GNU tar and of the seventh edition, PAX
records, GNU's long names and numbers. All else is refused and named: a program that guesses what a header may mean can
be made to guess something else than the one that looked at the archive before.

Written is POSIX (ustar, PAX where it must be). A name is the bytes that it is on the disk. One that is text beyond
ASCII says so in a PAX record, which every program reads as UTF-8; one that is no UTF-8 goes out raw, and when it is
long as GNU's long name, which has no encoding. Owners are nobody's business: user and group are 0 and without names.
"""

from __future__ import annotations

import errno
import re
from types import MappingProxyType

from sandbox.kernel.files import Refused

BLOCK = 512
METADATA_BYTES = 1024 * 1024  # of one extended header; names have 4 KiB, attributes that we ignore may have more
MAX_TIME_S = 1 << 40  # thirty thousand years
FILE, DIRECTORY, EXTENDED, GLOBAL, LONG_NAME = b"0", b"5", b"x", b"g", b"L"
_OLD_FILE = b"\0"
_KINDS = frozenset({FILE, DIRECTORY, EXTENDED, GLOBAL, LONG_NAME})
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
END = bytes(2 * BLOCK)
MAX_OCTAL = 0o77777777777  # eleven digits
NAME_BYTES = 100
PREFIX_BYTES = 155
# No header: it makes every program say that something is wrong, where an archive that merely stops may pass for whole.
BROKEN_OFF = b"remote-broker: this archive is not complete\n".ljust(BLOCK, b"!")
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
        # Before there was a type for a directory, a slash at the end of the name said so.
        self.old_directory = letter == _OLD_FILE
        self.kind = FILE if self.old_directory else letter
        self.refused = "" if self.kind in _KINDS else _REFUSED.get(letter, f"of an unknown type, {letter!r}")
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


def padding(size: int) -> int:
    """Return how many bytes follow so many, up to the end of their last block."""
    return -size % BLOCK


def member(name: bytes, *, directory: bool, size: int, mode: int, mtime_s: int) -> bytes:
    """Return the header, or headers, of a file of *size* bytes or a directory; *name* is relative, without `.`."""
    stored = name + b"/" if directory else name
    prefix, short = _split(stored)
    records: list[tuple[bytes, bytes]] = []
    before = b""
    if not (short and stored.isascii()):
        if _is_utf8(stored):
            records.append((b"path", stored))
        elif not short:
            content = stored + b"\0"
            before = _block(b"././@LongLink", LONG_NAME, len(content), 0o644) + content + bytes(padding(len(content)))
    if size > MAX_OCTAL:
        records.append((b"size", b"%d" % size))
    if not 0 <= mtime_s <= MAX_OCTAL:
        records.append((b"mtime", b"%d" % mtime_s))
    header = _block(
        short or stored[:NAME_BYTES],
        DIRECTORY if directory else FILE,
        size if size <= MAX_OCTAL else 0,
        mode,
        mtime_s if 0 <= mtime_s <= MAX_OCTAL else 0,
        prefix,
    )
    return before + (_extended(records) if records else b"") + header


def _extended(records: list[tuple[bytes, bytes]]) -> bytes:
    content = b"".join(_record(key, value) for key, value in records)
    return _block(b"PaxHeader", EXTENDED, len(content), 0o644) + content + bytes(padding(len(content)))


def _record(key: bytes, value: bytes) -> bytes:
    """`length key=value`, where the length counts its own digits."""
    rest = b" %s=%s\n" % (key, value)
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return b"%d%s" % (length, rest)


def _split(stored: bytes) -> tuple[bytes, bytes]:
    """Return prefix and name for the two fields of a header; no name where it does not fit."""
    if len(stored) <= NAME_BYTES:
        return b"", stored
    at = stored.find(b"/", len(stored) - NAME_BYTES - 1, min(PREFIX_BYTES + 1, len(stored) - 1))
    return (stored[:at], stored[at + 1 :]) if at > 0 else (b"", b"")


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _block(name: bytes, kind: bytes, size: int, mode: int, mtime_s: int = 0, prefix: bytes = b"") -> bytes:
    head = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(NAME_BYTES, b"\0"), mode, 0, 0, size, mtime_s)
    tail = b"%s%s%s%s%s" % (kind, bytes(100), b"ustar\x0000", bytes(64), b"%07o\0" % 0 * 2)
    tail = (tail + prefix.ljust(PREFIX_BYTES, b"\0")).ljust(BLOCK - len(head) - 8, b"\0")
    total = sum(head) + 8 * 0x20 + sum(tail)
    return head + b"%06o\0 " % total + tail
