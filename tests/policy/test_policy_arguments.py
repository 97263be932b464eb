"""Arguments: every way in which a program would read a denied option is denied."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.arguments import find_denied, find_unlisted
from policy.known import KNOWN


def denied(entry: str, *words: str) -> bool:
    return find_denied(("program", *words), (entry,)) is not None


@pytest.mark.parametrize("word", ["--output", "--output=", "--output=x", "--outp", "--outp=x", "--o", "--o=x"])
def test_a_denied_long_option_is_denied_with_a_value_and_abbreviated(word: str) -> None:
    assert denied("--output", "a", word)


@pytest.mark.parametrize("word", ["--", "-", "--oneline", "--output-indicator-new=+", "output", "--Output", "-output"])
def test_another_option_is_not_mistaken_for_a_denied_long_one(word: str) -> None:
    assert not denied("--output", word)


@pytest.mark.parametrize("word", ["-o", "-ofile", "-xo", "-xofile"])
def test_a_denied_letter_is_denied_in_a_bundle_and_with_a_value(word: str) -> None:
    assert denied("-o", word)


@pytest.mark.parametrize("word", ["--o", "o", "-", "-O", "file-o"])
def test_what_is_no_bundle_is_not_mistaken_for_a_letter(word: str) -> None:
    assert not denied("-o", word)


def test_a_word_with_one_dash_is_denied_exactly() -> None:
    assert denied("-exec", ".", "-exec", "rm")
    assert not denied("-exec", "-executable", "-execdi", "exec")


def test_two_dashes_end_nothing() -> None:
    assert denied("--output", "--", "--output=x")


def test_an_entry_with_a_subcommand_holds_there_and_where_it_is_unclear() -> None:
    assert denied("grep -O", "grep", "-nOless")
    assert not denied("grep -O", "log", "-SOrder")
    assert denied("grep -O", "-C", "dir", "grep", "-O")
    assert denied("submodule foreach", "submodule", "foreach", "x")
    assert not denied("submodule foreach", "submodule", "status")
    assert not denied("submodule foreach", "log", "foreach")


@pytest.mark.parametrize("word", ["a", "-", "--", "--color", "--color=always", "-n", "-20", "-U5"])
def test_a_listed_flag_is_admitted(word: str) -> None:
    assert find_unlisted(("p", word), ("--color", "-n", "-NUM", "-U*")) is None


@pytest.mark.parametrize("word", ["--col", "--colors", "-n5", "-nx", "-x", "-2x", "---", "-\u0662"])
def test_any_other_flag_is_not(word: str) -> None:
    assert find_unlisted(("p", "a", word), ("--color", "-n", "-NUM")) == word


LETTERS = st.text("abcxyz", min_size=1, max_size=6)


@given(LETTERS, st.integers(1, 6), st.one_of(st.none(), st.text(max_size=5)))
def test_every_beginning_of_a_denied_option_is_denied(name: str, length: int, value: str | None) -> None:
    word = f"--{name[:length]}" + ("" if value is None else f"={value}")
    assert denied(f"--{name}", word)


@given(st.text(max_size=8), st.lists(st.text(max_size=5), max_size=3))
def test_only_arguments_are_looked_at_never_the_name_of_the_program(name: str, words: list[str]) -> None:
    assert find_denied((f"--x{name}", "a"), ("--x",)) is None
    found = find_denied(("p", *words), ("-o", "--output", "-exec"))
    assert found is None or found[0] in words


@given(st.sampled_from(sorted(KNOWN)), st.data())
def test_every_entry_of_the_known_programs_denies_its_own_spelling(name: str, data: st.DataObject) -> None:
    entry = data.draw(st.sampled_from(KNOWN[name].denied_args))
    assert find_denied((name, *entry.split()), KNOWN[name].denied_args)


def test_an_entry_with_a_subcommand_looks_at_all_that_follows_it() -> None:
    assert denied("grep -O", "grep", "-O")
    assert denied("submodule foreach", "submodule", "foreach")
    assert denied("a b -x", "a", "b", "-x")
    assert denied("bundle create", "-q", "create"), "an option in front of it: nobody knows"
    assert denied("grep -O", "-Oless", "grep"), "nor whether it is the option in front"
    assert not denied("grep grep", "grep", "x"), "the subcommand itself is no argument of it"


def test_an_argument_with_one_dash_is_denied_with_a_value_too_and_a_word_is_not() -> None:
    assert denied("-exec", "-exec=x")
    assert not denied("exec", "exec=x")
    assert denied("exec", "exec")
    assert not denied("xo", "-ao"), "a word of two letters is no letter"


def test_a_flag_stands_first_and_only_a_long_one_has_its_value_behind_a_sign() -> None:
    assert find_unlisted(("p", "-a"), ()) == "-a"
    assert find_unlisted(("p", "-n=5"), ("-n",)) == "-n=5"
    assert find_unlisted(("p", "--n=5"), ("--n",)) is None
    assert find_unlisted(("p", "-Ux"), ("-U*",)) is None
    assert find_unlisted(("p", "-x"), ("-U*",)) == "-x"
