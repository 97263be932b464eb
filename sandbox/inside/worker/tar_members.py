"""The entries of a tar stream, each one checked before it is handed on (child side, stdlib only)."""

from __future__ import annotations

import errno
import os

from sandbox.inside.unfinished import hidden
from sandbox.inside.worker import tar
from sandbox.inside.worker.tar import BLOCK, bad, padding
from sandbox.kernel.files import Refused
from sandbox.protocol.files import MAX_DEPTH

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.inside.worker.tar_pipe import Inlet

NAME_BYTES = 255
PATH_BYTES = 4095
_EMPTY = bytes(BLOCK)


class Member:
    """A plain file or a directory. `parts` is its path beneath the top; none for the top itself."""

    __slots__ = ("is_directory", "mode", "mtime_ns", "parts", "relative", "size")

    def __init__(self, name: bytes, header: tar.Header, said: dict[bytes, bytes]) -> None:
        self.is_directory = header.kind == tar.DIRECTORY or (header.old_directory and name.endswith(b"/"))
        self.size = tar.size_of(said[b"size"]) if b"size" in said else header.size
        self.mtime_ns = tar.time_ns_of(said[b"mtime"]) if b"mtime" in said else header.mtime_ns
        self.mode = header.mode
        self.parts = _parts(name, is_directory=self.is_directory)
        self.relative = "/".join(self.parts)
        if self.is_directory and self.size:
            raise bad(f"{self.relative!r} is a directory with content")


def _parts(name: bytes, *, is_directory: bool) -> list[str]:
    """Return the components of a name that stays beneath the top. Raises: Refused."""
    shown = os.fsdecode(name[:200])
    if not name or name.startswith(b"/"):
        raise bad(f"{shown!r} is no path beneath a directory")
    if not is_directory and name.endswith((b"/", b"/.")):
        raise bad(f"{shown!r} is a file with a directory's name")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts or not (parts or is_directory):
        raise bad(f"{shown!r} leads out of the directory")
    if len(parts) > MAX_DEPTH or len(name) > PATH_BYTES or any(len(part) > NAME_BYTES for part in parts):
        raise bad(f"{shown!r} is too long: a name has at most {NAME_BYTES} bytes, a path {MAX_DEPTH} names")
    if any(hidden.is_part(part) for part in map(os.fsdecode, parts)):
        raise bad(f"{shown!r} is a name that is kept for writes that are under way")
    return [os.fsdecode(part) for part in parts]


class Members:
    """Reads headers. The caller takes all of an entry's content from the inlet before it asks for the next."""

    def __init__(self, inlet: Inlet, *, max_entries: int) -> None:
        self._inlet = inlet
        self._left = self._limit = max_entries

    def __iter__(self) -> Iterator[Member]:
        while (block := self._inlet.exactly(BLOCK)) != _EMPTY:
            member = self._member(block)
            if member is None:
                continue
            yield member
            self._inlet.exactly(padding(member.size))
        if self._inlet.exactly(BLOCK) != _EMPTY or any(bytes(piece).strip(b"\0") for piece in self._inlet.rest()):
            raise bad("something follows its end; archives that were appended to each other are not taken")

    def _member(self, block: bytes) -> Member | None:
        """Return the entry that begins here, or None for a header that is about the whole archive."""
        self._count()
        said: dict[bytes, bytes] = {}
        name = b""
        header = tar.Header(block)
        while header.kind in (tar.EXTENDED, tar.LONG_NAME):
            content = self._content(header)
            if header.kind == tar.EXTENDED and not said:
                said = tar.records(content)
            elif header.kind == tar.LONG_NAME and not name:
                name = tar.long_name(content)
            else:
                raise bad("it has two extended headers for one entry")
            header = tar.Header(self._inlet.exactly(BLOCK))
        if header.kind == tar.GLOBAL:
            if said or name:
                raise bad("it has an extended header without its entry")
            self._ignore(header)
            return None
        if name and b"path" in said:
            raise bad("it has an entry with two names")
        name = name or tar.path_of(said.get(b"path", header.name))
        if header.refused:
            kind = header.refused
            raise bad(f"{os.fsdecode(name[:200])!r} is {kind}; only plain files and directories are taken")
        return Member(name, header, said)

    def _content(self, header: tar.Header) -> bytes:
        if not 0 < header.size <= tar.METADATA_BYTES:
            raise bad(f"it has an extended header of {header.size} bytes; 1 to {tar.METADATA_BYTES} are taken")
        content = self._inlet.exactly(header.size)
        self._inlet.exactly(padding(header.size))
        return content

    def _ignore(self, header: tar.Header) -> None:
        """A header for all entries may carry a comment; what it would change about them is refused."""
        said = tar.records(self._content(header))
        if said.keys() & {b"path", b"size"}:
            raise bad("it has a header that gives all entries one name or size")

    def _count(self) -> None:
        if self._left <= 0:
            raise Refused("too_large", errno.EFBIG, f"it has more than archive_max_entries, {self._limit} entries")
        self._left -= 1
