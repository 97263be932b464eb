"""`python -m broker doctor` on the real kernel: what it says, what it leaves, and that it says when a wall is gone."""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from broker.doctor.approaches import OF_THE_POLICY
from broker.doctor.checks import CHECKS, CHECKS_AROUND, Attempt, Check, Fence, judge
from sandbox.commands.values import Exited
from sandbox.plan.plan import LAYERS, LayerReport
from tests.sandbox.init.test_sandbox_births import open_world
from tests.support.live import ROOT, connect, live_folder, marked, new_session, ok, running_broker, write_config
from tests.support.live_plain_user import plain_user

SHIPPED = ROOT / "config" / "policy.yaml"
CUSTOMER = ROOT / "tests" / "data" / "customer" / "policy.yaml"
DOCTOR_S = 120
"""A net: it takes a few seconds."""


def doctor(
    base: Path, *args: str, python: Sequence[str] = (sys.executable,), env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line on `base/config`."""
    command = [*python, "-m", "broker", "doctor", "--config-dir", str(base / "config"), *args]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=DOCTOR_S, check=False)


def states(said: str) -> dict[str, str]:
    """What became of each attack, by its title."""
    diagnosis = json.loads(said)
    return {line["title"]: line["state"] for line in diagnosis["lines"]}


def test_a_person_reads_the_layers_and_a_line_for_each_attack() -> None:
    with live_folder() as base:
        write_config(base)
        done = doctor(base)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        for name in LAYERS:
            assert f"\n  {name} " in done.stdout
        for check in CHECKS:
            assert f" {check.title}: " in done.stdout
        assert done.stdout.rstrip().endswith("All that is claimed holds.")
        assert not (base / "log").exists(), "the doctor writes no audit"


@pytest.mark.long
@pytest.mark.bounded(120)
async def test_what_a_broker_owes_its_log_is_said() -> None:
    with running_broker() as broker:
        async with connect(broker) as client:
            session = await new_session(client)
            log = broker.base / "log" / "audit.log"
            aside = log.rename(log.with_name("audit.log-aside"))
            log.symlink_to(aside)  # the broker follows none
            await ok(client, "kill_session", session_id=session)
            done = await trio.to_thread.run_sync(doctor, broker.base, "--json")
            aside.replace(log)
        (said,) = json.loads(done.stdout)["audit"]
        assert f"(pid {broker.process.pid}, " in said
        assert "owes 3 records, lost 0" in said


@pytest.mark.long
def test_a_session_of_root_is_attacked_from_all_around_without_namespaces_too() -> None:
    with live_folder() as base:
        write_config(base, {"sandbox": {"enable_namespaces": False}})
        done = doctor(base, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        found = states(done.stdout)
        assert "pass" in found.values()
        for check in CHECKS_AROUND:  # code, configuration and logs are root's, which is why they are skipped
            assert found[check.title] in ("skipped", "pass"), check.title


def test_what_is_not_enforced_is_no_pass() -> None:
    with live_folder() as base:
        write_config(base)
        done = doctor(base, "--json")
        diagnosis = json.loads(done.stdout)
        enforced = {layer["name"] for layer in diagnosis["layers"] if layer["state"] == "enforced"}
        for check, line in zip(CHECKS, diagnosis["lines"], strict=True):
            if line["state"] == "not fenced":
                assert not enforced & {fence.layer for fence in check.fences if fence.layer != "user"}
                assert any(fence.layer in line["detail"] for fence in check.fences)


OWN_PORT = "call the broker through its own port"
NETWORK = {"allowed_commands": {"python3": {"executable": "/usr/bin/python3", "network": "allow"}}}


@pytest.mark.parametrize("who", ["root", pytest.param("user", marks=[pytest.mark.long, pytest.mark.once])])
@pytest.mark.parametrize(
    ("policy", "reaches"),
    [
        pytest.param(NETWORK, True, id="network"),
        pytest.param({"network": "deny"}, False, marks=pytest.mark.long, id="no network"),
    ],
)
def test_the_own_port_is_called_by_a_command_that_may_use_the_network(
    who: str, policy: dict[str, Any], *, reaches: bool
) -> None:
    with live_folder() as base:
        write_config(base, {}, policy)
        plain = plain_user(base) if who == "user" else None
        words: dict[str, Any] = {} if plain is None else {"python": plain.python, "env": plain.environment}
        done = doctor(base, "--json", **words)
        line = next(line for line in json.loads(done.stdout)["lines"] if line["title"] == OWN_PORT)
        assert line["state"] == "pass", line
        assert ("answered 403" in line["detail"]) == reaches, line


@pytest.mark.long
@pytest.mark.once
def test_the_walls_of_a_plain_user_are_attacked_too() -> None:
    with live_folder() as base:
        write_config(base)
        plain = plain_user(base)
        done = doctor(base, "--json", python=plain.python, env=plain.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "pass" in states(done.stdout).values()


OF_A_PACK = {line.title for line in CHECKS_AROUND if set(line.needs) & set(OF_THE_POLICY)}
"""Closed by the packs that the shipped policy pulls in."""
NEEDS_MOUNTS = {line.title for line in CHECKS_AROUND if line.fences == (Fence("mount_namespace"),)}


def clone_in_a_home(base: Path, *, namespaces: bool, policy: Path) -> tuple[Path, Sequence[str], Mapping[str, str]]:
    """A checkout and a virtual environment of a plain user's, in the home: its folder, its Python, the environment."""
    home, clone = base / "home-of-plain", base / "clone"
    for package in ("broker", "config", "policy", "sandbox", "transfers"):
        shutil.copytree(ROOT / package, clone / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", clone)
    shutil.copy(policy, clone / "config" / "policy.yaml")
    settings = {"logging": {"audit_log": "log/audit.log"}, "sandbox": {"enable_namespaces": namespaces}}
    (clone / "config" / "server.yaml").write_text(json.dumps({"server": settings}))
    (clone / "log").mkdir()
    (clone / "log" / "audit.log").touch()
    (clone / "venv" / "bin").mkdir(parents=True)
    plain = plain_user(base)
    clone = clone.rename(home / "clone")
    *enter, interpreter = plain.python
    (clone / "venv" / "bin" / "python").symlink_to(interpreter)
    (clone / "venv" / "pyvenv.cfg").write_text(f"home = {os.path.dirname(interpreter)}\n")
    libraries = plain.environment["PYTHONPATH"].replace(str(ROOT), str(clone), 1)
    environment = {**plain.environment, "HOME": str(home), "PYTHONPATH": libraries}
    return clone, (*enter, str(clone / "venv" / "bin" / "python")), environment


@pytest.mark.long
@pytest.mark.once
@pytest.mark.parametrize("namespaces", [True, False], ids=["namespaces", "landlock alone"])
@pytest.mark.parametrize("policy", [SHIPPED, CUSTOMER], ids=["shipped", "customer"])
def test_a_clone_in_a_home_is_attacked_from_all_around(policy: Path, *, namespaces: bool) -> None:
    with live_folder() as base:
        clone, python, environment = clone_in_a_home(base, namespaces=namespaces, policy=policy)
        before = listing(base)
        command = [*python, "-m", "broker", "doctor", "--json"]
        done = subprocess.run(
            command, cwd=clone, env=environment, capture_output=True, text=True, timeout=DOCTOR_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = {line["title"]: line for line in json.loads(done.stdout)["lines"]}
        for title in (check.title for check in CHECKS_AROUND):
            if policy == CUSTOMER and title in OF_A_PACK:
                assert lines[title]["state"] == "skipped", lines[title]
                assert lines[title]["detail"].startswith("the policy allows it: ")
            elif not namespaces and title in NEEDS_MOUNTS:
                assert lines[title]["state"] == "not fenced", lines[title]
            else:
                assert lines[title]["state"] == "pass", lines[title]
        assert [path for path in listing(base) - before if made_by_a_doctor(path)] == []


def listing(base: Path) -> set[Path]:
    """Every path in a folder."""
    return set(base.rglob("*"))


def made_by_a_doctor(path: Path) -> bool:
    """Whether an attack made it: by its mark, or as one of the names that something obeys."""
    mark = path.name.replace("_", "-").strip(".").startswith("remote-broker-doctor-")
    return mark or path.name in ("policy.yaml", "audit.log.1", "another-name", "post-checkout")


@pytest.mark.long
def test_nothing_is_left_behind() -> None:
    with live_folder() as base:
        write_config(base)
        before = set(glob.glob("/var/tmp/remote-broker-doctor-*") + glob.glob("/dev/shm/remote-broker-doctor-*"))
        assert doctor(base).returncode == 0
        after = set(glob.glob("/var/tmp/remote-broker-doctor-*") + glob.glob("/dev/shm/remote-broker-doctor-*"))
        assert after <= before
        assert marked(str(base)) == []
        assert not [path for path in base.rglob("*") if "doctor" in path.name]


@pytest.mark.parametrize(
    ("server", "policy", "word"),
    [
        ({"sandbox": {"require": ["cgroup"], "enable_cgroups": False}}, {}, "cgroup"),
        ({"no_such_key": 1}, {}, "no_such_key"),
    ],
)
def test_without_a_session_it_says_so(server: dict[str, Any], policy: dict[str, Any], word: str) -> None:
    with live_folder() as base:
        write_config(base, server, policy)
        done = doctor(base)
        assert (done.returncode, done.stdout) == (2, "")
        assert word in done.stderr


def layers(**given: str) -> list[LayerReport]:
    return [LayerReport(name=name, state=given.get(name, "unavailable"), detail=f"about {name}") for name in LAYERS]


CHECK = Check(title="t", attack="a", fences=(Fence("landlock"), Fence("rlimits", partial=True), Fence("user")))


@pytest.mark.parametrize(
    ("through", "given", "as_root", "state", "detail"),
    [
        (False, {"landlock": "enforced"}, False, "pass", "landlock: said"),
        (False, {"landlock": "partial"}, False, "pass", "landlock in part: said"),
        (False, {}, False, "pass", "no layer claims it: said"),
        (True, {"landlock": "enforced"}, False, "FAIL", "landlock claims to hold, but said"),
        (True, {"rlimits": "partial"}, False, "FAIL", "rlimits claims to hold, but said"),
        (True, {"user": "enforced"}, True, "FAIL", "user claims to hold, but said"),
        (True, {"user": "enforced"}, False, "not fenced", "landlock is unavailable: about landlock; rlimits is "),
        (True, {"landlock": "partial"}, False, "not fenced", "landlock is partial: about landlock; rlimits is "),
    ],
)
def test_an_attack_that_goes_through_fails_only_who_claimed_it(
    *, through: bool, given: dict[str, str], as_root: bool, state: str, detail: str
) -> None:
    line = judge(CHECK, Attempt(through=through, said="said"), layers(**given), as_root=as_root)
    assert line.state == state
    assert line.detail.startswith(detail)


def test_every_attack_without_walls_would_be_a_failure_of_each_layer() -> None:
    everything = layers(**dict.fromkeys(LAYERS, "enforced"))
    for check in CHECKS:
        assert check.always or check.fences, check.title
        assert judge(check, Attempt(through=True, said="x"), everything, as_root=True).state == "FAIL"


async def test_a_real_session_has_no_attack_at_hand() -> None:
    """The control is every other test here: with `besieged` the same order is obeyed."""
    async with open_world() as world:
        target = str(world.home / "made")
        ended = await world.run("/bin/true", attack={"attack": "write_file", "path": target})
        assert ended.how == Exited(127)
        assert ended.stdout.data == b""
        assert not Path(target).exists()
