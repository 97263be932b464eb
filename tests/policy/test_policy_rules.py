"""Values of a policy that would silently match nothing, or more than they seem to, are refused where they stand."""

from __future__ import annotations

from typing import Any

import pytest

from policy.arguments import first_denial
from policy.command import decide_command
from policy.decision import SHOWN_CHARACTERS, Deny, shown
from policy.git import hardened
from policy.known import network_use
from policy.packs.packs import PACKS
from policy.rules import ClosedPath, CommandRule, FileLimits, Policy
from tests.policy.test_policy_command import policy_of

PACK = next(iter(PACKS))
LIMITS = policy_of({})


def rule(**fields: Any) -> CommandRule:
    return CommandRule(**{"executable": "/bin/x", **fields})


def policy(**fields: Any) -> Policy:
    given = {"blocked_paths": (), "denied_env": (), **fields}
    return Policy(file_limits=LIMITS.file_limits, resource_limits=LIMITS.resource_limits, **given)


def limits(*extensions: str) -> FileLimits:
    counts = dict.fromkeys(
        ("max_read_size", "max_write_size", "max_session_bytes", "archive_max_entries", "archive_max_bytes"), 1
    )
    return FileLimits(min_free_bytes=0, blocked_extensions=extensions, **counts)


GOOD = [
    lambda: rule(executable="/usr/bin/x.y"),
    lambda: rule(max_args=3, allowed_prefixes=("a b", "c")),
    lambda: rule(denied_args=("-x", "a --long", "word"), allowed_flags=("-x", "--long", "-NUM", "-U*")),
    lambda: rule(env={"A_1": "", "_b": "x"}, may_run=("/bin/a", "/opt/a/**")),
    lambda: rule(denied_args=(), allowed_flags=(), may_run=()),
    lambda: policy(allowed_commands={"git": rule(), "a.b-c": rule()}),
    lambda: policy(allowed_paths=("/a/*", "~/**", "**/x?"), blocked_paths=("**/.ssh/**", ClosedPath(use=PACK))),
    lambda: policy(denied_env=("A_*", "*_B", "C"), allowed_env=("x",)),
    lambda: ClosedPath(path="/a", close="writing", why="it is"),
    lambda: limits(".so", "exe", "7z"),
]
BAD = [
    *({"executable": path} for path in ("x", "./x", "bin/x", "/bin/x/", "/", "", "/a\0b")),
    *({"executable": path} for path in ("//bin/x", "/bin//x", "/bin/./x", "/bin/../x", "/..")),
    *({"may_run": (path,)} for path in ("x", "/a/*", "/a/**/b", "/a*/**", "a/**", "/a/../**", "/bin/x/", "/a\0")),
    *({"allowed_prefixes": (prefix,)} for prefix in ("", " ", "a\0")),
    *({"denied_args": (option,)} for option in ("", " ", "-x\0", "-", "--", "grep -")),
    *({"allowed_flags": (flag,)} for flag in ("", "x", "-x -y", "-x\0", "- x")),
    *({"env": variables} for variables in ({"1A": ""}, {"": ""}, {"A-B": ""}, {"A=": ""}, {"A": "x\0"})),
    {"max_args": 2, "allowed_prefixes": ("a", "a b")},
]


@pytest.mark.parametrize("make", GOOD, ids=range(len(GOOD)))
def test_what_means_what_it_says_is_taken(make: Any) -> None:
    make()


@pytest.mark.parametrize("fields", BAD, ids=repr)
def test_a_rule_that_does_not_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        rule(**fields)


@pytest.mark.parametrize("name", ["", "-x", "/bin/x", "a/b", "a b", "a\t", "a\0"])
def test_a_command_has_a_plain_name(name: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        policy(allowed_commands={name: rule()})


@pytest.mark.parametrize(
    "fields", [{"denied_env": ("A B",)}, {"denied_env": ("",)}, {"allowed_env": ("1*",)}], ids=repr
)
def test_patterns_of_variables_are_names(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="variable names"):
        policy(**fields)


@pytest.mark.parametrize("key", ["allowed_paths", "blocked_paths"])
@pytest.mark.parametrize("pattern", ["", "a", "./a", "/a/../b", "/a**", "/[ab]", "/{a}", "/a\0"])
def test_patterns_of_paths_can_match(key: str, pattern: str) -> None:
    with pytest.raises(ValueError, match=key):
        policy(**{key: (pattern,)})
    if pattern:
        with pytest.raises(ValueError, match="path"):
            ClosedPath(path=pattern)


@pytest.mark.parametrize("extension", ["", ".", "a.b", "..", "a/b", "\0"])
def test_an_extension_is_one(extension: str) -> None:
    with pytest.raises(ValueError, match="single extensions"):
        limits(extension)


@pytest.mark.parametrize(
    "fields",
    [{}, {"use": PACK, "path": "/a"}, {"use": PACK, "close": "writing"}, {"use": PACK, "why": "x"}, {"use": "nothing"}],
    ids=repr,
)
def test_a_closed_path_is_a_pack_or_a_pattern(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        ClosedPath(**fields)


def test_a_pack_that_is_misspelled_is_named() -> None:
    with pytest.raises(ValueError, match=f"did you mean {PACK}"):
        ClosedPath(use=f"{PACK}x")
    with pytest.raises(ValueError, match="there are") as caught:
        ClosedPath(use="?")
    assert "did you mean" not in str(caught.value)


def test_a_prefix_as_long_as_all_arguments_may_be_is_one() -> None:
    assert rule(max_args=3, allowed_prefixes=("a b",)).max_args == 3


def test_of_two_rules_for_one_program_a_denial_goes_before_a_confirmation() -> None:
    both = policy(
        allowed_commands={"a": rule(requires_confirmation=True), "b": rule(max_args=1)},
    )
    for order in (both.allowed_commands, dict(reversed(both.allowed_commands.items()))):
        decision = decide_command(policy(allowed_commands=order), ["/bin/x", "y"], confirm=False, programs={})
        assert isinstance(decision, Deny)


def test_a_denial_says_whose_list_it_was() -> None:
    own = first_denial("k", rule(denied_args=("-x",)), ("x", "-x"))
    assert own is not None
    assert "the rule denies" in own.reason
    known = first_denial("k", rule(executable="/usr/bin/find"), ("find", "-delete"))
    assert known is not None
    assert "the broker's own list" in known.reason


def test_what_is_shown_is_cut_behind_its_limit() -> None:
    assert shown("x" * SHOWN_CHARACTERS) == repr("x" * SHOWN_CHARACTERS)
    assert shown("x" * (SHOWN_CHARACTERS + 1)) == f"{'x' * SHOWN_CHARACTERS!r}... ({SHOWN_CHARACTERS + 1} characters)"


def test_the_value_of_an_option_of_git_is_no_option_that_takes_one() -> None:
    assert hardened(("git", "-C", "-C", "status"))[:4] == ("git", "-C", "-C", "status")
    assert len(hardened(("git", "-C", "-C", "status"))) > 4


def test_a_prefix_that_says_more_than_a_subcommand_of_the_network_reaches_it() -> None:
    git = rule(executable="/usr/bin/git", allowed_prefixes=("remote show origin", "status"))
    assert network_use(policy(allowed_commands={"git": git}), {"/usr/bin/git"}) == "some"
