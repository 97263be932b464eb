"""The session's user in the session's own /etc/passwd and /etc/group. Child side, stdlib only.

Programs ask there who they are: ssh, and so git over ssh, does nothing for a user without an entry, and looks for its
files in the home that the entry names. A dynamic user has none on the machine, and a session's home may be another
than its user's. So two files that say more than the machine's are mounted over those, in the session's mount namespace.

They lie in a file system of their own in memory, which goes with the session. On the machine nothing is changed.
"""

from __future__ import annotations

import os

from sandbox.kernel import mounting, syscalls
from sandbox.kernel.mounting import NO_DEV, NO_EXEC, NO_SUID, READ_ONLY, explained

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

PASSWD, GROUP = "/etc/passwd", "/etc/group"
NO_SHELL = "/usr/sbin/nologin"  # nobody logs in as this user
_FOR_A_MOMENT = "/dev"  # ours in every new root
_DETACH = 0x2


class Account:
    """The user of the session's processes, as the two files name it."""

    __slots__ = ("gid", "home", "name", "uid")

    def __init__(self, *, name: str, uid: int, gid: int, home: str) -> None:
        self.name = name
        self.uid = uid
        self.gid = gid
        self.home = home


def place(account: Account, masked: Collection[str]) -> None:
    """Give the session entries where the machine's files have none that say the same.

    Args:
        account: what is to be said.
        masked: paths that are covered by something, because the policy blocks them. They stay so.

    Raises OSError whose text says at what. The caller is in the session's new root and may still mount there.
    """
    makers: dict[str, Callable[[bytes, Account], bytes | None]] = {PASSWD: passwd_with, GROUP: group_with}
    files: dict[str, bytes] = {}
    for path, make in makers.items():
        real = os.path.realpath(path)
        old = None if {path, real} & {*masked} else _read(real)
        new = None if old is None else make(old, account)
        if new is not None:
            files[real] = new
    if files:
        _cover(files)


def passwd_with(old: bytes, account: Account) -> bytes | None:
    """Return the text of /etc/passwd with *account* in front, or None where it says that already, or cannot."""
    found = next((line.split(b":") for line in old.splitlines() if _field(line, 2) == b"%d" % account.uid), None)
    home = os.fsencode(account.home)
    if found is not None and found[5:6] == [home]:
        return None
    line = b":".join(
        [os.fsencode(account.name), b"x", b"%d" % account.uid, b"%d" % account.gid, b"", home, NO_SHELL.encode("ascii")]
    )
    return _put_in_front(line, 6, old)


def group_with(old: bytes, account: Account) -> bytes | None:
    """Return the text of /etc/group with the group of *account* in front, or None where it is there, or cannot be."""
    if any(_field(line, 2) == b"%d" % account.gid for line in old.splitlines()):
        return None
    return _put_in_front(os.fsencode(account.name) + b":x:%d:" % account.gid, 3, old)


def _field(line: bytes, number: int) -> bytes:
    fields = line.split(b":")
    return fields[number] if len(fields) > number else b""


def _put_in_front(line: bytes, colons: int, old: bytes) -> bytes | None:
    """The first entry of a name or a number counts. A home with a colon cannot be said in such a file."""
    if line.count(b":") != colons or b"\n" in line:
        return None
    return line + b"\n" + old


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # a machine without accounts, or a policy that blocks all of /etc
        return None


def _cover(files: Mapping[str, bytes]) -> None:
    """Mount *files* over what is there by these names."""
    size = sum(map(len, files.values())) + (1 << 16)
    memory = mounting.make("tmpfs", NO_SUID | NO_DEV | NO_EXEC, {"size": str(size), "nr_inodes": "8", "mode": "755"})
    try:
        clones = _clones(memory, files)
    finally:
        os.close(memory)
    for path, fd in clones.items():
        try:
            mounting.attach(fd, path)
        finally:
            os.close(fd)


def _clones(memory: int, files: Mapping[str, bytes]) -> dict[str, int]:
    """Write the files, and return a mount of each, attached nowhere yet.

    A kernel clones only what is attached somewhere: so it is, for a moment, while nothing of the session runs yet.
    """
    mounting.attach(memory, _FOR_A_MOMENT)
    try:
        clones: dict[str, int] = {}
        for number, (path, text) in enumerate(files.items()):
            name = f"{_FOR_A_MOMENT}/{number}"
            fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444)
            with open(fd, "wb") as file:
                file.write(text)
                os.fchmod(fd, 0o444)
            clones[path] = mounting.clone(name, READ_ONLY | NO_SUID | NO_DEV | NO_EXEC)
        return clones
    finally:
        with explained("accounts"):
            syscalls.call("umount2", os.fsencode(_FOR_A_MOMENT), _DETACH)
