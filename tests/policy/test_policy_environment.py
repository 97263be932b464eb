"""The environment of a command is built from nothing, and no variable of a session changes what runs."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.decision import Allow, Deny
from policy.environment import BASE, User, build_environment, decide_environment, decide_variable
from policy.rules import FileLimits, Policy, ResourceLimits

POLICY = Policy(
    blocked_paths=(),
    denied_env=("SECRET_*",),
    file_limits=FileLimits(
        max_read_size=1,
        max_write_size=1,
        max_session_bytes=1,
        min_free_bytes=0,
        archive_max_entries=1,
        archive_max_bytes=1,
        blocked_extensions=(),
    ),
    resource_limits=ResourceLimits(memory_max=1, memory_swap_max=0, pids_max=1, file_size_max=1, open_files_max=1),
)
USER = User(name="ann", home="/home/ann")


def test_nothing_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_TOKEN", "secret")
    built = build_environment(POLICY, user=USER, rule_env={}, session_env={})
    assert built == {**BASE, "HOME": "/home/ann", "USER": "ann", "LOGNAME": "ann"}


def test_the_rule_goes_before_the_session_and_the_session_before_the_base() -> None:
    built = build_environment(
        POLICY,
        user=USER,
        rule_env={"CI": "rule", "GIT_ALLOW_PROTOCOL": "https"},
        session_env={"CI": "session", "LANG": "de_DE.UTF-8", "COLOR": "1", "PATH": "/tmp", "SECRET_X": "1"},
    )
    assert (built["CI"], built["LANG"], built["COLOR"]) == ("rule", "de_DE.UTF-8", "1")
    assert built["GIT_ALLOW_PROTOCOL"] == "https"
    assert built["PATH"] == BASE["PATH"]
    assert "SECRET_X" not in built


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "HOME",
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "LD_AUDIT",
        "BASH_ENV",
        "ENV",
        "IFS",
        "PYTHONPATH",
        "TMPDIR",
        "PYTHONSTARTUP",
        "PYTHONHOME",
        "PERL5OPT",
        "PERL5LIB",
        "RUBYOPT",
        "NODE_OPTIONS",
        "NODE_PATH",
        "PAGER",
        "GIT_EXTERNAL_DIFF",
        "GIT_CONFIG_COUNT",
        "GIT_CONFIG_KEY_0",
        "GIT_CONFIG_PARAMETERS",
        "GIT_SSH_COMMAND",
        "GIT_DIR",
        "EDITOR",
        "VISUAL",
        "LESSOPEN",
        "SSH_ASKPASS",
        "npm_config_script_shell",
        "nPm_CoNfIg_x",
        "PIP_INDEX_URL",
        "PYTEST_ADDOPTS",
        "MAKEFLAGS",
        "RIPGREP_CONFIG_PATH",
        "TAR_OPTIONS",
        "XDG_CONFIG_HOME",
    ],
)
def test_a_variable_that_changes_what_runs_is_never_set(name: str) -> None:
    decision = decide_variable(POLICY, name)
    assert isinstance(decision, Deny)
    assert decision.rule == "environment.never_set"
    assert repr(name) in decision.reason


@pytest.mark.parametrize("name", ["LANG", "LC_ALL", "TZ", "CI", "FOO", "_x", "NODE_ENV", "PYTHONUNBUFFERED", "DEBUG"])
def test_other_variables_may_be_set(name: str) -> None:
    assert isinstance(decide_variable(POLICY, name, "any\nvalue"), Allow)


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A=B", "A\0", "\u00c4", "A\n", "BASH_FUNC_x%%"])
def test_a_name_that_is_none_is_denied(name: str) -> None:
    assert decide_variable(POLICY, name).rule == "environment"


def test_nul_in_a_value_is_denied() -> None:
    assert "NUL" in decide_variable(POLICY, "A", "x\0y").reason


def test_the_policy_denies_more_and_a_list_of_allowed_names_denies_the_others() -> None:
    assert decide_variable(POLICY, "SECRET_KEY").rule == "denied_env"
    narrow = attrs.evolve(POLICY, allowed_env=("LC_*", "SECRET_KEY", "PATH"))
    assert isinstance(decide_variable(narrow, "LC_ALL"), Allow)
    assert decide_variable(narrow, "FOO").rule == "allowed_env"
    assert isinstance(decide_variable(narrow, "SECRET_KEY"), Deny)
    assert isinstance(decide_variable(narrow, "PATH"), Deny)


def test_the_first_denial_of_an_environment_is_its_answer() -> None:
    assert decide_environment(POLICY, {"A": "1", "B": "2"}) is None
    denial = decide_environment(POLICY, {"A": "1", "LD_PRELOAD": "x.so", "PATH": "/tmp"})
    assert denial is not None
    assert "'LD_PRELOAD'" in denial.reason


NAMES = st.one_of(st.text(max_size=6), st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), st.sampled_from([*BASE]))


@given(st.dictionaries(NAMES, st.text(max_size=4)), st.lists(st.sampled_from(["A*", "*B", "FOO", "_*"])))
def test_denying_a_name_more_never_widens(session_env: dict[str, str], more: list[str]) -> None:
    wider = build_environment(POLICY, user=USER, rule_env={}, session_env=session_env)
    stricter = attrs.evolve(POLICY, denied_env=(*POLICY.denied_env, *more))
    narrower = build_environment(stricter, user=USER, rule_env={}, session_env=session_env)
    assert {name for name in narrower if name not in BASE} <= set(wider)


@given(st.dictionaries(NAMES, st.text(max_size=4)))
def test_no_session_changes_the_path_or_the_configuration_of_git(session_env: dict[str, str]) -> None:
    built = build_environment(POLICY, user=USER, rule_env={}, session_env=session_env)
    fixed = {name: value for name, value in BASE.items() if name == "PATH" or name.startswith("GIT_")}
    assert fixed.items() <= built.items()


def test_where_names_are_listed_no_other_may_be_set() -> None:
    policy = attrs.evolve(POLICY, allowed_env=("MY_*",))
    assert isinstance(decide_variable(policy, "MY_A"), Allow)
    denied = decide_variable(policy, "OTHER")
    assert isinstance(denied, Deny)
    assert denied.rule == "allowed_env"
    assert decide_environment(policy, {"MY_A": "", "OTHER": ""}) == denied
    assert decide_environment(policy, {"MY_A": ""}) is None
