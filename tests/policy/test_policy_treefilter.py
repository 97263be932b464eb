"""The expressions for whole trees say what `decide_path` says, of every path and every rule."""

from __future__ import annotations

import re

import attrs
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policy.decision import Allow
from policy.path import PathRules, decide_path
from policy.pattern import Pattern
from policy.rules import ClosedPath
from policy.treefilter import tree_filter
from sandbox.inside.worker.walk import Rules

HOME = "/home/u"
NAMES = st.sampled_from(["a", "b", ".ssh", ".env", ".env.x", "ab", "a.so", "lib.SO.1", "a\nb", "\udcff", "x" * 9])
PARTS = st.one_of(NAMES, st.sampled_from(["*", "**", "?", "a*", "*b", ".env*", "*.*", "a?", "**b"]))
PATHS = st.lists(NAMES, max_size=5).map(lambda names: "/" + "/".join(names))


@st.composite
def patterns(draw: st.DrawFn) -> str:
    text = "/".join(draw(st.lists(PARTS, min_size=1, max_size=4)))
    return text if text.startswith("**") and text[2:3] in ("", "/") else f"/{text}"


def usable(text: str) -> bool:
    try:
        PathRules.compile([text], [], HOME)
    except ValueError:
        return False
    return True


RULES = st.lists(patterns().filter(usable), max_size=4)
OPENED = st.lists(st.lists(NAMES, min_size=1, max_size=3), max_size=2)


def rules_of(allowed: list[str], blocked: list[str], guarded: list[str], opened: list[list[str]]) -> PathRules:
    closed = [*blocked, *(ClosedPath(path=text, close="writing") for text in guarded)]
    roots = tuple(Pattern(text="/".join(parts), parts=(*parts, "**")) for parts in opened)
    return attrs.evolve(PathRules.compile(allowed, closed, HOME, [".so"]), opened=roots)


@given(allowed=RULES, blocked=RULES, guarded=RULES, opened=OPENED, paths=st.lists(PATHS, max_size=8))
@example(["/**"], ["**/.ssh/**", "**/.env"], [], [], ["/", "/.ssh", "/a/.ssh/b", "/a/.env", "/.env.x"])
@example(["/a/**", "/b"], [], [], [], ["/a", "/a/b", "/b", "/b/a", "/ab"])
@example(["/**"], ["/**"], ["/**"], [["a"]], ["/", "/a", "/a/b"])
@example(["/**"], ["/a/*", "**/.ssh/**"], ["**/.env"], [["a", "b"]], ["/a/b", "/a/b/.env", "/a/b/.ssh", "/a/.env"])
@example(["/**"], ["**/a/b/**", "**"], [], [["a"], ["a", "b"]], ["/a", "/a/b", "/a/b/a/b"])
@example(["/**"], ["**/b/x"], [], [["a"], ["a", "b"]], ["/a/b/x", "/a/c/b/x"])
@example(["/a/**/b"], [], [], [], ["/a/b", "/a/x/b", "/a/x/y/b", "/ab", "/a/x"])
@example(["/**"], ["/a/**/**/b"], ["**/c/**/d"], [], ["/a/b", "/a/x/b", "/a/x", "/c/d", "/x/c/y/d", "/c"])
@settings(deadline=None, max_examples=600)
def test_the_expressions_decide_as_the_rules_do(
    allowed: list[str], blocked: list[str], guarded: list[str], opened: list[list[str]], paths: list[str]
) -> None:
    rules = rules_of(allowed, blocked, guarded, opened)
    inside_walls = Rules(attrs.asdict(rules.tree))
    for path in paths:
        for purpose, says in (
            *((purpose, inside_walls.permit) for purpose in ("read", "list", "enter")),
            *((purpose, inside_walls.permit_change) for purpose in ("make", "remove")),
            ("write", inside_walls.permit_file),
        ):
            assert says(path) == isinstance(decide_path(rules, path, purpose), Allow), (path, purpose)


def test_the_last_name_of_what_is_closed_is_enough_for_a_walk_to_ask() -> None:
    names = rules_of(["/**"], ["/a/b", "**/c/d*/**"], ["/e"], []).tree.last_names
    assert [name for name in ("/b", "/dx", "/e", "/a", "/c", "/x") if re.match(names, name)] == ["/b", "/dx", "/e"]


def test_rules_have_their_expressions_with_them() -> None:
    rules = rules_of(["/a/**"], ["**/b"], ["/a/c"], [["a"]])
    assert rules.tree == tree_filter(
        allowed=rules.allowed,
        blocked=rules.blocked,
        guarded=rules.guarded,
        opened=rules.opened,
        blocked_extensions=rules.blocked_extensions,
    )
