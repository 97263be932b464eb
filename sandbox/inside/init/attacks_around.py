"""Attacks of the doctor on what lies around the walls: files that something outside obeys. Child side, stdlib only.

None does damage, because each goes through in its control: a file is opened for writing and not written, a name is
given to a new file that is removed again, a file of the doctor's own is replaced, and a folder is renamed onto one that
is not empty, which the file system refuses when everybody else has agreed.
"""

from __future__ import annotations

import errno
import json
import os
import stat

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from sandbox.protocol.commands import Attack, Laid

REFUSED_LAST = (errno.ENOTEMPTY, errno.EEXIST)  # because it is not empty, not because it may not be renamed
LAID = b"of the doctor\n"


def change_file(target: Attack) -> str:
    """Open a file that is there for writing, and write nothing."""
    os.close(os.open(target["path"], os.O_RDWR | os.O_CLOEXEC))
    return f"{target['path']} could be written"


def change_mode(target: Attack) -> str:
    """Set the mode of a file that is there, to what it is."""
    os.chmod(target["path"], stat.S_IMODE(os.stat(target["path"]).st_mode))
    return f"the mode of {target['path']} could be changed"


def make_file(target: Attack) -> str:
    """Make a file that is not there, with the folders above it; the doctor looks where it is, and removes it."""
    _make_folders(os.path.dirname(target["path"]), [])
    os.close(os.open(target["path"], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return f"{target['path']} was made"


def _make_folders(folder: str, made: list[str]) -> None:
    if not os.path.lexists(folder):
        _make_folders(os.path.dirname(folder), made)
        os.mkdir(folder, 0o700)
        made.append(folder)


def link_file(target: Attack) -> str:
    """Give a file another name in the workspace, and open that for writing."""
    name = f"{target['workspace']}/another-name"
    os.link(target["path"], name, follow_symlinks=False)
    try:
        os.close(os.open(name, os.O_RDWR | os.O_CLOEXEC))
    finally:
        os.unlink(name)
    return f"{target['path']} could be written by another name"


def replace_file(target: Attack) -> str:
    """Put another file into the place of one: the doctor's own, in a folder of somebody else's."""
    new = f"{target['path']}-new"
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        os.rename(new, target["path"])
    except OSError:
        os.unlink(new)
        raise
    return f"{target['path']} was replaced"


def rename_folder(target: Attack) -> str:
    """Rename a folder onto one beside it that is not empty: it stays, and that it might go is known."""
    try:
        os.rename(target["path"], target["beside"])
    except OSError as error:
        if error.errno not in REFUSED_LAST:
            raise
    return f"{target['path']} could be renamed"


def lay(target: Attack) -> str:
    """Make files of the doctor's own, as the user that will attack them: what was made in order, and what failed."""
    made: list[str] = []
    failed: dict[str, str] = {}
    for path in target["paths"]:
        try:
            _make_folders(os.path.dirname(path), made)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            made.append(path)
            os.write(fd, LAID)
            os.close(fd)
        except OSError as error:
            failed[path] = str(error)
    laid: Laid = {"made": made, "failed": failed}
    return json.dumps(laid)
