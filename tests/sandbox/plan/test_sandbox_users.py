"""Who commands run as: oneself, a named user, a dynamic one. Never root, never without a home."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from broker.trusted.ownership import NotOurs
from broker.wiring import lay_foundation
from config.load import load_config
from sandbox.errors import UserUnavailable
from sandbox.machine import capabilities
from sandbox.machine.claims import LOCK_FILE, Claims
from sandbox.plan.limits import Limits
from sandbox.plan.plan import LayerUnavailable, SessionUser, Walls
from sandbox.plan.users import DYNAMIC_UIDS, choose_user
from tests.sandbox.init.test_sandbox_births import AS_ROOT, SETTINGS, needs_root
from tests.support.live import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sandbox-users-") as name:
        Path(name).chmod(0o755)
        yield Path(name) / "data"


@pytest.fixture
def claims() -> Iterator[Claims]:
    with Claims() as held:
        yield held


@pytest.mark.skipif(AS_ROOT, reason="started as root, the broker does not run commands as itself")
def test_a_plain_user_runs_as_itself(data_dir: Path, claims: Claims) -> None:
    user = choose_user(SETTINGS, data_dir, capabilities.probe(), claims)
    assert (user.uid, user.gid, user.dedicated) == (os.getuid(), os.getgid(), False)
    assert os.access(user.home, os.W_OK | os.X_OK)


@pytest.mark.skipif(AS_ROOT, reason="root can become somebody else")
def test_a_plain_user_cannot_become_somebody_else(data_dir: Path, claims: Claims) -> None:
    with pytest.raises(LayerUnavailable, match="only root"):
        choose_user(attrs.evolve(SETTINGS, unprivileged_user="root"), data_dir, capabilities.probe(), claims)


@needs_root
def test_root_runs_as_a_dynamic_user_with_a_private_home(data_dir: Path, claims: Claims) -> None:
    user = choose_user(SETTINGS, data_dir, capabilities.probe(), claims)
    assert user.uid in DYNAMIC_UIDS
    assert (user.gid, user.groups, user.dedicated) == (user.uid, (), True)
    facts = os.stat(user.home)
    assert (user.home, facts.st_uid, facts.st_mode & 0o7777) == (str(data_dir / "home"), user.uid, 0o700)
    assert choose_user(SETTINGS, data_dir, capabilities.probe(), claims) == user


@needs_root
def test_a_home_nobody_can_reach_is_replaced(tmp_path: Path, data_dir: Path, claims: Claims) -> None:
    tmp_path.chmod(0o700)
    reachable, hidden = data_dir / "elsewhere", tmp_path / "elsewhere"
    user = choose_user(SETTINGS, tmp_path / "data", capabilities.probe(), claims, fallback_home=reachable)
    assert user.home == str(reachable)
    with pytest.raises(UserUnavailable, match="cannot pass through"):
        choose_user(SETTINGS, tmp_path / "data", capabilities.probe(), claims, fallback_home=hidden)


@needs_root
def test_a_home_that_is_a_link_is_not_taken_over(data_dir: Path, claims: Claims) -> None:
    data_dir.mkdir()
    (data_dir / "home").symlink_to("/etc")
    with pytest.raises(UserUnavailable):
        choose_user(SETTINGS, data_dir, capabilities.probe(), claims, fallback_home=data_dir / "home")
    assert os.stat("/etc").st_uid == 0


@needs_root
def test_a_named_user_is_taken_with_groups_but_never_roots(data_dir: Path, claims: Claims) -> None:
    entry = pwd.getpwnam("nobody")
    user = choose_user(attrs.evolve(SETTINGS, unprivileged_user="nobody"), data_dir, capabilities.probe(), claims)
    assert (user.uid, user.gid, user.name) == (entry.pw_uid, entry.pw_gid, "nobody")
    assert 0 not in user.groups
    assert os.stat(user.home).st_uid == entry.pw_uid


@needs_root
@pytest.mark.parametrize("name", ["root", "no-such-user"])
def test_root_and_nobody_known_are_refused(data_dir: Path, claims: Claims, name: str) -> None:
    with pytest.raises(UserUnavailable, match=name):
        choose_user(attrs.evolve(SETTINGS, unprivileged_user=name), data_dir, capabilities.probe(), claims)


@needs_root
@pytest.mark.parametrize("name", ["policy.yaml", "server.yaml", "."])
@pytest.mark.parametrize("wanted", ["", "nobody"])
def test_configuration_that_belongs_to_the_user_of_sessions_is_refused(
    data_dir: Path, claims: Claims, name: str, wanted: str
) -> None:
    folder = data_dir.parent / "config"
    folder.mkdir()
    (folder / "server.yaml").write_text(f"server:\n  sandbox:\n    unprivileged_user: '{wanted}'\n")
    (folder / "policy.yaml").write_text("policy:\n")
    user = lay_foundation(load_config(folder), claims).user
    os.chown(folder / name, user.uid + 1, user.uid + 1)
    assert lay_foundation(load_config(folder), claims).user == user
    os.chown(folder / name, user.uid, user.uid)
    with pytest.raises(NotOurs, match=f"uid {user.uid}.*could rewrite.*chown root"):
        lay_foundation(load_config(folder), claims)


@needs_root
def test_two_brokers_with_homes_of_their_own_have_users_of_their_own(data_dir: Path) -> None:
    """An idle broker has no process of its user: the claim alone says that the user is taken, and for how long."""
    probed = capabilities.probe()
    unused = data_dir / "unused"
    with Claims() as one, Claims() as other, Claims() as doctor:
        user = choose_user(SETTINGS, data_dir / "a", probed, one, fallback_home=unused)
        assert other.take(user.uid, data_dir / "b" / "home") is False
        assert choose_user(SETTINGS, data_dir / "a", probed, doctor, fallback_home=unused) == user  # of the same home
        (data_dir / "b").mkdir()
        (data_dir / "b" / "home").mkdir()
        os.chown(data_dir / "b" / "home", user.uid, user.uid)
        with pytest.raises(UserUnavailable, match="a running broker with another home has"):
            choose_user(SETTINGS, data_dir / "b", probed, other, fallback_home=unused)
    with Claims() as other:  # now the first ones are gone
        assert choose_user(SETTINGS, data_dir / "b", probed, other, fallback_home=unused).uid == user.uid


@needs_root
def test_where_the_search_begins_at_the_same_id_the_second_broker_gets_the_next(data_dir: Path) -> None:
    homes = {}
    for number in range(2 * len(DYNAMIC_UIDS)):  # until two names begin at the same place
        place = data_dir / str(number)
        first = zlib.crc32(os.fsencode(place / "home")) % len(DYNAMIC_UIDS)
        if first in homes:
            break
        homes[first] = place
    probed = capabilities.probe()
    with Claims() as one, Claims() as other:
        uids = [choose_user(SETTINGS, where, probed, held).uid for where, held in ((homes[first], one), (place, other))]
    assert uids[0] != uids[1]


CLAIM = "import sys; from sandbox.machine.claims import Claims; from pathlib import Path; c = Claims(); "


@needs_root
def test_a_claim_ends_with_its_process_however_that_ends(data_dir: Path) -> None:
    uid, home = DYNAMIC_UIDS[-1], data_dir / "home"
    hold = f"{CLAIM}print(c.take({uid}, Path({str(home)!r})), flush=True); sys.stdin.read()"
    with (
        subprocess.Popen(
            [sys.executable, "-c", hold], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder,
        Claims() as other,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        assert not other.take(uid, data_dir / "other")
        holder.kill()
        holder.wait()
        assert other.take(uid, data_dir / "other")


@needs_root
def test_claims_that_cannot_be_made_or_are_not_roots_alone_stop_the_start(data_dir: Path) -> None:
    data_dir.mkdir()
    link, loose = data_dir / "link", data_dir / "loose"
    link.symlink_to(LOCK_FILE)
    loose.touch(mode=0o666)
    loose.chmod(0o666)
    for path in (data_dir / "absent" / "file", link, loose):
        with Claims(path) as held, pytest.raises(UserUnavailable, match=r"sandbox\.unprivileged_user"):
            choose_user(SETTINGS, data_dir, capabilities.probe(), held)


def test_root_without_the_right_to_switch_is_refused(data_dir: Path, claims: Claims) -> None:
    bound = attrs.evolve(capabilities.probe(), is_root=True, may_switch_user=False)
    with pytest.raises(UserUnavailable, match="CAP_SETUID"):
        choose_user(SETTINGS, data_dir, bound, claims)


def test_settings_and_walls_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="unknown layers wall"):
        attrs.evolve(SETTINGS, require=("wall",))
    with pytest.raises(ValueError, match="at least 1"):
        Limits(pids_max=0)
    nobody = SessionUser(uid=1, gid=1, groups=(), name="n", home="/", dedicated=False)
    with pytest.raises(ValueError, match="absolute"):
        Walls(
            user=nobody,
            home="/",
            working_dir="/",
            read_paths=("relative",),
            write_paths=(),
            exec_paths=(),
            limits=Limits(),
        )
