"""Fixtures that the doctor lays out around its throw-away session: folders, files, services and a victim.

Everything is temporary, and nothing of it is the operator's. A fact that cannot be had is simply not there: `missing`
says why, and the checks that need it are skipped.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from broker.doctor.approaches import open_approaches
from broker.scope import Host
from config.load import Config
from policy.decision import Deny
from policy.path import decide_path
from sandbox.init.spare import PACKAGE_PARENT
from sandbox.plan.plan import SessionUser

OUTSIDE_PLACES = ("/var/tmp", "/dev/shm", "/tmp")  # noqa: S108  a private folder is made there
SMALL_PROGRAMS = ("/usr/bin/true", "/bin/true", "/usr/bin/id", "/usr/bin/pwd", "/usr/bin/arch", "/usr/bin/nproc")
BOOTSTRAP = (
    "import sys; sys.path.append({parent!r}); from sandbox.inside.init.attacks import outside; outside(sys.argv[1])"
)


@attrs.frozen(kw_only=True)
class Fixtures:
    """`facts`: what attacks are told; `missing`: why a fact is not there."""

    inside: str
    facts: Mapping[str, Any]
    missing: Mapping[str, str]


def control_command(spec: Mapping[str, Any], user: SessionUser, *, as_broker: bool) -> list[str]:
    """The command line that tries an attack without any walls, as the session's user or as the broker's."""
    switch = os.geteuid() == 0 and not as_broker
    ids = {"switch_user": switch, "uid": user.uid, "gid": user.gid, "groups": user.groups}
    code = BOOTSTRAP.format(parent=PACKAGE_PARENT)
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", code, json.dumps({**spec, **ids, "control": True})]


@contextlib.contextmanager
def open_fixtures(host: Host, config: Config) -> Iterator[Fixtures]:
    """Lay everything out; it is gone afterwards.

    Raises:
        OSError: there is no folder in which the session could begin.
    """
    audit_file = config.server.logging.audit_log
    facts: dict[str, Any] = {"audit_file": str(audit_file)}
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        inside = stack.enter_context(_folder(_inside_place(host), host.user))
        _furnish_inside(host, inside, facts, missing)
        _furnish_outside(host, stack, facts, missing)
        facts |= stack.enter_context(_services(facts.get("outside")))
        facts |= stack.enter_context(_victim(host.user))
        as_user = functools.partial(control_command, user=host.user, as_broker=False)
        around, why_not = stack.enter_context(open_approaches(host, config, inside, as_user))
        facts |= around
        missing |= why_not
        if not audit_file.exists():
            missing["audit_file"] = f"there is no {audit_file} yet"
        found = {name: value for name, value in facts.items() if name not in missing}
        yield Fixtures(inside=inside, facts=found, missing=missing)


def _inside_place(host: Host) -> str:
    """An allowed directory that the session's user may write: the home, where a session begins by default."""
    places = (host.user.home, *host.grants.write_paths)
    return next((place for place in places if os.path.isdir(place)), host.user.home)


@contextlib.contextmanager
def _folder(place: str, user: SessionUser, mode: int = 0o700) -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="remote-broker-doctor-", dir=place)
    try:
        os.chmod(path, mode)
        if os.geteuid() == 0:
            os.chown(path, user.uid, user.gid)
        yield path
    finally:
        shutil.rmtree(path)


def _furnish_inside(host: Host, inside: str, facts: dict[str, Any], missing: dict[str, str]) -> None:
    facts["lock"] = _make_file(Path(inside) / "lock", host.user)
    program = next((path for path in SMALL_PROGRAMS if _is_elf(path) and not _may_run(host, path)), None)
    if program is None:
        missing["program"] = missing["own_program"] = "the policy allows every small program of this machine"
    else:
        facts["program"] = program
        own = shutil.copy(program, Path(inside) / "own")
        _give(own, host.user, 0o755)
        facts["own_program"] = str(own)
        if _may_run(host, str(own)):
            missing["own_program"] = f"the policy allows programs in {inside}"
    blocked = _blocked_name(host, inside)
    if blocked is None:
        missing["blocked_file"] = "the policy blocks no plain name everywhere"
    else:
        blocked.parent.mkdir(exist_ok=True)
        _give(blocked.parent, host.user, 0o700)
        facts["blocked_file"] = _make_file(blocked, host.user)


def _is_elf(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:  # not on this machine
        return False


def _may_run(host: Host, path: str) -> bool:
    """Whether a session may execute *path*, by its own grant or that of a directory above."""
    real = Path(os.path.realpath(path))
    return any(real == Path(granted) or Path(granted) in real.parents for granted in host.grants.exec_paths)


def _blocked_name(host: Host, inside: str) -> Path | None:
    """A path in *inside* that a pattern such as `**/.ssh/**` or `**/.env` blocks."""
    for pattern in host.paths.blocked:
        parts = pattern.parts
        plain = [part for part in parts if part != "**"]
        if parts[0] == "**" and len(plain) == 1 and not set("*?") & set(plain[0]):
            return Path(inside, plain[0], *(["file"] if parts[-1] == "**" else []))
    return None


def _make_file(path: Path, user: SessionUser) -> str:
    path.write_text("of the doctor\n", encoding="utf-8")
    _give(path, user, 0o600)
    return str(path)


def _give(path: str | Path, user: SessionUser, mode: int) -> None:
    os.chmod(path, mode)
    if os.geteuid() == 0:
        os.chown(path, user.uid, user.gid)


def _furnish_outside(host: Host, stack: contextlib.ExitStack, facts: dict[str, Any], missing: dict[str, str]) -> None:
    place = next((place for place in OUTSIDE_PLACES if _is_outside(host, place)), None)
    if place is None:
        why = f"the policy allows {', '.join(OUTSIDE_PLACES)}, and no other place is everybody's"
        missing |= dict.fromkeys(("outside_new", "outside_file", "named"), why)
        return
    outside = stack.enter_context(_folder(place, host.user))
    facts["outside"] = outside
    facts["outside_new"] = f"{outside}/new"
    facts["outside_file"] = _make_file(Path(outside) / "file", host.user)


def _is_outside(host: Host, place: str) -> bool:
    """Whether everybody may write in *place*, and no session of this policy."""
    try:
        everybodys = os.stat(place).st_mode & 0o7 == 0o7
    except OSError:  # not on this machine
        return False
    real = os.path.realpath(place)
    return everybodys and all(
        isinstance(decide_path(host.paths, f"{name}/x/y", "write"), Deny) for name in {place, real}
    )


@contextlib.contextmanager
def _services(outside: str | None) -> Iterator[dict[str, Any]]:
    """Sockets that a connection can be made to: nobody needs to accept it."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Any] = {}
        tcp = stack.enter_context(socket.socket())
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        found["tcp"] = list(tcp.getsockname())
        names = {"abstract": f"\0remote-broker-doctor-{secrets.token_hex(8)}"}
        if outside is not None:
            names["named"] = f"{outside}/socket"
        for name, address in names.items():
            unix = stack.enter_context(socket.socket(socket.AF_UNIX))
            unix.bind(address)
            unix.listen()
            found[name] = address
        if outside is not None:
            os.chmod(names["named"], 0o777)  # noqa: S103  everybody may connect: the walls are what is tried
        yield found


@contextlib.contextmanager
def _victim(user: SessionUser) -> Iterator[dict[str, Any]]:
    """A process of the session's user outside the walls."""
    mark = f"doctor-{secrets.token_hex(8)}"
    command = control_command({"attack": "idle", "mark": mark}, user, as_broker=False)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"DOCTOR": mark})
    if process.stdin is None or process.stdout is None:
        raise OSError("no pipes to the doctor's victim")
    with process.stdin, process.stdout:
        try:
            process.stdout.readline()  # its first word: it has become the session's user
            yield {"victim": process.pid, "mark": mark}
        finally:
            process.kill()
            process.wait()
