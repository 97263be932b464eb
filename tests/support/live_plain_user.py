"""A broker that a plain user starts, although the tests run as root: another uid, with a home and a name of its own.

The user exists only inside a mount namespace whose /etc/passwd and /etc/group are ours.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

import attrs
import psutil
import pytest

from tests.support.live import ROOT

UID = 61183  # just below the range that a broker of root takes its dynamic users from
OWN_UIDS = range(60_800, UID)
NAME = "rb-plain"
PROBE = "import mcp, trio, hypercorn, yaml, attrs, subprocess, sys; subprocess.run([sys.executable, '-c', 'print(7)'])"
"""setpriv starts an interpreter with capabilities that are gone afterwards; the broker must be able to start it too."""
ENTER = 'mount --bind "$1" /etc/passwd && mount --bind "$2" /etc/group && shift 2 && exec "$@"'


@attrs.frozen(kw_only=True)
class PlainUser:
    """How to start a Python as a plain user: the words before `-m`, and the environment."""

    python: tuple[str, ...]
    environment: Mapping[str, str]


def own_uid() -> int:
    """One that no process has, by chance: a limit of processes counts all of its uid, whatever test they are of."""
    taken = {process.info["uids"].real for process in psutil.process_iter(["uids"])}
    return secrets.choice([uid for uid in OWN_UIDS if uid not in taken])


def plain_user(base: Path, uid: int = UID) -> PlainUser:
    """A plain user who owns *base* and whose home is in it; skips where this machine cannot give one."""
    if os.geteuid() != 0:
        return PlainUser(python=(sys.executable,), environment=dict(os.environ))
    home = base / "home-of-plain"
    home.mkdir(exist_ok=True)
    for path in (base, *base.rglob("*")):
        os.chown(path, uid, uid)
    enter = _enter(base, home, uid)
    environment = _environment(home)
    interpreter = _interpreter()
    if interpreter is None:
        pytest.skip("no interpreter that a plain user may run has our packages, or namespaces are not ours to make")
    return PlainUser(python=(*enter, interpreter), environment=environment)


def _packages() -> str:
    """Where this interpreter found its packages; the same minor version can load them too."""
    return os.pathsep.join([str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])


def _environment(home: Path) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": _packages(), "LANG": "C.UTF-8"}


def _enter(base: Path, home: Path, uid: int) -> tuple[str, ...]:
    passwd, group = base / "passwd", base / "group"
    passwd.write_text(f"root:x:0:0:root:/root:/bin/sh\n{NAME}:x:{uid}:{uid}::{home}:/bin/sh\n")
    group.write_text(f"root:x:0:\n{NAME}:x:{uid}:\n")
    drop = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all", "--")
    return ("unshare", "--mount", "--", "sh", "-c", ENTER, "sh", str(passwd), str(group), *drop)


@functools.cache
def _interpreter() -> str | None:
    """One that any plain user may run and that loads our packages: tried once, since that takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        base.chmod(0o755)
        enter = _enter(base, base, UID)
        tried = (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}", "/usr/bin/python3")
        return next((interpreter for interpreter in tried if _answers((*enter, interpreter), base)), None)


def _answers(python: tuple[str, ...], home: Path) -> bool:
    if shutil.which(python[0]) is None:
        return False
    asked = subprocess.run(
        [*python, "-c", PROBE],
        env=_environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout == "7\n"
