from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.yamlnodes import DEPTH_LIMIT, parse_yaml


def told(text: str) -> list[str]:
    return [str(fault) for fault in parse_yaml(text, "f.yaml").faults]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# only a comment\n", None),
        ("a: 1", {"a": 1}),
        ("a: -1_000", {"a": -1000}),
        ("a: 0.5", {"a": 0.5}),
        ("a: 1.5e+3", {"a": 1500.0}),
        ("a: [yes, false]", {"a": [True, False]}),
        ("a: ~\nb:", {"a": None, "b": None}),
        ("a: '010'\nb: \"true\"", {"a": "010", "b": "true"}),
        ("a: 2024-01-01\nb: localhost:8080\nc: =", {"a": "2024-01-01", "b": "localhost:8080", "c": "="}),
        ("a: !\n", {"a": ""}),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
        ("\ufeffa: 1".removeprefix("\ufeff"), {"a": 1}),
    ],
)
def test_plain_yaml_reads_as_people_read_it(text: str, value: object) -> None:
    document = parse_yaml(text, "f.yaml")
    assert document.faults == ()
    assert document.root.plain() == value


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml:3: a: given twice; the first is on line 1"),
        ("a: 010", "f.yaml:1: a: 010 is an ambiguous number: write plain decimal, or quote it as text"),
        ("a: 1:30", "f.yaml:1: a: 1:30 is an ambiguous number: write plain decimal, or quote it as text"),
        ("a: 0x10", "f.yaml:1: a: 0x10 is an ambiguous number: write plain decimal, or quote it as text"),
        ("a: .inf", "f.yaml:1: a: .inf is not a finite number"),
        ("a: [1,\n .NaN]", "f.yaml:2: a[1]: .NaN is not a finite number"),
        ("a: 1.0e+999", "f.yaml:1: a: 1.0e+999 is not a finite number"),
        ("a: " + "9" * 5000, "f.yaml:1: a: a number of 5000 characters is too long"),
        ('a: "x\\0"', "f.yaml:1: a: text must not contain NUL or half a surrogate pair"),
        ("yes: 1", "f.yaml:1: yes: a key must be text: put it in quotes"),
        ("? [a]\n: b", "f.yaml:1: a key must be text, not a list, a mapping or an alias"),
        ("a: &x 1", "f.yaml:1: anchors (&) and aliases (*) are not accepted: write the value out"),
        ("a: *x", "f.yaml:1: anchors (&) and aliases (*) are not accepted: write the value out"),
        ("*x : 1", "f.yaml:1: a key must be text, not a list, a mapping or an alias"),
        ("\na: !!str 1", "f.yaml:2: the tag tag:yaml.org,2002:str is not accepted: write a plain value"),
        ("a: 1\n---\nb: 2", "f.yaml:2: a second document starts here (---); only one is read"),
        ("[" * 2 * DEPTH_LIMIT, f"f.yaml:1: nested deeper than {DEPTH_LIMIT} levels"),
        ("a: " + "{b: " * 2 * DEPTH_LIMIT, f"f.yaml:1: nested deeper than {DEPTH_LIMIT} levels"),
    ],
)
def test_what_is_easily_misread_is_refused(text: str, fault: str) -> None:
    assert told(text) == [fault]


@pytest.mark.parametrize("text", ["[" * 1_000_000, "a: " + "{b: " * 100_000])
def test_a_nesting_without_end_is_one_fault_in_whoevers_words(text: str) -> None:
    # The parser reads ahead, so a limit of its own may come before ours.
    (fault,) = told(text)
    assert fault.startswith("f.yaml:1: ")


@pytest.mark.parametrize("text", ["a: [1", "a: 'x", "a: b: c", "\tx: 1", "a: \x07", "%YAML 9.9\n---\na"])
def test_a_syntax_error_is_one_fault_with_its_line(text: str) -> None:
    (fault,) = told("# first line\n" + text if not text.startswith("%") else text)
    assert fault.startswith("f.yaml:")
    assert "not valid YAML: " in fault


def test_faults_of_values_do_not_hide_each_other() -> None:
    assert len(told("a: 010\na: 1\nb: .inf\n8: x\n")) == 4


def test_a_node_knows_the_line_of_its_key() -> None:
    root = parse_yaml("a:\n\n  b:\n    - x\n    - y: 1\n      z: 2\n", "f.yaml").root
    assert root.at(("a",)).line == 1
    assert root.at(("a", "b")).line == 3
    assert root.at(("a", "b", 1)).line == 5
    assert root.at(("a", "b", 1, "z")).line == 6
    assert root.at(("a", "b", 1, "absent", 3)).line == 5
    assert root.at(("a", "b", 9)).line == 3


@given(st.text(max_size=200) | st.text(alphabet="{}[]:,-?&*!|>'\"%@#\n ab1.~", max_size=200))
def test_any_text_gives_a_document_or_faults(text: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        text = text.encode("utf-8", "replace").decode()
    document = parse_yaml(text, "f.yaml")
    assert all(fault.line >= 1 and "\n" not in str(fault) for fault in document.faults)
