"""The packs: what a user's programs obey is not written, what holds secrets is not read, and work goes on."""

from __future__ import annotations

import itertools

import attrs
import pytest

from config.keys import SHIPPED_DIR
from config.load import load_config
from policy.decision import Allow, Deny
from policy.explain import explain
from policy.packs.packs import PACKS
from policy.path import CHANGES, PathRules, Purpose, decide_path
from policy.rules import ClosedPath
from tests.support import obeyed

HOME = "/home/ann"
PLACES = (f"{HOME}/project", f"{HOME}/work/a/b", "/tmp/clone")
POLICY = load_config(SHIPPED_DIR).policy
SHIPPED = PathRules.of(POLICY, HOME)
OPEN = PathRules.compile(["~/**", "/tmp/**"], [], HOME)


def in_home(names: tuple[str, ...]) -> list[str]:
    return [name.replace("~", HOME, 1) for name in names]


def in_projects(names: tuple[str, ...]) -> list[str]:
    return [f"{place}/{name}" for place, name in itertools.product(PLACES, names)]


def open_to(purpose: Purpose, paths: list[str], rules: PathRules = SHIPPED) -> list[str]:
    return [path for path in paths if isinstance(decide_path(rules, path, purpose), Allow)]


def test_the_lists_are_long_and_say_nothing_twice() -> None:
    for names, least in (
        (obeyed.HOME_OBEYED + obeyed.PROJECT_OBEYED, 300),
        (obeyed.HOME_SECRETS + obeyed.PROJECT_SECRETS, 200),
        (obeyed.HONEST, 120),
    ):
        assert len(set(names)) == len(names) >= least, [name for name in names if names.count(name) > 1]


@pytest.mark.parametrize("purpose", ["write", "make", "remove"])
def test_what_programs_obey_is_never_changed(purpose: Purpose) -> None:
    paths = in_home(obeyed.HOME_OBEYED) + in_projects(obeyed.PROJECT_OBEYED)
    assert open_to(purpose, paths, OPEN) == paths  # the control: nothing else stands in the way
    assert open_to(purpose, paths) == []


@pytest.mark.parametrize("purpose", ["read", "write", "remove"])
def test_what_holds_secrets_is_never_read(purpose: Purpose) -> None:
    paths = in_home(obeyed.HOME_SECRETS) + in_projects(obeyed.PROJECT_SECRETS)
    assert open_to(purpose, paths, OPEN) == paths
    assert open_to(purpose, paths) == []


@pytest.mark.parametrize("purpose", ["read", "list", "write", "make", "remove"])
def test_honest_work_is_not_in_the_way(purpose: Purpose) -> None:
    paths = in_projects(obeyed.HONEST)
    assert open_to(purpose, paths) == paths


@pytest.mark.parametrize("name", ["", "project", "project/src", "Downloads", "Desktop", "Documents", "public_html"])
def test_a_session_begins_and_looks_where_work_is(name: str) -> None:
    path = f"{HOME}/{name}".rstrip("/")
    assert isinstance(decide_path(SHIPPED, path, "enter"), Allow)
    assert isinstance(decide_path(SHIPPED, path, "list"), Allow)


def test_the_secrets_are_closed_without_the_other_pack_too() -> None:
    alone = PathRules.of(attrs.evolve(POLICY, blocked_paths=(ClosedPath(use="secrets"),)), HOME)
    left = open_to("read", in_home(obeyed.HOME_SECRETS) + in_projects(obeyed.PROJECT_SECRETS), alone)
    # beneath these, programs keep what is no secret as well
    assert left == [f"{HOME}/{name}" for name in (".yarnrc.yml", ".claude.json", ".cache/x", ".local/share/x")] + [
        f"{HOME}/.jupyter/jupyter_server_config.json"
    ]


@pytest.mark.parametrize("pack", PACKS)
def test_every_row_closes_what_it_names_and_says_why(pack: str) -> None:
    rules = PathRules.compile(["/**"], [ClosedPath(use=pack)], HOME)
    for row in PACKS[pack]:
        assert row.why
        path = _a_path_of(row.pattern)
        for purpose in CHANGES:
            for name in (path, f"{path}/beneath"):
                decision = decide_path(rules, name, purpose)
                assert isinstance(decision, Deny), name
                assert f"pack {pack}: " in decision.reason
        assert row.close != "all" or isinstance(decide_path(rules, path, "read"), Deny), path


def _a_path_of(pattern: str) -> str:
    parts = [part for part in pattern.split("/") if part not in {"", "**"}]
    named = [HOME[1:] if part == "~" else part.replace("*", "x").replace("?", "x") for part in parts]
    return "/" + "/".join(named)


def test_a_refusal_names_the_pattern_its_pack_and_the_reason() -> None:
    path = f"{HOME}/project/.git/config"
    decision = decide_path(SHIPPED, path, "write")
    assert explain(decision, ["write", path]).splitlines()[3] == (
        "reason:    Path '/home/ann/project/.git/config' may be read but not changed: '**/.git/config' (pack "
        "persistence: git runs programs that it names (core.fsmonitor, diff.external, filters, aliases), on a mere "
        "`git status`): use another path, or ask the operator of this machine."
    )
    assert isinstance(decide_path(SHIPPED, path, "read"), Allow)


def test_the_expressions_of_the_packs_stay_small() -> None:
    tree = SHIPPED.tree
    assert sum(map(len, (tree.blocked_from_root, tree.blocked_anywhere))) < 10_000  # each birth compiles them
    assert sum(map(len, (tree.guarded_from_root, tree.guarded_anywhere))) < 10_000
