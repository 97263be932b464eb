"""Output without control sequences, whole and in pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.tools.ansi import strip_ansi, whole_sequences


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[38;5;196;48:2::1:2:3mcolours\x1b[m", "colours"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;https://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1$r0m\x1b\\dcs", "dcs"),
        ("\x1b(Bset \x1b7save\x1b8", "set save"),
        ("10%\r20%\r100%\n", "10%\n20%\n100%\n"),
        ("dos\r\nlines\r\r\n", "dos\nlines\n"),
        ("N\bNA\bAM\bME\bE", "NAME"),
        ("bell\x07 and \x00nul\x9bm", "bell and nul"),
        ("ümläut \u2713", "ümläut \u2713"),
    ],
)
def test_only_what_a_terminal_understands_goes(said: str, shown: str) -> None:
    assert strip_ansi(said) == shown


@given(st.text(st.characters(exclude_categories=("Cc", "Cs")) | st.just("\n") | st.just("\t")))
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert strip_ansi(text) == text


@pytest.mark.parametrize("sequence", ["\x1b[1;31m", "\x1b]0;a title\x07", "\x1b]8;;x\x1b\\", "\x1b(B", "\x1bM"])
def test_a_page_never_ends_inside_a_sequence(sequence: str) -> None:
    said = f"before{sequence}after".encode()
    for cut in range(len("before") + 1, len("before") + len(sequence)):
        assert whole_sequences(said[:cut]) == b"before"
    assert whole_sequences(said) == said


@given(st.text(alphabet="\x1b[]0;m\x07\\ab\r\n\x08", max_size=30))
def test_nothing_of_a_sequence_is_ever_left(text: str) -> None:
    assert not set(strip_ansi(text)) & {"\x1b", "\x07", "\x08", "\r"}


@pytest.mark.parametrize("said", ["\r", "\r\n", "\x1b]", "\x1b[0", "x\x08"])
def test_a_megabyte_of_anything_is_done_at_once(said: str) -> None:
    """It runs where everybody waits: what took the square of its length would pass the bound of any test."""
    assert not set(strip_ansi(said * (1_000_000 // len(said)))) & {"\x1b", "\x08", "\r"}
