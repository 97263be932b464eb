"""What a glob matches: by examples, and never an error of the regular expressions beneath."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox.inside.worker.globs import compile_globs, translate
from sandbox.kernel.files import Refused


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("*.py", ["a.py", "x/y/a.py", ".py"], ["a.pyc", "a.py/b"]),
        ("/*.py", ["a.py"], ["x/a.py"]),
        ("src/*.py", ["src/a.py"], ["src/x/a.py", "x/src/a.py"]),
        ("src/**/*.py", ["src/a.py", "src/x/y/a.py"], ["a.py"]),
        ("**/a", ["a", "x/a", "x/y/a"], ["xa"]),
        ("src/**", ["src/a", "src/x/y"], ["src", "srcx/a"]),
        ("a**b", ["ab", "axxb", "y/axb"], ["a/b"]),
        ("?.c", ["a.c", "x/b.c"], ["ab.c", ".c"]),
        ("[a-c]x", ["ax", "cx"], ["dx"]),
        ("[!a]x", ["bx"], ["ax"]),
        ("[]a]x", ["]x", "ax"], ["bx"]),
        ("a[/]b", [], ["a/b"]),
        ("[a", ["[a"], ["a"]),
        ("*.{py,t{x,s}t}", ["a.py", "a.txt", "a.tst"], ["a.tt", "a.{py"]),
        ("a,b", ["a,b"], ["a"]),
        ("a}", ["a}"], []),
        ("\\*\\{", ["*{"], ["a{"]),
        ("a\\", ["a\\"], []),
        ("[a-c&&b]", ["&", "b"], ["ab"]),
        ("a\nb*", ["a\nbc"], []),
    ],
)
def test_examples(glob: str, matching: list[str], others: list[str]) -> None:
    matches = compile_globs([glob])
    assert matches
    assert [path for path in matching if not matches(path)] == []
    assert [path for path in others if matches(path)] == []


def test_no_globs_are_no_matcher_and_several_are_one() -> None:
    assert compile_globs([]) is None
    either = compile_globs(["*.a", "x/*.b"])
    assert either
    assert either("1.a")
    assert either("x/1.b")
    assert not either("1.b")


@pytest.mark.parametrize("glob", ["{a", "{a,{b}", "[z-a]", "x[\\w-a]{"])
def test_a_glob_without_meaning_is_refused(glob: str) -> None:
    with pytest.raises(Refused) as refused:
        translate(glob)
    assert refused.value.kind == "pattern"


@given(glob=st.text(st.sampled_from("ab/*?[]{},!\\-^.&|~("), max_size=12))
@example(glob="[^]]")
@example(glob="[?--]")
@example(glob="[[a]")
@example(glob="[!]")
def test_any_text_is_a_glob_or_refused(glob: str) -> None:
    try:
        expression = translate(glob)
    except Refused:
        return
    re.compile(expression)


@given(name=st.text(min_size=1, max_size=10).filter(lambda name: "/" not in name))
def test_an_escaped_name_matches_itself_and_nothing_else(name: str) -> None:
    matches = compile_globs(["/" + "".join(f"\\{c}" for c in name)])
    assert matches
    assert matches(name)
    assert not matches(name + "x")
