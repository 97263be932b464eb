"""Who may write what the broker executes: owners and modes of all trusted places and of the folders above them."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.trusted.ownership import NotOurs, check_owners
from broker.trusted.places import Kind, Origin, TrustedPlaces
from broker.trusted.program import own_folders
from sandbox.plan.plan import SessionUser
from tests.support.live import BrokerFailed, broker_in, live_folder, write_config

ROOT = Path(__file__).resolve().parents[3]
UID = 61180
PLAIN = SessionUser(uid=os.geteuid(), gid=os.getegid(), groups=(), name="me", home="/", dedicated=False)
OF_ROOT = SessionUser(uid=UID, gid=UID, groups=(UID + 1,), name="sessions", home="/", dedicated=True)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
both = pytest.mark.parametrize("user", [PLAIN, OF_ROOT], ids=["plain", "root"])


@pytest.fixture
def code() -> Iterator[Path]:
    """A file in a folder of packages, in a sticky folder that everybody may write, as /tmp is."""
    with live_folder() as base:
        folder = base / "packages"
        folder.mkdir(mode=0o755)
        file = folder / "module.py"
        file.touch(mode=0o644)
        yield file


def places(path: Path, kind: Kind = "program") -> TrustedPlaces:
    origins = (Origin(str(path), "a module", kind),)
    return TrustedPlaces(sealed=(), hidden=(), links=(), holes=(), origins=origins)


def refused(path: Path, user: SessionUser, kind: Kind = "program") -> str:
    with pytest.raises(NotOurs) as caught:
        check_owners(places(path, kind), user)
    return str(caught.value)


@both
def test_what_only_its_owner_may_write_is_fine_there_or_not(code: Path, user: SessionUser) -> None:
    for path in (code, code.parent, code.parent / "absent" / "module.py"):
        assert check_owners(places(path), user) == ()


@both
def test_a_file_that_everybody_may_write_is_refused(code: Path, user: SessionUser) -> None:
    code.chmod(0o646)
    said = refused(code, user)
    assert said.startswith(f"everybody may write {code} (a module) (mode 0646)")
    assert f"chmod go-w {code}" in said


@both
def test_a_folder_above_that_everybody_may_write_is_refused_unless_it_is_sticky(code: Path, user: SessionUser) -> None:
    code.parent.parent.chmod(0o777)
    assert f"everybody may write {code.parent.parent} ({code}, a module)" in refused(code, user)
    code.parent.parent.chmod(0o1777)
    assert check_owners(places(code), user) == ()


@both
def test_in_a_sticky_folder_nobody_knows_who_makes_what_is_not_there_yet(code: Path, user: SessionUser) -> None:
    code.parent.chmod(0o1777)
    assert check_owners(places(code), user) == ()
    assert f"everybody may write {code.parent}" in refused(code.parent / "absent.py", user)
    assert f"everybody may write {code.parent}" in refused(code.parent, user)
    assert check_owners(places(code.parent / "log", "state"), user) == ()  # this the broker makes itself


def test_what_a_plain_user_obeys_and_keeps_is_judged_where_it_is_read(code: Path) -> None:
    code.chmod(0o666)
    assert check_owners(places(code, "configuration"), PLAIN) == ()
    assert "everybody may write" in refused(code, OF_ROOT, "configuration")


@needs_root
def test_nothing_of_roots_may_belong_to_the_user_of_its_sessions(code: Path) -> None:
    for path in (code, code.parent, code.parent.parent):
        os.chown(path, UID, UID)
        for kind in ("program", "configuration", "state"):
            assert f"to whom {path} (" in refused(code, OF_ROOT, kind)
            assert f"chown root {path}" in refused(code, OF_ROOT, kind)
        assert "belong to user id 61180" in check_owners(places(code), PLAIN)[0]  # another one's is warned of
        os.chown(path, 0, 0)
        assert check_owners(places(code), OF_ROOT) == ()


@needs_root
def test_a_link_that_belongs_to_the_user_of_sessions_is_refused(code: Path) -> None:
    link = code.parent / "link.py"
    link.symlink_to(code)
    assert check_owners(places(link), OF_ROOT) == ()
    os.lchown(link, UID, UID)
    assert f"to whom {link}" in refused(link, OF_ROOT)


@needs_root
@pytest.mark.parametrize("gid", [OF_ROOT.gid, *OF_ROOT.groups])
def test_nothing_of_roots_may_be_writable_for_a_group_of_its_sessions(code: Path, gid: int) -> None:
    code.chmod(0o664)
    assert check_owners(places(code), OF_ROOT) == ()  # root's own group
    os.chown(code, 0, gid)
    assert "the group of the session user sessions may write" in refused(code, OF_ROOT)
    code.chmod(0o644)
    assert check_owners(places(code), OF_ROOT) == ()


@needs_root
@pytest.mark.parametrize(("kind", "number"), [(2, UID), (8, UID), (8, UID + 1)], ids=["user", "group", "other group"])
def test_nothing_of_roots_may_be_writable_for_its_sessions_by_an_access_list(
    code: Path, kind: int, number: int
) -> None:
    def entries(rights: int) -> bytes:
        nobody = 0xFFFFFFFF
        parts = [(1, 6, nobody), (kind, rights, number), (4, 4, nobody), (16, 6, nobody), (32, 4, nobody)]
        parts.sort(key=lambda part: part[0])
        return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *part) for part in parts)

    try:
        os.setxattr(code, "system.posix_acl_access", entries(4))
    except OSError as error:
        pytest.skip(f"no access lists here: {error.strerror}")
    assert check_owners(places(code), OF_ROOT) == ()
    os.setxattr(code, "system.posix_acl_access", entries(6))
    assert "the session user sessions (by an access list) may write" in refused(code, OF_ROOT)


@needs_root
def test_a_third_user_is_named_once_with_how_much_there_is(code: Path) -> None:
    for path in (code, code.parent):
        os.chown(path, UID + 7, 0)
    (warning,) = check_owners(places(code), OF_ROOT)
    assert warning.startswith(f"{code} (a module) and 1 more belong to user id {UID + 7}, who can rewrite")


@needs_root
@pytest.mark.long
def test_root_does_not_start_from_code_that_belongs_to_the_user_of_its_sessions() -> None:
    with live_folder() as base:
        write_config(base, {"sandbox": {"unprivileged_user": "nobody"}})
        copy = base / "copy"
        for package in own_folders():
            shutil.copytree(package, copy / Path(package).name, ignore=shutil.ignore_patterns("__pycache__"))
        environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        with broker_in(base, environment=environment, cwd=base) as broker:
            assert broker.healthy()
        init = copy / "sandbox" / "inside" / "init" / "main.py"
        os.chown(init, 65534, 65534)
        with pytest.raises(BrokerFailed) as caught, broker_in(base, environment=environment, cwd=base):
            pass
        assert "ended with status 3" in str(caught.value)
        assert f"to whom {init} (a package of the broker) belongs" in str(caught.value)
