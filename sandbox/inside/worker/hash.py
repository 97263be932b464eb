"""The SHA-256 of a file, as far as the broker asks for it (child side, stdlib only).

Behind each part that was asked for the process waits for the next wish, with the hash so far, which cannot leave it.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from typing import Any

    from sandbox.inside.worker.job import Job
    from sandbox.protocol.files import Nothing

BUFFER_BYTES = 256 * 1024  # stays in the cache of the processor
# Python's own: it is at hand in every session, for some kilobytes. OpenSSL's is several times as fast and costs
# half a megabyte, which only a process that hashes has to pay.
_plain = __import__("_sha2" if sys.version_info >= (3, 12) else "_sha256")


def digest(job: Job, _spec: Nothing, fds: list[int]) -> Nothing:
    """Hash the open file up to where each wish says, and tell how far that was and what it is up to there.

    Less far than was wished for: the file ends there. Raises: Stop, OSError.
    """
    running, at = _new_sha256(), 0
    buffer = memoryview(bytearray(BUFFER_BYTES))
    while True:
        until = job.next_wish()["until"]
        while at < until and (count := os.preadv(fds[0], [buffer[: until - at]], at)):
            running.update(buffer[:count])
            at += count
            job.tick()
        job.tell({"at": at, "sha256": running.hexdigest()})


def _new_sha256() -> Any:
    """The fast kind where this process may read the library, else the kind that is here already."""
    try:
        from _hashlib import openssl_sha256  # noqa: PLC0415  not before somebody hashes
    except (ImportError, OSError):
        return _plain.sha256()
    return openssl_sha256()
