"""The headers of a tar stream, as they are written: POSIX (ustar, PAX where it must be). Pure, child side, stdlib only.

A name is the bytes that it is on the disk. One that is text beyond ASCII says so in a PAX record, which every program
reads as UTF-8; one that is no UTF-8 goes out raw, and when it is long as GNU's long name, which has no encoding.
Owners are nobody's business: user and group are 0 and without names.
"""

from __future__ import annotations

BLOCK = 512
END = bytes(2 * BLOCK)
MAX_OCTAL = 0o77777777777  # eleven digits
NAME_BYTES = 100
PREFIX_BYTES = 155
REGULAR, DIRECTORY, EXTENDED, LONG_NAME = b"0", b"5", b"x", b"L"
# No header: it makes every program say that something is wrong, where an archive that merely stops may pass for whole.
BROKEN_OFF = b"remote-broker: this archive is not complete\n".ljust(BLOCK, b"!")


def padding(size: int) -> int:
    """How many bytes follow so many, up to the end of their last block."""
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
        DIRECTORY if directory else REGULAR,
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
