"""The expressions for whole trees say what `decide_path` says, of every path and every rule."""

from __future__ import annotations

import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from policy.decision import Allow
from policy.path import PathRules, decide_path
from policy.treefilter import tree_filter

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


@given(allowed=RULES, blocked=RULES, paths=st.lists(PATHS, max_size=8))
@example(allowed=["/**"], blocked=["**/.ssh/**", "**/.env"], paths=["/", "/.ssh", "/a/.ssh/b", "/a/.env", "/.env.x"])
@example(allowed=["/a/**", "/b"], blocked=[], paths=["/a", "/a/b", "/b", "/b/a", "/ab"])
@example(allowed=["/**"], blocked=["/**"], paths=["/", "/a"])
@settings(deadline=None, max_examples=400)
def test_the_expressions_decide_as_the_rules_do(allowed: list[str], blocked: list[str], paths: list[str]) -> None:
    rules = PathRules.compile(allowed, blocked, HOME, [".so"])
    tree = tree_filter(rules)
    extensions = set(tree.blocked_extensions)
    for path in paths:
        text = "" if path == "/" else path
        permitted = bool(
            re.fullmatch(tree.allowed, text)
            and not re.match(tree.blocked_from_root, text)
            and not re.search(tree.blocked_anywhere, text)
        )
        writable = permitted and extensions.isdisjoint(path.rpartition("/")[2].lower().split(".")[1:])
        assert permitted == isinstance(decide_path(rules, path, "read"), Allow), path
        assert writable == isinstance(decide_path(rules, path, "write"), Allow), path
