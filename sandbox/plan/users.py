"""User of a session's processes: the one that started the broker, or, under root, somebody else. Never root.

Reads the user database and /proc, and makes the home that commands have: never that of a person, whose programs obey
what stands there. Blocking; runs once, at start.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.errors import UserUnavailable
from sandbox.machine.claims import DYNAMIC_UIDS
from sandbox.plan.plan import LayerUnavailable, SandboxSettings, SessionUser

if TYPE_CHECKING:
    from sandbox.machine.capabilities import Capabilities
    from sandbox.machine.claims import Claims

DYNAMIC_NAME = "remote-broker"
FALLBACK_HOME = Path("/var/lib/remote-broker/home")


def choose_user(
    settings: SandboxSettings,
    data_dir: Path,
    capabilities: Capabilities,
    claims: Claims,
    *,
    fallback_home: Path = FALLBACK_HOME,
) -> SessionUser:
    """Decide who commands run as, and see to it that they have a home.

    That is `data_dir/home`; where this is out of a root-chosen user's reach (below /root, say), it is *fallback_home*.
    A user id that nobody named is held by *claims*, against other brokers.

    Raises:
        UserUnavailable: there is nobody, or no place for a home.
        LayerUnavailable: `unprivileged_user` names somebody whom only root can become.
    """
    wanted = settings.unprivileged_user
    if not capabilities.is_root:
        return _ourselves(wanted, data_dir)
    if not capabilities.may_switch_user:
        raise UserUnavailable(
            "started as root without CAP_SETUID and CAP_SETGID: nothing may run as root, and no other user can "
            "be had; grant both capabilities or start the broker as a plain user"
        )
    homes = (data_dir / "home", fallback_home)
    return _configured(wanted, homes) if wanted else _dynamic(homes, claims)


def _ourselves(wanted: str, data_dir: Path) -> SessionUser:
    uid = os.getuid()
    entry = _entry(uid)
    if wanted and (entry is None or entry.pw_name != wanted):
        raise LayerUnavailable(
            layer="user",
            why=f"only root can run commands as {wanted!r}",
            remedy="start the broker as root, or leave sandbox.unprivileged_user empty",
        )
    try:
        kept = str(_make_home(data_dir / "home", uid, os.getgid()))
    except OSError as error:
        raise UserUnavailable(f"no home for commands: {data_dir / 'home'}: {error.strerror}") from error
    home = entry.pw_dir if entry is not None else os.environ.get("HOME", "")
    if not (home.startswith("/") and os.access(home, os.W_OK | os.X_OK)):
        home = kept
    return SessionUser(
        uid=uid,
        gid=os.getgid(),
        groups=tuple(os.getgroups()),
        name=entry.pw_name if entry is not None else f"uid-{uid}",
        home=home,
        dedicated=False,
        kept_home="" if home == kept else kept,
    )


def _configured(name: str, homes: tuple[Path, ...]) -> SessionUser:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise UserUnavailable(
            f"sandbox.unprivileged_user: there is no user {name!r}; create it, or leave the setting empty "
            "for a dynamic user"
        ) from None
    if entry.pw_uid == 0 or entry.pw_gid == 0:
        raise UserUnavailable(f"sandbox.unprivileged_user: {name!r} is root or in root's group; name somebody else")
    # Root's group among the others would hand out what the user switch takes away.
    groups = tuple(gid for gid in os.getgrouplist(name, entry.pw_gid) if gid != 0)
    home = Path(entry.pw_dir)
    kept = _home_somewhere(homes, entry.pw_uid, entry.pw_gid)
    if not (_owned_directory(home, entry.pw_uid) and _reachable(home, entry.pw_uid, {*groups})):
        home = kept
    return SessionUser(
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        groups=groups,
        name=name,
        home=str(home),
        dedicated=True,
        kept_home="" if home == kept else str(kept),
    )


def _dynamic(homes: tuple[Path, ...], claims: Claims) -> SessionUser:
    likely = next((home for home in homes if _reachable(_existing(home), DYNAMIC_UIDS[-1], set())), homes[-1])
    owner = _owner(likely)
    if owner is None:
        uid = _free_uid(likely, claims)
    elif claims.take(owner, likely):
        uid = owner
    else:
        raise UserUnavailable(
            f"{likely} belongs to uid {owner}, which a running broker with another home has; stop that one, or give "
            "this home away (chown root) so that another uid is found"
        )
    home = _home_somewhere(homes, uid, uid)
    return SessionUser(uid=uid, gid=uid, groups=(), name=DYNAMIC_NAME, home=str(home), dedicated=True)


def _owner(home: Path) -> int | None:
    """Return the uid that owned the home last time, so that its files stay its own."""
    try:
        owner: int = home.lstat().st_uid
    except OSError:  # no home yet
        return None
    return owner if owner in DYNAMIC_UIDS and _entry(owner) is None else None


def _free_uid(home: Path, claims: Claims) -> int:
    """Take a uid that nobody uses. The home decides where the search begins: idle brokers may have the first ones."""
    first = zlib.crc32(os.fsencode(home)) % len(DYNAMIC_UIDS)
    running = _uids_of_processes()
    in_turn: tuple[int, ...] = (*DYNAMIC_UIDS[first:], *DYNAMIC_UIDS[:first])
    for uid in in_turn:
        if uid not in running and _entry(uid) is None and _group(uid) is None and claims.take(uid, home):
            return uid
    raise UserUnavailable(
        f"no uid from {DYNAMIC_UIDS.start} to {DYNAMIC_UIDS.stop - 1} is free; name one in sandbox.unprivileged_user"
    )


def _home_somewhere(homes: tuple[Path, ...], uid: int, gid: int) -> Path:
    faults = []
    for home in homes:
        if not _reachable(_existing(home), uid, {gid}):
            faults.append(f"{home}: uid {uid} cannot pass through the directories above it")
            continue
        try:
            return _make_home(home, uid, gid)
        except OSError as error:
            faults.append(f"{home}: {error.strerror}")
    raise UserUnavailable("no home for the session user; " + "; ".join(faults))


def _make_home(home: Path, uid: int, gid: int) -> Path:
    """Make a private directory; what is there already is taken over only if it is a directory, not a link to one."""
    home.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    home.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(fd, 0o700)
        if os.fstat(fd).st_uid != uid or os.fstat(fd).st_gid != gid:
            os.fchown(fd, uid, gid)
    finally:
        os.close(fd)
    return home


def _existing(path: Path) -> Path:
    """Return the nearest directory above *path* that is there; what is made beneath it lets everybody through."""
    return next(parent for parent in path.parents if parent.is_dir())


def _reachable(directory: Path, uid: int, gids: set[int]) -> bool:
    """Tell whether the user may pass through *directory* and everything above it."""
    return all(_may_enter(step, uid, gids) for step in (directory, *directory.resolve().parents))


def _may_enter(directory: Path, uid: int, gids: set[int]) -> bool:
    try:
        facts = directory.stat()
    except OSError:  # not there: nobody can enter it
        return False
    if facts.st_uid == uid:
        return bool(facts.st_mode & stat.S_IXUSR)
    if facts.st_gid in gids:
        return bool(facts.st_mode & stat.S_IXGRP)
    return bool(facts.st_mode & stat.S_IXOTH)


def _owned_directory(path: Path, uid: int) -> bool:
    return path.is_dir() and path.stat().st_uid == uid


def _uids_of_processes() -> set[int]:
    uids = set()
    with os.scandir("/proc") as listing:
        for item in listing:
            if item.name.isdigit():
                try:
                    uids.add(item.stat().st_uid)
                except OSError:  # it ended meanwhile
                    continue
    return uids


def _entry(uid: int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None


def _group(gid: int) -> grp.struct_group | None:
    try:
        return grp.getgrgid(gid)
    except KeyError:
        return None
