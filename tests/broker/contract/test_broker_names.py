"""Every name that is shown can be sent back, and means the same bytes."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.contract.names import cursor_after, place_of_cursor, real_name, shown_path, usable_path

NAMES = st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name).map(os.fsdecode)
TRICKY = st.lists(st.sampled_from([b"\\", b"x", b"5c", b"ff", b"\xff", b"\xc3", b"\xa9", b"41", b"FF", b"/"])).map(
    lambda parts: os.fsdecode(b"".join(parts))
)


@given(name=NAMES | TRICKY)
@example(name="\\xff")
@example(name="\\\udcff")
@example(name="\\x5cx5c")
def test_a_shown_name_means_the_same_bytes_again(name: str) -> None:
    shown = shown_path(name)
    assert shown.encode() is not None  # Unicode, whatever the name is
    assert real_name(shown) == name


@given(text=st.text(max_size=30))
def test_other_text_has_no_second_meaning(text: str) -> None:
    if "\\x" not in text:
        assert real_name(text) == text
    assert real_name("a\\x41\\n\\xFF\\x7f") == "a\\x41\\n\\xFF\\x7f"


def test_bytes_that_make_a_character_together_are_that_character() -> None:
    assert real_name("caf\\xc3\\xa9") == "café"
    assert real_name("caf\\xe9") == "caf\udce9"
    assert shown_path("caf\udce9\n") == "caf\\xe9\n"


def test_paths_are_relative_where_a_tool_would_take_them_so() -> None:
    assert usable_path("/w/a/b", "/w") == "a/b"
    assert usable_path("/w", "/w") == "."
    assert usable_path("/wider", "/w") == "/wider"
    assert usable_path("/w/~", "/w") == "./~"
    assert usable_path("/a", "/") == "a"
    assert usable_path("/w/\udcff", "/w") == "\\xff"


@given(name=NAMES)
def test_a_cursor_stands_for_its_place(name: str) -> None:
    if not name.startswith("/"):
        assert place_of_cursor(cursor_after(name)) == name


@pytest.mark.parametrize("cursor", ["", "!", "YQ", "AA==", "L2E=", "é"])
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(ValueError):
        place_of_cursor(cursor)
