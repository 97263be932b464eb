"""Landlock by its three system calls: a domain narrows what the calling thread and its children may do.

Child side, stdlib only. Domains nest and never widen; a process can neither trace nor, from ABI 6 on, signal
what lies outside of its own. Knows nothing of sessions: the caller says which paths carry which rights.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from sandbox.kernel import syscalls
from sandbox.kernel.files import pin

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Iterable

    Grant = tuple[str, int]  # a path, and the rights on it (for a directory: and on everything beneath)

SYS_CREATE_RULESET = 444  # the same numbers on every architecture that got them after 2019
SYS_ADD_RULE = 445
SYS_RESTRICT_SELF = 446
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE_CHAR = 1 << 6
MAKE_DIR = 1 << 7
MAKE_REG = 1 << 8
MAKE_SOCK = 1 << 9
MAKE_FIFO = 1 << 10
MAKE_BLOCK = 1 << 11
MAKE_SYM = 1 << 12
REFER = 1 << 13  # ABI 2
TRUNCATE = 1 << 14  # ABI 3
IOCTL_DEV = 1 << 15  # ABI 5
SCOPE_ABSTRACT_UNIX = 1 << 0  # ABI 6
SCOPE_SIGNAL = 1 << 1  # ABI 6

READ = READ_FILE | READ_DIR
# execve opens the file for reading, and Landlock asks for that right too.
RUN = EXECUTE | READ
# Everything but device nodes, which nobody without root can make, and execution, which is its own list.
WRITE = (
    READ | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | REFER
    | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_SYM
)  # fmt: skip
DEVICE = READ | WRITE_FILE | TRUNCATE | IOCTL_DEV
_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_ABI_1 = (1 << 13) - 1


class _RulesetAttr(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"  # what _pack_ means everywhere; Python 3.14 wants it said
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def abi() -> tuple[int, str]:
    """Return the kernel's Landlock ABI and an empty text, or 0 and why there is none."""
    try:
        version = syscalls.call_number(
            SYS_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(CREATE_RULESET_VERSION)
        )
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return 0, "this kernel was built without Landlock (it needs Linux 5.13)"
        if error.errno == errno.EOPNOTSUPP:
            return 0, "Landlock is switched off at boot (the lsm= parameter)"
        return 0, f"Landlock does not answer: {error.strerror}"
    return version, ""


def handled_rights(version: int) -> int:
    """Return every file right that this ABI knows; none where there is no Landlock."""
    rights = _ABI_1 if version else 0
    for since, right in ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        if version >= since:
            rights |= right
    return rights


def enforce(
    version: int, *, handled: int = 0, grants: Iterable[Grant] = (), real_grants: Iterable[Grant] = (), scoped: int = 0
) -> tuple[str, ...]:
    """Confine the calling thread for good: *handled* rights only where *grants* and *real_grants* give them.

    The caller has set no_new_privs. A scope the ABI does not know is left out, so the caller checks the ABI
    before it relies on one. The paths of *real_grants* have no symbolic links; one that appears is not followed.

    Returns:
        The granted paths that do not exist or cannot be reached: nothing is granted there.
    """
    handled &= handled_rights(version)
    scoped = scoped if version >= 6 else 0
    if not handled and not scoped:
        return ()
    ruleset = _create_ruleset(version, handled, scoped)
    try:
        missing = [path for path, rights in grants if not _add_rule(ruleset, path, rights & handled)]
        for path, rights in real_grants:
            if not _add_rule(ruleset, path, rights & handled, follow=False):
                missing.append(path)
        syscalls.call_number(SYS_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    return tuple(missing)


def scope_signals(version: int) -> None:
    """Enter a domain of our own whose only wall is that signals do not leave it; nothing before ABI 6.

    Every layer above one that restricts files also refuses renames and links from one directory to another
    (EXDEV) unless it grants REFER itself: this one grants it everywhere, and the layers below decide.
    """
    if version >= 6:
        enforce(version, handled=REFER, grants=[("/", REFER)], scoped=SCOPE_SIGNAL)


def narrow_execution(version: int, paths: Iterable[str]) -> None:
    """Enter a domain that executes only *paths* of what could be executed before (and see `scope_signals`)."""
    grants = [("/", REFER), *((path, EXECUTE) for path in paths)]
    enforce(version, handled=EXECUTE | REFER, grants=grants)


def _create_ruleset(version: int, handled: int, scoped: int) -> int:
    attributes = _RulesetAttr(handled, 0, scoped)
    # An older kernel refuses a longer structure unless its tail is zero; say just as much as it knows.
    size = 24 if version >= 6 else 8
    return syscalls.call_number(SYS_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0))


def _add_rule(ruleset: int, path: str, rights: int, *, follow: bool = True) -> bool:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC) if follow else pin(path)
    except OSError:  # what cannot be reached needs no right; the caller reports it
        return False
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _FILE_RIGHTS  # the kernel refuses directory rights on a file
        if rights:
            rule = _PathBeneathAttr(rights, fd)
            syscalls.call_number(
                SYS_ADD_RULE,
                ctypes.c_int(ruleset),
                ctypes.c_int(RULE_PATH_BENEATH),
                ctypes.byref(rule),
                ctypes.c_uint32(0),
            )
    finally:
        os.close(fd)
    return True
