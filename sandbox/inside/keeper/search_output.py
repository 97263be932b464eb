"""A search in the log of a command's output, as one more process inside the walls. Child side, stdlib only.

A regular expression can take for ever, and Python holds its lock meanwhile; so it runs where it can be killed and
where it can reach nothing: as the session's user, in a leader that becomes no program. The log is its standard
input (frames, see `commands/transcript.py`), findings are JSON lines on its standard output, the last one says how far
it got.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque

from sandbox.protocol.commands import BAD_PATTERN, FRAME_HEADER, STREAM_BIT, STREAMS

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

    from sandbox.protocol.commands import PatternRefused, Searched, SearchMatch, SearchSpec, Stream

READ_BYTES = 1024 * 1024
LINE_BYTES = 64 * 1024  # a longer line is searched in pieces
SHOWN_CHARACTERS = 500


def main(spec: SearchSpec) -> NoReturn:
    """Search as *spec* says and exit."""
    with os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as out:
        try:
            pattern = re.compile(spec["pattern"], re.IGNORECASE if spec["ignore_case"] else 0)
        except (re.error, OverflowError, RecursionError) as error:
            refused: PatternRefused = {"problem": str(error)}
            out.write(json.dumps(refused))
            out.flush()
            os._exit(BAD_PATTERN)
        hunt = Hunt(pattern, spec)
        for finding in hunt.findings():
            out.write(json.dumps(finding) + "\n")
            if not finding.get("more"):
                out.flush()
    os._exit(0)


class Hunt:
    """One search: the lines of each stream in the order they ended."""

    def __init__(self, pattern: re.Pattern[str], spec: SearchSpec) -> None:
        """Search what *spec* names."""
        self._pattern = pattern
        self._wanted = STREAMS if spec["stream"] == "both" else (spec["stream"],)
        self._at, self._stop = spec["begin"], spec["stop"]
        self._from = spec["from"]
        self._context = spec["context"]
        self._left = spec["max_matches"]
        self._starts = dict(zip(STREAMS, spec["offsets"], strict=True))
        self._resume = dict(self._starts)  # before the first line that was not searched
        self._partial = dict.fromkeys(STREAMS, b"")
        self._numbers = dict.fromkeys(STREAMS, 0)
        self._before: dict[Stream, deque[str]] = {name: deque(maxlen=self._context) for name in STREAMS}
        self._after: dict[Stream, list[SearchMatch]] = {name: [] for name in STREAMS}

    def findings(self) -> Iterator[SearchMatch | Searched]:
        """Yield each match, when its context is complete, and at last how far the search came."""
        for name, data in _frames(self._at, self._stop):
            if name in self._wanted:
                yield from self._take(name, data)
                if self._left <= 0 and not any(self._after.values()):
                    break
        for name in self._wanted:
            if rest := self._partial[name]:
                yield from self._line(name, rest, ended=False)
            yield from self._ripe(name, everything=True)
        yield {"done": True, "complete": self._left > 0, "cursors": self._resume}

    def _take(self, name: Stream, data: bytes) -> Iterator[SearchMatch]:
        text = self._partial[name] + data
        *lines, rest = text.split(b"\n")
        for line in lines:
            yield from self._line(name, line, ended=True)
        while len(rest) > LINE_BYTES:
            yield from self._line(name, rest[:LINE_BYTES], ended=False)
            rest = rest[LINE_BYTES:]
        self._partial[name] = rest

    def _line(self, name: Stream, line: bytes, *, ended: bool) -> Iterator[SearchMatch]:
        start = self._starts[name]
        self._starts[name] = start + len(line) + ended
        self._numbers[name] += 1
        text = line.decode("utf-8", "replace")
        for waiting in self._after[name]:
            waiting["after"].append(text[:SHOWN_CHARACTERS])
        yield from self._ripe(name, everything=False)
        if self._left <= 0:
            return
        self._resume[name] = self._starts[name]
        found = self._pattern.search(text) if start + len(line) >= self._from else None
        if found:
            self._left -= 1
            self._after[name].append(self._match(name, start, text, found))
            yield from self._ripe(name, everything=False)
        self._before[name].append(text[:SHOWN_CHARACTERS])

    def _match(self, name: Stream, start: int, text: str, found: re.Match[str]) -> SearchMatch:
        cut = max(0, found.start() - SHOWN_CHARACTERS // 2)
        return {
            "stream": name,
            "cursor": start,
            "line": self._numbers[name],
            "text": text[cut : cut + SHOWN_CHARACTERS],
            "before": list(self._before[name]),
            "after": [],
        }

    def _ripe(self, name: Stream, *, everything: bool) -> Iterator[SearchMatch]:
        waiting = self._after[name]
        while waiting and (everything or len(waiting[0]["after"]) >= self._context):
            yield waiting.pop(0)


def _frames(at: int, stop: int) -> Iterator[tuple[Stream, bytes]]:
    """Yield the log's frames from *at* to *stop*; long ones were never longer than a read."""
    rest = b""
    while at < stop:
        chunk = os.pread(0, min(READ_BYTES, stop - at), at)
        if not chunk:
            return
        at += len(chunk)
        rest += chunk
        index = 0
        while len(rest) - index >= FRAME_HEADER.size:
            (word,) = FRAME_HEADER.unpack_from(rest, index)
            end = index + FRAME_HEADER.size + (word & ~STREAM_BIT)
            if end > len(rest):
                break
            yield STREAMS[bool(word & STREAM_BIT)], rest[index + FRAME_HEADER.size : end]
            index = end
        rest = rest[index:]
