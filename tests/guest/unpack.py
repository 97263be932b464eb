"""What Debian packs, unpacked: the vmlinux inside a bzImage, modules with their dependencies, and the way back, cpio.

Pure but for reading modules and one call of zstd, which Python's own library has only from 3.14 on.
"""

from __future__ import annotations

import gzip
import lzma
import re
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

SECTOR = 512
ZSTD_S = 60
DIRECTORY = 0o040755
PROGRAM = 0o100755


class UnknownKernel(Exception):
    """The image or its modules are not what we know how to unpack."""


def vmlinux(packed: bytes) -> bytes:
    """Return the ELF kernel inside a bzImage (Documentation/arch/x86/boot.rst: payload_offset, payload_length)."""
    if packed[0x202:0x206] != b"HdrS":
        raise UnknownKernel("not a bzImage")
    protected = (packed[0x1F1] + 1) * SECTOR
    offset, length = struct.unpack_from("<II", packed, 0x248)
    image = _decompress(packed[protected + offset : protected + offset + length])
    if not image.startswith(b"\x7fELF"):
        raise UnknownKernel("the payload is not an ELF kernel")
    return image


def _decompress(payload: bytes) -> bytes:
    """Undo the kernel's compression; all but gzip carry the unpacked size in four bytes behind the stream."""
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return subprocess.run(
            ["zstd", "-dqc"], input=payload[:-4], capture_output=True, timeout=ZSTD_S, check=True
        ).stdout
    if payload.startswith(b"\x1f\x8b"):
        return gzip.decompress(payload)
    raise UnknownKernel(f"compressed in an unknown way ({payload[:6].hex()})")


def module_closure(library: Path, wanted: Sequence[str]) -> Mapping[str, bytes]:
    """Return the modules of *wanted* with all they depend on, each behind what it needs; built-in ones are left out."""
    files = {_module_name(path): path for path in library.rglob("*.ko*")}
    builtin = {_module_name(Path(line)) for line in library.joinpath("modules.builtin").read_text().split()}
    loaded: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in loaded or name in builtin:
            return
        if name not in files:
            raise UnknownKernel(f"has no module {name}")
        module = _read_module(files[name])
        for dependency in _dependencies(module):
            add(dependency)
        loaded[name] = module

    for name in wanted:
        add(name)
    return loaded


def _module_name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def _read_module(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def _dependencies(module: bytes) -> list[str]:
    """The names in the module's own .modinfo entry `depends=a,b`."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


def cpio(files: Mapping[str, bytes], directories: Sequence[str]) -> bytes:
    """An initramfs in the kernel's `newc` format; every file in it is executable."""
    entries = [(name, DIRECTORY, b"") for name in directories]
    entries += [(name, PROGRAM, content) for name, content in files.items()]
    packed = [_entry(number, *entry) for number, entry in enumerate(entries, start=1)]
    return b"".join([*packed, _entry(0, "TRAILER!!!", 0, b"")])


def _entry(inode: int, name: str, mode: int, content: bytes) -> bytes:
    label = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device and special device (major, minor each), length of name, checksum
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(label), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + label
    return _padded(head) + _padded(content)


def _padded(block: bytes) -> bytes:
    return block + bytes(-len(block) % 4)
