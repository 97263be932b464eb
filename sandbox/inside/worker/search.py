"""Search the text of a tree, line by line (child side, stdlib only).

A line is what ends in a newline. Bytes that are no UTF-8 stay what they are, as lone surrogates; a file with a NUL
in its first block is binary and passed over. A file is opened only after its real path and its other names were
found to be permitted.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import deque

from sandbox.inside.worker.globs import compile_globs
from sandbox.inside.worker.walk import Links, Rules, Walk
from sandbox.kernel.files import Held, Refused, open_path, real_path, reopen

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.inside.worker.job import Job
    from sandbox.inside.worker.walk import Found
    from sandbox.protocol.files import Matched, Nothing, Search

BLOCK_BYTES = 1024 * 1024
LINE_BYTES = 4 * 1024 * 1024  # a longer line is searched in parts
HEAD_BYTES = 8192  # where a NUL is looked for
SHOWN_CHARACTERS = 500  # of a line
BEFORE_MATCH = 100  # of those, in front of the match
ITEM_BYTES = 100


def search(job: Job, spec: Search, fds: list[int]) -> Nothing:
    """Report every line of the tree, or of the one file, that matches."""
    searcher = _Searcher(job, spec, _expression(spec))
    if stat.S_ISREG(os.fstat(fds[0]).st_mode):
        searcher.search_open(fds[0], "")
        return {}
    include, exclude = compile_globs(spec["include"]), compile_globs(spec["exclude"])
    for found in Walk(job, searcher.rules, hidden=spec["hidden"]).tree(fds[0]):
        if not found.permitted:
            job.count("blocked")
        elif exclude and exclude(found.relative):
            found.descend = False
        elif found.kind == "file" and (include is None or include(found.relative)):
            searcher.search_found(found)
    return {}


def _expression(spec: Search) -> Callable[[str], re.Match[str] | None]:
    text = re.escape(spec["pattern"]) if spec["literal"] else spec["pattern"]
    try:
        return re.compile(text, 0 if spec["case_sensitive"] else re.IGNORECASE).search
    except (re.error, ValueError) as fault:
        raise Refused("pattern", errno.EINVAL, f"the regular expression is wrong: {fault}") from fault


class _Searcher:
    """A search, and all that stays the same from file to file."""

    def __init__(self, job: Job, spec: Search, match: Callable[[str], re.Match[str] | None]) -> None:
        self._job = job
        self._match = match
        self._around: int = spec["context"]
        needed = spec["literal"] and spec["case_sensitive"]
        # What must be in a block for any of its lines to match.
        self._needle: bytes = os.fsencode(spec["pattern"]) if needed else b""
        self.rules = Rules(spec["rules"])
        self._links = Links(job, self.rules, [*spec["link_roots"]])

    def search_found(self, found: Found) -> None:
        try:
            with Held(open_path(found.name, dir_fd=found.parent_fd, flags=os.O_NOFOLLOW)) as pinned:
                status = os.fstat(pinned.fd)
                if not stat.S_ISREG(status.st_mode):
                    return  # it was replaced since its name was read
                path = real_path(pinned.fd)
                if not self.rules.permit(path):
                    self._job.count("blocked")
                elif not self._links.are_innocent(pinned.fd):
                    self._job.count("linked")
                else:
                    with Held(reopen(pinned.fd, os.O_RDONLY)) as file:
                        self.search_open(file.fd, found.relative)
        except (OSError, Refused):
            self._job.count("unreadable")

    def search_open(self, fd: int, relative: str) -> None:
        lines = _Lines(self._job, relative, self._match, self._around)
        for block in self._blocks(fd):
            self._job.tick()
            if self._needle and self._needle not in block and not lines.wanting:
                lines.skip(block)
            else:
                lines.take(block)
        lines.end()
        self._job.count("files")
        self._job.count("files_matching", bool(lines.matches))

    def _blocks(self, fd: int) -> Iterator[bytes]:
        """The content in parts that end where a line does; nothing of a binary file."""
        rest, first = b"", True
        while data := os.read(fd, BLOCK_BYTES):
            self._job.count("bytes", len(data))
            if first and b"\0" in data[:HEAD_BYTES]:
                self._job.count("binary")
                return
            first = False
            end = data.rfind(b"\n") + 1
            if end:
                yield rest + data[:end]
                rest = data[end:]
            else:
                rest += data
                if len(rest) > LINE_BYTES:
                    yield rest
                    rest = b""
        if rest:
            yield rest


class _Lines:
    """The lines of one file, numbered, and the matches that still want lines after them."""

    def __init__(self, job: Job, relative: str, match: Callable[[str], re.Match[str] | None], around: int) -> None:
        self._job = job
        self._relative = relative
        self._match = match
        self._around = around
        self._number = 1
        self._before: deque[str] = deque(maxlen=around)
        self._open: deque[Matched] = deque()
        self.matches = 0

    @property
    def wanting(self) -> bool:
        """Tell whether a block must be looked at although nothing in it matches."""
        return bool(self._open) or self._around > 0

    def skip(self, block: bytes) -> None:
        """Pass over a block that holds no match."""
        self._number += block.count(b"\n")

    def take(self, block: bytes) -> None:
        """Search the lines of a block."""
        lines = block.decode("utf-8", "surrogateescape").split("\n")
        ends = not lines[-1]
        if ends:
            lines.pop()
        if self._around:
            for line in lines:
                self._with_context(line)
        else:
            for number, line in enumerate(lines, self._number):
                if found := self._match(line):
                    self._report(number, line, found)
        self._number += len(lines) if self._around == 0 else 0

    def _with_context(self, line: str) -> None:
        for item in self._open:
            item[6].append(_shown(line, 0)[0])
        while self._open and len(self._open[0][6]) >= self._around:
            self._emit(self._open.popleft())
        if found := self._match(line):
            self._report(self._number, line, found)
        self._before.append(_shown(line, 0)[0])
        self._number += 1

    def _report(self, number: int, line: str, found: re.Match[str]) -> None:
        self.matches += 1
        self._job.count("matches")
        text, cut = _shown(line, found.start())
        item: Matched = (self._relative, number, found.start() + 1, text, cut, list(self._before), [])
        if self._around:
            self._open.append(item)
        else:
            self._emit(item)
        self._job.tick()

    def end(self) -> None:
        """Report the matches that are near the end of the file."""
        while self._open:
            self._emit(self._open.popleft())

    def _emit(self, item: Matched) -> None:
        around = sum(len(line) for line in (*item[5], *item[6]))
        self._job.emit(item, ITEM_BYTES + len(self._relative) + len(item[3]) + around)


def _shown(line: str, start: int) -> tuple[str, bool]:
    """The part of a line around its match, and whether it is only a part."""
    line = line.removesuffix("\r")
    if len(line) <= SHOWN_CHARACTERS:
        return line, False
    begin = max(0, start - BEFORE_MATCH)
    return line[begin : begin + SHOWN_CHARACTERS], True
