"""Owners and modes of the trusted places and their parents: they tell who else could change them from outside.

A session's user who owns what root's broker executes is root; a file that everybody may write is everybody's program.
Looks at every place that was found, at all folders above it and at the files of our packages; of the thousands of files
that merely lie in a folder of packages at those alone that are loaded. Blocking, at start.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable, Iterator

import attrs

from broker.trusted.places import Origin, TrustedPlaces
from broker.trusted.program import own_folders
from sandbox.plan.plan import SessionUser

_LIST_HEAD_BYTES, _USER_ENTRY, _GROUP_ENTRY, _LISTED_WRITE = 4, 0x02, 0x08, 0x02  # linux/posix_acl_xattr.h


class NotOurs(Exception):
    """Somebody who must not can change what the broker executes or obeys; the text says who, what and the way out."""


@attrs.frozen(kw_only=True)
class _Look:
    """One path that was looked at, for the sake of one place: it, or what it would be made in, or a folder above."""

    path: str
    place: Origin
    status: os.stat_result
    is_parent: bool

    def __str__(self) -> str:
        """The path and what for."""
        what = self.place.reason if self.path == self.place.path else f"{self.place.path}, {self.place.reason}"
        return f"{self.path} ({what})"


def check_owners(trusted: TrustedPlaces, user: SessionUser) -> tuple[str, ...]:
    """Say which other users are trusted with what the broker executes or obeys, as warnings.

    Under root nothing may be the session user's, not even a folder above; a plain user's sessions are that user.

    Raises:
        NotOurs: the session user, or everybody, could change it.
    """
    looks = tuple(
        _looks(
            place for place in trusted.origins if place.kind != "data" and (user.dedicated or place.kind == "program")
        )
    )
    for look in looks:
        if user.dedicated and look.status.st_uid == user.uid:
            raise NotOurs(
                f"sessions would run as {user.name} (uid {user.uid}), to whom {look} belongs and who could rewrite "
                f"what root's broker allows or executes: chown root {look.path}"
            )
        if who := _writers(look, user):
            raise NotOurs(
                f"{who} may write {look} (mode {stat.S_IMODE(look.status.st_mode):04o}), and so change what the "
                f"broker allows or executes: chmod go-w {look.path}, or keep that elsewhere"
            )
    return tuple(_foreign(looks))


def _writers(look: _Look, user: SessionUser) -> str:
    """Name who may write it and must not; an empty text means nobody."""
    mode = look.status.st_mode
    if stat.S_ISLNK(mode):  # says nothing; the folder that it is in decides
        return ""
    if mode & stat.S_IWOTH and not (mode & stat.S_ISVTX and look.is_parent):  # sticky: what others own is theirs alone
        return "everybody"
    if not (user.dedicated and mode & stat.S_IWGRP):  # a plain user's own group is the user's
        return ""
    groups = {user.gid, *user.groups}
    if look.status.st_gid in groups:
        return f"the group of the session user {user.name}"
    named = (_USER_ENTRY, user.uid), *((_GROUP_ENTRY, gid) for gid in groups)
    return f"the session user {user.name} (by an access list)" if {*named} & set(_listed_writers(look.path)) else ""


def _listed_writers(path: str) -> Iterator[tuple[int, int]]:
    """Whom an access list names as writers, as kind of entry and id. The mode shows its mask as the group's rights."""
    try:
        value = os.getxattr(path, "system.posix_acl_access", follow_symlinks=False)
    except OSError:  # it has none, or its file system knows none
        return
    for kind, rights, number in struct.iter_unpack("<HHI", value[_LIST_HEAD_BYTES:]):
        if rights & _LISTED_WRITE:
            yield kind, number


def _foreign(looks: Iterable[_Look]) -> Iterator[str]:
    """One sentence for each user, neither root nor ours, who owns something."""
    owners: dict[int, list[_Look]] = {}
    for look in looks:
        if look.status.st_uid not in {0, os.geteuid()}:
            owners.setdefault(look.status.st_uid, []).append(look)
    for uid, theirs in owners.items():
        more = f" and {len(theirs) - 1} more" if len(theirs) > 1 else ""
        yield f"{theirs[0]}{more} belong to user id {uid}, who can rewrite what the broker allows or executes"


def _looks(places: Iterable[Origin]) -> Iterator[_Look]:
    """Every place, or the folder that it would be made in, then all folders above; each path once."""
    seen: dict[str, bool] = {}
    for place in (*places, *_our_files()):
        at, is_parent = place.path, False
        while at not in seen or seen[at] > is_parent:  # seen as a folder above is not yet seen as a place
            try:
                status = os.lstat(at)
            except (FileNotFoundError, NotADirectoryError):  # whoever may write the folder can make it
                at, is_parent = os.path.dirname(at), place.kind == "state"  # this the broker makes, and looks at then
                continue
            seen[at] = is_parent
            yield _Look(path=at, place=place, status=status, is_parent=is_parent)
            if at == "/":
                break
            at, is_parent = os.path.dirname(at), True


def _our_files() -> Iterator[Origin]:
    """The files of our packages, compiled ones too: few, and executed first of all."""
    for package in own_folders():
        for folder, _, names in os.walk(os.path.realpath(package)):
            for path in (folder, *(f"{folder}/{name}" for name in names)):
                yield Origin(path, "a package of the broker", "program")
