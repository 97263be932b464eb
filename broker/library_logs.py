"""What the libraries below us may write to the log: that something went wrong, not with what data.

The SDK's debug records carry whole messages, and the texts of its exceptions (pydantic's above all) quote the
value they complain about: a file's content, a command's stdin. So their records from WARNING up are written
again under our own name, with the exception's type and place in the code instead of its text.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
