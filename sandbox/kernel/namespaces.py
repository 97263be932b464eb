"""Namespaces of a session: what it can see of users, processes, System V objects, host names and the network.

Child side, stdlib only. Every function is one step of a birth and raises OSError whose text says what was refused;
`root` builds the file system that belongs to them. Works for root, and for a plain user inside a user namespace
of its own, where that user has all capabilities until `drop_capabilities` takes them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct

from sandbox.kernel import process, syscalls
from sandbox.kernel.mounting import explained

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable

CGROUP = 0x02000000  # rooted in the group that the process is in at this moment
IPC = 0x08000000
MOUNT = 0x00020000
NET = 0x40000000
PID = 0x20000000
USER = 0x10000000
UTS = 0x04000000

MEMFD_NOEXEC = "/proc/sys/vm/memfd_noexec"
MAX_USER_NAMESPACES = "/proc/sys/user/max_user_namespaces"
_LAST_CAPABILITY = "/proc/sys/kernel/cap_last_cap"
_CLONE_PARENT = 0x8000
_CAPBSET_READ = 23
_CAPBSET_DROP = 24
_CAP_AMBIENT = 47
_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


def unshare(flags: int) -> None:
    """Move into new namespaces; a pid namespace takes effect with the next process, `clone_first`.

    With USER among the flags the user stays who it is, under the same number, and gains every capability over
    the namespaces made here and over nothing else. The process must have one thread.
    """
    uid, gid = os.getuid(), os.getgid()
    with explained("unshare"):
        syscalls.call("unshare", flags)
    if flags & USER:
        # A process that changed its user or may not read its own program owns nothing below /proc/self.
        process.prctl(process.SET_DUMPABLE, 1)
        _write("/proc/self/setgroups", "deny")  # the kernel asks for this before an unprivileged gid_map
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")


def _write(path: str, text: str) -> None:
    with explained(path):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode("ascii"))
        finally:
            os.close(fd)


def clone_first(hand_over: Callable[[int], None]) -> int:
    """Come back as process 1 of the pid namespace unshared before, a child of the caller's own parent.

    Nobody has to stay outside to reap it: the parent that started the caller gets it as a second child, and can wait
    for it, signal it, and have it die with itself. The process must have one thread.

    Args:
        hand_over: told, in the calling process, a descriptor of the new one, for the parent; then that process exits.

    Returns:
        A descriptor of the parent, for `die_with`.
    """
    parent = os.pidfd_open(os.getppid())
    pid = syscalls.call("clone", _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid:
        hand_over(os.pidfd_open(pid))
        os._exit(0)
    die_with(parent)
    return parent


def die_with(parent_pidfd: int) -> None:
    """Have the kernel kill us when our parent dies; exit if it already did. Its number means nothing in here."""
    process.prctl(process.SET_PDEATHSIG, signal.SIGKILL)
    if select.select([parent_pidfd], [], [], 0)[0]:
        os._exit(1)


def raise_loopback() -> None:
    """Bring up `lo` in a new network namespace, which starts with everything down."""
    with explained("loopback"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = bytearray(struct.pack("16sh22x", b"lo", 0))
        fcntl.ioctl(sock, _SIOCGIFFLAGS, request)
        flags = struct.unpack_from("h", request, 16)[0]
        struct.pack_into("h", request, 16, flags | _IFF_UP)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, request)


def interfaces() -> tuple[str, ...]:
    """Return the network interfaces in sight, in the kernel's order."""
    return tuple(name for _, name in socket.if_nameindex())


def forbid_memfd_execution() -> bool:
    """Make memory files of this pid namespace non-executable; return whether the kernel and our rights allow it.

    Needs root, Linux 6.3 and a fresh /proc. Level 2 refuses MFD_EXEC as well; before Linux 6.6 it also refuses
    programs that say nothing either way, and then level 1 leaves MFD_EXEC to the seccomp filter.
    """
    for level in ("2", "1"):
        try:
            _write(MEMFD_NOEXEC, level)
            os.close(os.memfd_create("probe", os.MFD_CLOEXEC))
        except OSError:  # no such setting, not ours to set, or too strict for plain callers: the caller reports it
            continue
        return True
    return False


def forbid_nesting() -> None:
    """Let nobody make a user namespace below this one of ours; a second fence behind the seccomp filter.

    Only in a user namespace of our own, whose rights we hold: in the machine's, the number is everybody's.
    """
    _write(MAX_USER_NAMESPACES, "0")


def drop_bounding() -> bool:
    """Take every capability from all programs started from here on; return whether we may.

    Before the user changes, because it needs CAP_SETPCAP. Without it no_new_privs alone keeps programs from
    gaining what the set would allow.
    """
    try:
        for capability in range(int(read_bytes(_LAST_CAPABILITY)) + 1):
            if process.prctl(_CAPBSET_READ, capability):
                process.prctl(_CAPBSET_DROP, capability)
    except PermissionError:
        return False
    return True


def drop_capabilities() -> None:
    """Give up every capability this process still has. After the user changed and everything else was set up."""
    with explained("capabilities"):
        try:
            process.prctl(_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
        except OSError as error:
            if error.errno != errno.EINVAL:  # before Linux 4.3 there is no ambient set to clear
                raise
        header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
        syscalls.call("capset", ctypes.c_char_p(header), ctypes.c_char_p(bytes(24)))


def capabilities_left() -> tuple[str, ...]:
    """Return the sets in which this process has a capability; CapBnd stays full for a plain user, harmlessly."""
    left = []
    for line in read_bytes("/proc/self/status").splitlines():
        name, _, value = line.partition(b":")
        if name.startswith(b"Cap") and int(value, 16):
            left.append(name.decode())
    return tuple(left)


def read_bytes(path: str) -> bytes:
    """Read a small file (64 KiB) as bytes: behind the walls the interpreter finds no codecs that it has not loaded."""
    with explained(path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 1 << 16)
        finally:
            os.close(fd)
