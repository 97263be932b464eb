"""Who may use the network: the rule's word, then the policy's, then what is known of the program; else nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from config.load import load_config
from policy.command import decide_command
from policy.decision import Allow, Run
from policy.known import network_use
from policy.rules import CommandRule, Policy

SHIPPED = load_config(Path(__file__).parents[2] / "config").policy
GIT = CommandRule(executable="/usr/bin/git", allowed_prefixes=("status", "fetch", "remote show"))
LS = CommandRule(executable="/bin/ls")


def policy_of(commands: dict[str, CommandRule], **fields: Any) -> Policy:
    return attrs.evolve(SHIPPED, allowed_commands=commands, **{"network": None, **fields})


def allowed(policy: Policy, *argv: str) -> bool:
    decision = decide_command(policy, argv, confirm=True, programs={})
    assert isinstance(decision, Allow)
    assert isinstance(decision.subject, Run)
    return decision.subject.network


@pytest.mark.parametrize(
    ("said_by_policy", "said_by_rule", "fetch", "status"),
    [
        (None, None, True, False),
        ("deny", None, False, False),
        ("allow", None, True, True),
        (None, "allow", True, True),
        (None, "deny", False, False),
        ("deny", "allow", True, True),
        ("allow", "deny", False, False),
    ],
)
def test_the_nearest_word_decides(
    said_by_policy: str | None, said_by_rule: str | None, *, fetch: bool, status: bool
) -> None:
    policy = policy_of({"git": attrs.evolve(GIT, network=said_by_rule)}, network=said_by_policy)
    assert allowed(policy, "git", "fetch", "origin") is fetch
    assert allowed(policy, "git", "status") is status


def test_nobody_has_it_where_nobody_says_anything() -> None:
    assert not allowed(policy_of({"ls": LS}), "ls")


@pytest.mark.parametrize(
    ("commands", "said", "use"),
    [
        ({}, None, "none"),
        ({"ls": LS}, None, "none"),
        ({"ls": LS}, "allow", "all"),
        ({"ls": LS, "git": GIT}, None, "some"),
        ({"ls": LS, "git": GIT}, "deny", "none"),
        ({"git": attrs.evolve(GIT, allowed_prefixes=("status", "log"))}, None, "none"),
        ({"git": attrs.evolve(GIT, allowed_prefixes=("remote",))}, None, "some"),
        ({"git": attrs.evolve(GIT, allowed_prefixes=())}, None, "some"),
        ({"ls": attrs.evolve(LS, network="allow"), "git": GIT}, "deny", "some"),
        ({"ls": attrs.evolve(LS, network="allow")}, "deny", "all"),
        ({"git": attrs.evolve(GIT, allowed_prefixes=("fetch", "remote show"))}, None, "all"),
        ({"ls": LS, "git": attrs.evolve(GIT, allowed_prefixes=("fetch",))}, None, "some"),
    ],
)
def test_a_session_gets_a_network_of_its_own_only_if_no_command_needs_another(
    commands: dict[str, CommandRule], said: str | None, use: str
) -> None:
    assert network_use(policy_of(commands, network=said), {LS.executable, GIT.executable}) == use


def test_a_program_that_is_not_there_needs_no_network() -> None:
    policy = policy_of({"ls": LS, "git": GIT})
    assert network_use(policy, {LS.executable, GIT.executable}) == "some"
    assert network_use(policy, {LS.executable}) == "none"
    assert network_use(policy_of({"git": GIT}, network="allow"), set()) == "none"


def test_the_shipped_policy_gives_it_to_what_lives_on_it() -> None:
    assert network_use(SHIPPED, {rule.executable for rule in SHIPPED.allowed_commands.values()}) == "some"
    for argv in (("git", "fetch"), ("git", "clone", "https://x/y"), ("pip", "list"), ("npm", "ci")):
        assert allowed(SHIPPED, *argv)
    for argv in (("git", "status"), ("python3", "x.py"), ("pytest",), ("make",), ("ls",)):
        assert not allowed(SHIPPED, *argv)
