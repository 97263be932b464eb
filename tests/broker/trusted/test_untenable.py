"""Starts that must not be: sessions that could do nothing, or that could write what the next start executes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from broker.trusted.places import find_trusted
from broker.trusted.untenable import Untenable, module_folder, refuse_untenable
from config.load import Config, load_config
from sandbox.plan.plan import Plan, SessionUser
from tests.sandbox.init.test_sandbox_births import plan_for
from tests.support.live import broker_in, live_folder, write_config

EXIT_HOST = 3


@pytest.fixture
def base() -> Iterator[Path]:
    with live_folder() as base:
        write_config(base)
        (base / "home").mkdir()
        yield base


@pytest.fixture
def config(base: Path) -> Config:
    return load_config(base / "config")


def judge(config: Config, home: Path, started_in: str | None = None, plan: Plan | None = None) -> str:
    """Why not, or nothing."""
    user = SessionUser(uid=1, gid=1, groups=(), name="somebody", home=str(home), dedicated=False)
    try:
        refuse_untenable(config, find_trusted(config, user), user, plan or plan_for(abi=3), started_in)
    except Untenable as why:
        return str(why)
    return ""


def allowing(config: Config, *patterns: str) -> Config:
    return attrs.evolve(config, policy=attrs.evolve(config.policy, allowed_paths=patterns))


def test_an_ordinary_start_goes_on(config: Config, base: Path) -> None:
    assert judge(config, base / "home") == ""
    assert module_folder() is None  # of the tests


@pytest.mark.parametrize("there", [True, False])
def test_a_home_that_is_on_the_module_search_path_is_refused(
    config: Config, base: Path, monkeypatch: pytest.MonkeyPatch, *, there: bool
) -> None:
    home = base / "home" if there else base / "absent"
    monkeypatch.syspath_prepend(str(home))
    said = judge(config, home)
    assert said.startswith(f"{home} is on the module search path (sys.path), which no session may change")
    assert "'~/**'" in said
    assert judge(allowing(config, f"{base}/ws/**"), home) == ""  # a home that is closed anyway loses nothing


def test_code_above_a_home_is_refused_and_beneath_it_is_not(
    config: Config, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(base / "home" / "venv"))
    assert judge(config, base / "home") == ""
    assert "which no session may change" in judge(config, base / "home" / "venv" / "me")


def test_code_in_the_home_that_the_broker_keeps_is_refused(
    config: Config, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = base / "data" / "home"
    assert judge(config, home) == ""
    monkeypatch.syspath_prepend(str(home / "lib"))
    assert f"{home}/lib is on the module search path" in judge(config, home)


def test_a_policy_that_opens_only_what_no_session_may_see_is_refused(config: Config, base: Path) -> None:
    said = judge(allowing(config, f"{base}/config/**", f"{base}/log/**"), base / "home")
    assert "opens nothing but what the broker itself obeys and keeps" in said
    assert f"{base}/log/**" in said
    assert judge(allowing(config, f"{base}/config/**", f"{base}/ws/**"), base / "home") == ""
    assert judge(allowing(config), base / "home") == ""


def test_a_log_among_files_that_sessions_write_is_refused(config: Config, base: Path) -> None:
    logging = attrs.evolve(config.server.logging, audit_log=base / "ws" / "a.log", error_log=base / "log" / "e.log")
    shared = attrs.evolve(config, server=attrs.evolve(config.server, logging=logging))
    assert judge(shared, base / "home") == ""  # nothing else is there
    (base / "ws" / "notes").touch()
    said = judge(shared, base / "home")
    assert said.startswith(f"{base}/ws/a.log lies among other files in a folder that sessions may write")
    assert "logging.audit_log" in said
    assert judge(allowing(shared, "~/**"), base / "home") == ""


def test_a_folder_that_modules_are_taken_from_is_refused_where_sessions_may_write(config: Config, base: Path) -> None:
    for folder in (base / "ws", base / "ws" / "deeper", base / "home"):
        said = judge(config, base / "home", str(folder))
        assert f"is started in, {folder}, and sessions may write there" in said
        for way_out in ("oc-broker", "python -P -m broker", "another folder", "allowed_paths"):
            assert way_out in said
    assert judge(config, base / "home", str(base)) == ""
    (base / "alias").symlink_to("ws")
    assert "sessions may write there" in judge(allowing(config, f"{base}/alias/**"), base / "home", str(base / "ws"))


@pytest.mark.long
def test_the_module_is_refused_in_a_workspace_and_starts_there_without_modules_of_the_folder(base: Path) -> None:
    command = [sys.executable, "-m", "broker", "--config-dir", str(base / "config"), "--port", "0"]
    done = subprocess.run(command, cwd=base / "ws", capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == EXIT_HOST, done.stderr
    assert f"`python -m broker` takes modules from the folder it is started in, {base}/ws" in done.stderr
    assert os.listdir(base / "ws") == []
    with broker_in(base, python=(sys.executable, "-P"), cwd=base / "ws") as broker:
        assert broker.healthy()


@pytest.mark.parametrize(("abi", "refused"), [(0, True), (2, True), (3, False)])
def test_a_start_that_no_layer_could_keep_is_refused_where_sessions_may_write_what_is_trusted(
    config: Config, base: Path, abi: int, *, refused: bool
) -> None:
    bare = plan_for(abi=abi, enable_namespaces=False)
    said = judge(allowing(config, f"{base}/**"), base / "home", plan=bare)
    assert bool(said) is refused
    if refused:
        assert f"{base}/**" in said
        for way_out in ("namespaces", "as root", "allow less"):
            assert way_out in said
    assert judge(allowing(config, f"{base}/ws/**"), base / "home", plan=bare) == ""
