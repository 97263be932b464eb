"""Paths: blocked wins, components are compared and never parts of names, and an independent oracle agrees."""

from __future__ import annotations

import re
import time

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.decision import Allow, Deny, PathDecision
from policy.explain import explain
from policy.path import (
    CHANGES,
    SHOWN_PATTERNS,
    PathRules,
    Pattern,
    Purpose,
    Root,
    decide_beneath,
    decide_path,
    kernel_roots,
    lexical_path,
)
from policy.pattern import components, matched_depths, matches_name
from policy.rules import ClosedPath

HOME = "/home/ann"
ALLOWED = ("~//**", "/srv/*/src/**", "/etc/hosts", "/tmp/**")
BLOCKED = ("**/.ssh/**", "**/.env", "/tmp/secret*/**", "~/.bashrc")
RULES = PathRules.compile(ALLOWED, BLOCKED, HOME, (".so", "EXE"))


def decide(path: str | bytes, purpose: Purpose = "read", rules: PathRules = RULES) -> PathDecision:
    return decide_path(rules, path, purpose)


def rule_of(path: str | bytes, purpose: Purpose = "read", rules: PathRules = RULES) -> str:
    return decide(path, purpose, rules).rule


@pytest.mark.parametrize(
    "path",
    [
        "/home/ann",
        "/home/ann/a",
        "/home/ann/a b/\u202ec\n",
        "/srv/x/src",
        "/srv/x/src/a/b",
        "/etc/hosts",
        "/tmp",
        "/home/ann/.envrc",
        "/home/ann/x.ssh/a",
        "/home/ann/.sshx",
        "/tmp/secre",
        "/home/ann/.ENV",
        "/tmp/%2e%2e",
    ],
)
def test_a_path_that_a_pattern_matches_is_allowed(path: str) -> None:
    decision = decide(path)
    assert isinstance(decision, Allow)
    assert decision.subject == path


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/home",
        "/home/annx",
        "/home/an",
        "/home/ann2/x",
        "/srv/src",
        "/srv/x/y/src",
        "/srv/x/srcs",
        "/etc/hosts/x",
        "/etc/host",
        "/TMP/x",
        "/home/bob/home/ann/x",
        "/etc",
    ],
)
def test_a_path_beside_the_patterns_is_outside(path: str) -> None:
    decision = decide(path)
    assert isinstance(decision, Deny)
    assert decision.rule == "allowed_paths"
    assert "~//**, /srv/*/src/**, /etc/hosts, /tmp/**" in decision.reason


@pytest.mark.parametrize(
    "path",
    [
        "/home/ann/.ssh",
        "/home/ann/.ssh/id",
        "/home/ann/a/b/.ssh/c/d",
        "/home/ann/.env",
        "/tmp/secret/a",
        "/.ssh",
        "/home/ann/p/.env/inside",
        "/tmp/secrets",
        "/home/ann/.bashrc",
        "/nowhere/.env",
    ],
)
def test_blocked_wins_also_beneath_and_outside(path: str) -> None:
    assert rule_of(path) == "blocked_paths"


def test_a_blocked_denial_names_the_pattern_and_the_directory() -> None:
    assert decide("/home/ann/.ssh/id").reason == (
        "Path '/home/ann/.ssh/id' is blocked by '**/.ssh/**', since '/home/ann/.ssh' is: use another path, or "
        "ask the operator of this machine."
    )


@pytest.mark.parametrize(
    "path", ["", "a", "./a", "~/a", "/tmp/../etc/hosts", "/tmp/./a", "//tmp/a", "/tmp//a", "/tmp/", "/tmp/a\0b"]
)
def test_what_is_no_plain_absolute_path_is_denied(path: str) -> None:
    assert rule_of(path) == "path"


def test_names_that_are_no_utf8_are_decided_like_others() -> None:
    assert isinstance(decide(b"/tmp/\xff\xfe"), Allow)
    assert isinstance(decide("/tmp/\udcff"), Allow)
    assert rule_of(b"/home/ann/\xff/.ssh/k") == "blocked_paths"
    assert rule_of(b"/\xff") == "allowed_paths"
    assert decide(b"/\xff\n").reason.isprintable()


@pytest.mark.parametrize("name", ["a.so", "liba.so.1.2", "A.SO", "x.exe", ".so", "a.so.txt"])
def test_a_blocked_extension_is_not_written_and_can_be_read(name: str) -> None:
    assert rule_of(f"/tmp/{name}", "write") == "file_limits.blocked_extensions"
    assert isinstance(decide(f"/tmp/{name}", "read"), Allow)


@pytest.mark.parametrize("name", ["aso", "a.sox", "so", "a.s.o"])
def test_other_names_are_written(name: str) -> None:
    assert isinstance(decide(f"/tmp/{name}", "write"), Allow)


@pytest.mark.parametrize(
    ("path", "absolute"),
    [
        (".", "/srv/ws/x"),
        ("a", "/srv/ws/x/a"),
        ("../a", "/srv/ws/a"),
        ("../../../../a", "/a"),
        ("/a//b/./c/", "/a/b/c"),
        ("//a", "/a"),
        ("~", "/home/ann"),
        ("~/a", "/home/ann/a"),
        ("~//a", "/home/ann/a"),
        ("~/../bob", "/home/bob"),
        ("~bob/a", "/srv/ws/x/~bob/a"),
        ("a/~", "/srv/ws/x/a/~"),
        ("/", "/"),
        ("", ""),
        ("a\udcff", "/srv/ws/x/a\udcff"),
    ],
)
def test_a_lexical_path_is_absolute_and_plain(path: str, absolute: str) -> None:
    assert lexical_path("/srv/ws/x", path, HOME) == absolute


def test_kernel_roots_say_what_a_kernel_can_be_told() -> None:
    assert kernel_roots(RULES) == (
        Root(pattern="~//**", prefix=HOME, glob=HOME, literal=True, beneath=True),
        Root(pattern="/srv/*/src/**", prefix="/srv", glob="/srv/*/src", literal=False, beneath=True),
        Root(pattern="/etc/hosts", prefix="/etc/hosts", glob="/etc/hosts", literal=True, beneath=False),
        Root(pattern="/tmp/**", prefix="/tmp", glob="/tmp", literal=True, beneath=True),
    )
    everywhere = kernel_roots(PathRules.compile(("**/src/**", "/**"), (), HOME))
    assert [(root.prefix, root.glob, root.literal) for root in everywhere] == [
        ("/", "/**/src", False),
        ("/", "/", True),
    ]


@pytest.mark.parametrize(
    "pattern",
    ["", "a/**", "*.pem", "~bob/**", "/a/../b", "/a**", "/a/**.py", "/[ab]", "/{a,b}", "/a\0", "./a", "*/a"],
)
def test_a_pattern_that_would_match_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(pattern))):
        PathRules.compile((pattern,), (), HOME)


@pytest.mark.parametrize("home", ["", "home", "~", "/home/*"])
def test_a_home_that_is_no_plain_path_is_refused(home: str) -> None:
    with pytest.raises(ValueError, match="home"):
        PathRules.compile(("~/**",), (), home)


def test_matching_a_hostile_name_takes_no_exponential_time() -> None:
    start = time.process_time()
    assert not matches_name("*a" * 60 + "b", "a" * 255)
    rules = PathRules.compile(("/" + "**/a/" * 30 + "b",), (), HOME)
    assert rule_of("/a" * 2000, rules=rules) == "allowed_paths"
    assert time.process_time() - start < 5  # seconds; exponential would be years


GUARDING = PathRules.compile(
    ["~/**"],
    ["**/.ssh/**", ClosedPath(path="**/.git/config", close="writing", why="git runs what it names")],
    HOME,
)


@pytest.mark.parametrize("path", ["/home/ann/p/.git/config", "/home/ann/p/.git/config/beneath"])
def test_a_guarded_path_and_what_is_in_it_is_read_and_not_changed(path: str) -> None:
    for purpose in ("read", "list", "enter"):
        assert isinstance(decide(path, purpose, GUARDING), Allow)
    for purpose in CHANGES:
        assert rule_of(path, purpose, GUARDING) == "blocked_paths"
    for purpose in ("write", "remove"):
        assert isinstance(decide("/home/ann/p/.git/configs", purpose, GUARDING), Allow)


def test_a_guarded_denial_says_what_may_be_done_and_why_not_more() -> None:
    assert decide("/home/ann/p/.git/config/x", "write", GUARDING).reason == (
        "Path '/home/ann/p/.git/config/x' may be read but not changed: '**/.git/config' (git runs what it names), "
        "since '/home/ann/p/.git/config' is: use another path, or ask the operator of this machine."
    )


def opening(rules: PathRules, *roots: str) -> PathRules:
    return attrs.evolve(rules, opened=tuple(Pattern(text=root, parts=(*components(root), "**")) for root in roots))


def test_an_opened_directory_is_looked_at_as_the_root_of_the_machine() -> None:
    closed = ["~/.*", "**/.ssh/**", "**/state/home", ClosedPath(path="**/.git/config", close="writing")]
    rules = PathRules.compile(["~/**"], closed, HOME)
    root = "/home/ann/.local/state/home"
    opened = opening(rules, root)
    for path in (root, f"{root}/.npm/x", f"{root}/.bashrc", f"{root}/p/.git/HEAD"):
        for purpose in ("read", "write", "enter", "remove"):
            assert rule_of(path, purpose, rules) == "blocked_paths"  # the control
            assert isinstance(decide(path, purpose, opened), Allow), path
    for path in (f"{root}/.ssh", f"{root}/p/.ssh/id", f"{root}/x/state/home/y"):
        assert rule_of(path, "read", opened) == "blocked_paths"
    assert rule_of(f"{root}/p/.git/config", "write", opened) == "blocked_paths"
    assert isinstance(decide(f"{root}/p/.git/config", "read", opened), Allow)
    for path in ("/home/ann/.local/state", f"{root}2", "/home/ann/.bashrc", "/home/ann/.local/state/homework"):
        assert rule_of(path, "read", opened) == "blocked_paths"


@pytest.mark.parametrize("root", ["/", "/a/*", "/**", "/a/**/b"])
def test_what_is_opened_is_one_directory(root: str) -> None:
    with pytest.raises(ValueError, match="without wildcards"):
        opening(RULES, root)


# --- for all paths ------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "ab", "aab", ".a", "a.b", "home", "ann", "*", "?", "\n", "\udcff"])
PATHS = st.lists(NAMES, max_size=6).map(lambda names: "/" + "/".join(names))
PARTS = st.sampled_from(["**", "*", "a*", "*b", "?", "a?b", "*.*", "a", "b", ".a", "home", "**"])
STARTS = st.sampled_from(["/", "~/", "**/"])
PATTERNS = st.builds(lambda start, parts: start + "/".join(parts), STARTS, st.lists(PARTS, max_size=4))
LITERALS = st.lists(st.sampled_from(["a", "b", "ab", ".a"]), min_size=1, max_size=3).map(lambda n: "/" + "/".join(n))


def oracle_matches(pattern: str, path: str) -> bool:
    """Say the same by another way: a regular expression over the whole path, one component a time."""
    if pattern.startswith("~"):
        pattern = HOME + pattern[1:]
    expression = ""
    for part in pattern.split("/"):
        if part == "**":
            expression += "(?:/[^/]+)*"
        elif part:
            expression += "/" + re.escape(part).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    return re.fullmatch(expression, path if path != "/" else "", re.DOTALL) is not None


def oracle(allowed: list[str], blocked: list[str], path: str) -> bool:
    names = path.split("/")[1:] if path != "/" else []
    above = ["/" + "/".join(names[:n]) for n in range(len(names) + 1)]
    if any(oracle_matches(pattern, upper) for pattern in blocked for upper in above):
        return False
    return any(oracle_matches(pattern, path) for pattern in allowed)


@given(st.lists(PATTERNS, max_size=3), st.lists(PATTERNS, max_size=2), PATHS)
def test_the_decision_agrees_with_an_independent_oracle(allowed: list[str], blocked: list[str], path: str) -> None:
    rules = PathRules.compile(allowed, blocked, HOME)
    assert isinstance(decide(path, rules=rules), Allow) == oracle(allowed, blocked, path)


@given(st.lists(PATTERNS, max_size=2), st.lists(PATTERNS, max_size=2), LITERALS, PATHS, PATHS)
def test_opened_and_guarded_agree_with_the_oracle_too(
    blocked: list[str], guarded: list[str], root: str, beneath: str, beside: str
) -> None:
    closed = [*blocked, *(ClosedPath(path=pattern, close="writing") for pattern in guarded)]
    rules = opening(PathRules.compile(["/**"], closed, HOME), root)
    inside = (root + beneath).rstrip("/")
    everywhere = [pattern for pattern in blocked if components(pattern)[:1] == ("**",)]
    never_changed = [*everywhere, *(pattern for pattern in guarded if components(pattern)[:1] == ("**",))]
    assert isinstance(decide(inside, rules=rules), Allow) == oracle(["/**"], everywhere, beneath)
    assert isinstance(decide(inside, "make", rules), Allow) == oracle(["/**"], never_changed, beneath)
    if not f"{beside}/".startswith(f"{root}/"):
        assert isinstance(decide(beside, rules=rules), Allow) == oracle(["/**"], blocked, beside)
        assert isinstance(decide(beside, "make", rules), Allow) == oracle(["/**"], [*blocked, *guarded], beside)


@given(LITERALS, PATHS)
def test_x_and_two_stars_is_exactly_x_and_beneath(root: str, path: str) -> None:
    rules = PathRules.compile((f"{root}/**",), (), HOME)
    inside = path == root or path.startswith(f"{root}/")
    assert isinstance(decide(path, rules=rules), Allow) == inside


@given(st.lists(PATTERNS, max_size=3), st.lists(PATTERNS, max_size=2), PATTERNS, PATHS)
def test_blocking_a_path_more_never_widens(allowed: list[str], blocked: list[str], more: str, path: str) -> None:
    before = decide(path, rules=PathRules.compile(allowed, blocked, HOME))
    after = decide(path, rules=PathRules.compile(allowed, [*blocked, more], HOME))
    assert after == before or (isinstance(after, Deny) and after.rule == "blocked_paths")


@given(st.lists(PATTERNS, max_size=3), st.lists(PATTERNS, max_size=2), PATHS, NAMES)
def test_beneath_a_blocked_path_everything_is_blocked(
    allowed: list[str], blocked: list[str], path: str, name: str
) -> None:
    rules = PathRules.compile(allowed, blocked, HOME)
    if decide(path, rules=rules).rule == "blocked_paths":
        beneath = path.rstrip("/") + "/" + name
        assert rule_of(beneath, rules=rules) == "blocked_paths"


@given(st.text(max_size=12), st.sampled_from(["read", "list", "enter", "write"]))
def test_every_text_gets_an_answer(path: str, purpose: Purpose) -> None:
    decision = decide(path, purpose)
    if isinstance(decision, Allow):
        assert path.startswith("/")
        assert "\0" not in path
    assert decision.reason.isprintable()


@given(st.text("ab./~", max_size=10))
def test_a_lexical_path_is_never_malformed(path: str) -> None:
    absolute = lexical_path("/srv/ws", path, HOME)
    everything = attrs.evolve(PathRules.compile(("/**",), (), HOME))
    assert isinstance(decide(absolute, rules=everything), Allow) == (path != "")
    assert lexical_path("/elsewhere", absolute, "/other") == absolute


def test_what_is_matched_is_every_depth_and_no_more() -> None:
    assert list(matched_depths(("a", "**"), ("a", "b"))) == [1, 2]
    assert list(matched_depths(("a",), ("a",))) == [1]
    assert list(matched_depths(("**",), ())) == [0]
    assert list(matched_depths(("a", "**", "b"), ("a", "b", "b"))) == [2, 3]


def test_a_star_is_any_characters_and_skips_none_of_its_pattern() -> None:
    assert not matches_name("*ab", "b")
    assert not matches_name("*ab", "xb")
    assert matches_name("*ab", "ab")
    assert matches_name("*ab", "xaab")


def test_what_lies_in_a_directory_is_decided_whatever_its_name() -> None:
    rules = PathRules.compile(["/srv/*", "/data/**"], ["/data/closed/**"], HOME)
    assert isinstance(decide_beneath(rules, "/srv"), Allow)
    assert isinstance(decide_beneath(rules, "/data/"), Allow)
    assert isinstance(decide_beneath(rules, "/srv/x"), Deny)
    assert isinstance(decide_beneath(rules, "/data/closed"), Deny)


def test_the_home_of_a_lexical_path_has_all_its_names() -> None:
    assert lexical_path("/", "~", HOME) == HOME
    assert lexical_path("/", "~/x", HOME) == f"{HOME}/x"


def test_the_paths_listed_in_a_refusal_are_bounded_and_counted() -> None:
    def reason(count: int) -> str:
        return decide("/x", rules=PathRules.compile([f"/p{number:02}" for number in range(count)], [], HOME)).reason

    assert "there are none" in reason(0)
    assert "more" not in reason(SHOWN_PATTERNS)
    assert "and 1 more" in reason(SHOWN_PATTERNS + 1)
    assert f"/p{SHOWN_PATTERNS:02}" not in reason(SHOWN_PATTERNS + 1)


def test_an_explanation_of_a_path_runs_nothing() -> None:
    lines = explain(decide("/etc/hosts"), ["/etc/hosts"]).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["asked", "decision", "rule", "reason"]
