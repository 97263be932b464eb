"""Archives made by hand: raw headers, good and bad, and whole small ones by Python's tarfile."""

from __future__ import annotations

import io
import tarfile
from typing import Any

from tests.support.archiving import Tree

CHECKSUM, MODE = slice(148, 156), slice(100, 108)
END = bytes(1024)


def summed(block: bytes) -> bytes:
    """The block with the checksum that it should have."""
    total = sum(block) - sum(block[CHECKSUM]) + 8 * 0x20
    return block[:148] + b"%06o\0 " % total + block[156:]


def header(
    name: bytes = b"f", kind: bytes = b"0", content_bytes: int = 0, linkname: bytes = b"", **fields: bytes
) -> bytes:
    """One raw header; *fields* are put in as they are."""
    block = bytearray(512)
    places = {"mode": 100, "uid": 108, "gid": 116, "size": 124, "mtime": 136, "magic": 257, "prefix": 345}
    values = {
        "mode": b"0000644\0",
        "size": b"%011o\0" % content_bytes,
        "mtime": b"%011o\0" % 0,
        "magic": b"ustar\x0000",
    }
    block[: len(name)] = name
    block[156:157] = kind
    block[157 : 157 + len(linkname)] = linkname
    for field, value in (values | fields).items():
        block[places[field] : places[field] + len(value)] = value
    return summed(bytes(block))


def content(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(data: bytes, kind: bytes = b"x") -> bytes:
    return header(b"PaxHeader", kind, len(data)) + content(data)


def record(key: bytes, value: bytes) -> bytes:
    for length in range(len(key) + len(value) + 4, len(key) + len(value) + 12):
        line = b"%d %s=%s\n" % (length, key, value)
        if len(line) == length:
            return line
    raise AssertionError


def long_name(name: bytes) -> bytes:
    return header(b"././@LongLink", b"L", len(name)) + content(name)


def archive_of(tree: Tree, **fields: Any) -> bytes:
    """A tree as Python's tarfile writes it; *fields* of every entry."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        _add(archive, "", tree, fields)
    return file.getvalue()


def _add(archive: tarfile.TarFile, prefix: str, tree: Tree, fields: dict[str, Any]) -> None:
    for name, content in tree.items():
        info = tarfile.TarInfo(prefix + name)
        info.mode = 0o755 if isinstance(content, dict) else 0o644
        if isinstance(content, dict):
            info.type = tarfile.DIRTYPE
        else:
            info.size = len(content)
        for field, value in fields.items():
            setattr(info, field, value)
        archive.addfile(info, None if isinstance(content, dict) else io.BytesIO(content))
        if isinstance(content, dict):
            _add(archive, f"{prefix}{name}/", content, fields)
