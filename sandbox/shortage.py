"""Shortages of a machine, a user or a control group, and what is then said of them.

Owns the one table from errno to words. Stdlib only. A disk that is full under a client's file is not here: that is
`files.errors.NoSpace`.
"""

from __future__ import annotations

import errno
import os
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_MEMORY = "memory (memory.max of a control group, RLIMIT_AS of a process, or all that the machine has)"
LIMITS: Mapping[int, str] = MappingProxyType(
    {
        errno.EAGAIN: "processes and threads (RLIMIT_NPROC of the user, pids.max of a control group or container, "
        "kernel.threads-max)",
        errno.EMFILE: "open files of one process (RLIMIT_NOFILE)",
        errno.ENFILE: "open files of the machine (fs.file-max)",
        errno.ETOOMANYREFS: "open files on their way between processes of the user (RLIMIT_NOFILE)",
        errno.ENOMEM: _MEMORY,
        errno.ENOBUFS: _MEMORY,
    }
)
"""Limit that was met where a system call answers this. EAGAIN: of a call that waits for nothing, such as fork."""


_OWN_DISK: Mapping[int, str] = MappingProxyType(
    dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "the disk of the broker's own files (logs and data)")
)


def shortage_of(error: BaseException, *, of_own_file: bool = False) -> str:
    """Return what ran short, as a sentence without a name or path in it; empty if *error* is of another kind.

    A group is of this kind if all in it is. *of_own_file*: it is about no file of a client's, so that a full disk is
    the one of the broker's own files.
    """
    if isinstance(error, BaseExceptionGroup):
        parts = [shortage_of(part, of_own_file=of_own_file) for part in error.exceptions]
        return parts[0] if all(parts) else ""
    number: int = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None) or 0
    return said(number) if number in LIMITS or (of_own_file and number in _OWN_DISK) else ""


def said(number: int) -> str:
    """Return the sentence for an errno that stands for a shortage."""
    return f"{os.strerror(number)}: a limit is met, of {LIMITS.get(number) or _OWN_DISK[number]}"
