"""The operational log: what the broker says about itself on stderr, and what the libraries below may add to it.

Not the audit: nothing of a call is said here, only starts, stops and troubles, as text or as JSON lines. Whoever reads
stderr may be stopped or hang (a terminal, a supervisor, a full disk), and nobody waits for that: a thread writes, what
it cannot write in time is dropped, and how much that was is said when there is somebody again.

Libraries may say that something went wrong, not with what data. The SDK's debug records carry whole messages, and the
texts of its exceptions (pydantic's above all) quote the value they complain about: a file's content, a command's stdin.
So their records from WARNING up are written again under our own name, with the exception's type and place in the code
instead of its text.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import select
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

WAITING_BYTES = 256 * 1024
"""Of lines that are yet to be written; those beyond are dropped."""
LAST_WORDS_S = 1.0
"""For them at the end of the program."""


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One JSON object on one line, whatever the message holds."""
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class StderrHandler(logging.Handler):
    """Writes lines to a descriptor that may block, from a thread of its own, which ends with the program."""

    def __init__(self, fd: int, *, waiting_bytes: int = WAITING_BYTES, last_words_s: float = LAST_WORDS_S) -> None:
        """Start the thread. *fd* is not closed by it. Raises OSError: there is no thread to be had."""
        super().__init__()
        self._fd = fd
        self._waiting_bytes = waiting_bytes
        self._last_words_s = last_words_s
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._writing = False
        self._changed = threading.Condition()
        try:
            threading.Thread(target=self._write, name="stderr", daemon=True).start()
        except RuntimeError as refused:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from refused

    def emit(self, record: logging.LogRecord) -> None:
        """Leave a line to the thread, or drop it."""
        try:
            line = self.format(record).encode(errors="backslashreplace") + b"\n"
        except (TypeError, ValueError, LookupError, AttributeError):
            # There are no words for it: it is lost too, and does no harm to who said it.
            line = b""
        with self._changed:
            if line and self._bytes + len(line) <= self._waiting_bytes:
                self._lines.append(line)
                self._bytes += len(line)
            else:
                self._dropped += 1
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until everything is written, for `last_words_s` seconds at most."""
        deadline = time.monotonic() + self._last_words_s
        with self._changed:
            while (self._lines or self._dropped or self._writing) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def _write(self) -> None:
        while True:
            with self._changed:
                while not self._lines and not self._dropped:
                    self._changed.wait()
                lines, dropped = b"".join(self._lines), self._dropped
                self._lines.clear()
                self._dropped, self._writing = 0, True
            self._write_all(lines + (self._line_of_dropped(dropped) if dropped else b""))
            with self._changed:
                self._bytes -= len(lines)
                self._writing = False
                self._changed.notify_all()

    def _line_of_dropped(self, dropped: int) -> bytes:
        message = f"{dropped} lines were dropped here: whatever reads this log did not read it"
        record = logging.LogRecord("broker", logging.WARNING, __file__, 0, message, None, None)
        return self.format(record).encode() + b"\n"

    def _write_all(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # somebody who has it too does not want to wait; this thread does
                select.select([], [self._fd], [])
            except OSError:  # nobody will ever read it
                return


def configure_logging(level: str, form: str) -> None:
    """Send everything at *level* or worse to stderr. *form*: "json" or "text"."""
    handler = StderrHandler(sys.stderr.fileno())
    plain = logging.Formatter("%(asctime)s %(levelname)-8s %(name)s: %(message)s")
    handler.setFormatter(_JsonLines() if form == "json" else plain)
    logging.basicConfig(level=level, handlers=[handler], force=True)


LIBRARIES = ("mcp", "hypercorn", "sse_starlette")
_log = logging.getLogger("broker.libraries")


class _Relay(logging.Handler):
    """Write a library's record again, without the text of its exception."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            text = f"{text}: {describe_without_text(error)}"
        _log.log(record.levelno, "%s: %s", record.name, text)


def describe_without_text(error: BaseException) -> str:
    """Return the type of *error*, and of what it groups or comes from, and the line that raised it."""
    words = type(error).__name__
    if frames := traceback.extract_tb(error.__traceback__):
        words += f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}"
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else [error.__cause__ or error.__context__]
    parts = [describe_without_text(part) for part in inner if part is not None]
    return f"{words} ({'; '.join(parts)})" if parts else words


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Put the relay between the libraries' loggers and everyone else's handlers; undone on the way out."""
    relay = _Relay(logging.WARNING)
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.addHandler(relay)
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(relay)
            logger.setLevel(level)
            logger.propagate = propagate
