"""An edit is exact, and its diff, applied by somebody else, makes the same file."""

from __future__ import annotations

import re
import shutil
import subprocess
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.tools.edit_text import (
    COPIED_BYTES,
    DIFF_CHARACTERS,
    GROUP_BYTES,
    Edited,
    lines_of,
    occurrences,
    replace_exactly,
)

TEXTS = st.lists(st.sampled_from(["a", "b", "\n", "\n\n", "ab\n", "x", "\r\n", "é"]), max_size=40).map("".join)
HUNK = re.compile(r"@@ -(\d+),(\d+) \+(\d+),(\d+) @@")


def edit(text: str, old: str, new: str) -> Edited:
    return replace_exactly(text.encode(), old.encode(), new.encode(), "f")


def made(edited: Edited) -> bytes:
    return b"".join(edited.pieces)


def applied(text: str, diff: str) -> str:
    """*text* with a unified diff applied, strictly: every kept and removed line must be there."""
    old, new, at = lines(text), list[str](), 0
    rows = diff.split("\n")[2:-1] if diff else []
    counts = [0, 0]
    for number, row in enumerate(rows):
        ends = "" if rows[number + 1 : number + 2] == ["\\ No newline at end of file"] else "\n"
        if header := HUNK.fullmatch(row):
            assert counts == [0, 0]
            start, counts = int(header[1]), [int(header[2]), int(header[4])]
            skip = start - (counts[0] > 0) - at
            new += old[at : at + skip]
            at += skip
            assert len(new) == int(header[3]) - (counts[1] > 0)
        elif row.startswith("+"):
            new.append(row[1:] + ends)
            counts[1] -= 1
        elif row.startswith((" ", "-")):
            assert old[at] == row[1:] + ends
            new += [old[at]] if row[0] == " " else []
            counts = [counts[0] - 1, counts[1] - (row[0] == " ")]
            at += 1
        else:
            assert row.startswith("\\")
    assert counts == [0, 0]
    return "".join(new + old[at:])


def lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+", text)


@given(text=TEXTS, old=st.sampled_from(["a", "b", "\n", "ab", "a\n", "\nx", "\n\n", "é"]), new=TEXTS)
@example(text="a\nb", old="\n", new="")
@example(text="a", old="a", new="")
@example(text="x\na\nx\nx\nx\nx\nx\nx\nx\na", old="a", new="b")
@example(text="x\n" * 7 + "a\n" + "x\n" * 6 + "a", old="a", new="\n")
def test_the_diff_of_an_edit_makes_the_edited_file(text: str, old: str, new: str) -> None:
    edited = edit(text, old, new)
    assert made(edited).decode() == text.replace(old, new)
    assert applied(text, edited.diff) == made(edited).decode()
    assert (edited.diff == "") == (made(edited).decode() == text)


@given(text=TEXTS, old=st.text("ab\n", min_size=1, max_size=3))
def test_occurrences_are_counted_as_they_are_replaced(text: str, old: str) -> None:
    places = tuple(occurrences(text.encode(), old.encode()))
    assert len(places) == text.count(old)
    assert lines_of(text.encode(), old.encode()) == tuple(
        text.encode()[:place].count(b"\n") + 1 for place in places[:10]
    )


@pytest.mark.skipif(shutil.which("patch") is None, reason="there is no patch(1) here")
def test_patch_takes_it(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(100)) + "the end"
    edited = edit(text, "5", "five\n")
    (tmp_path / "f").write_text(text)
    subprocess.run(["patch", "-p1", "-s"], input=edited.diff, text=True, cwd=tmp_path, check=True)
    assert (tmp_path / "f").read_bytes() == made(edited)


def test_bytes_that_are_no_text_stay_what_they_are() -> None:
    data = b"\xff\xfe one \x80\n"
    edited = replace_exactly(data, b"one", b"two", "f")
    assert made(edited) == b"\xff\xfe two \x80\n"
    assert edited.diff.encode()


@pytest.mark.parametrize("length", [COPIED_BYTES, COPIED_BYTES + 1])
@pytest.mark.parametrize("text", ["aab", "b", "-a-a", "baab-aa", "aaaa", "-\naa\n"])
def test_a_long_text_comes_to_the_same_places(text: str, length: int) -> None:
    new = "n" * length
    assert made(edit(text, "aa", new)).decode() == text.replace("aa", new)
    assert made(edit(text, "b", new)).decode() == text.replace("b", new)


def test_a_long_text_is_not_copied_however_often_it_comes() -> None:
    data, new = b"a-" * 50, bytearray(b"n") * (8 << 20)
    tracemalloc.start()
    try:
        edited = replace_exactly(data, b"a", new, "f")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(map(len, edited.pieces)) == 50 * (1 + len(new))
    assert peak_bytes < len(new) // 4


@pytest.mark.long
@pytest.mark.once
@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("some words here\n" * 500_000, "words", "text"),
        ("words " * 500_000, "words", "text"),  # all on one line
        ("\n" * 2_000_000, "\n", "\n\n"),  # each shares a line with the next
        ("x\n" * 2_000_000 + "once", "once", "twice"),
        ("once" + "\nx" * 2_000_000, "once", "twice"),
    ],
)
def test_a_large_edit_takes_memory_for_its_text_only(text: str, old: str, new: str) -> None:
    """An object for each line misses the bound by far, and a quadratic search does not come to an end."""
    data = text.encode()
    expected = len(data.replace(old.encode(), new.encode()))
    tracemalloc.start()
    try:
        edited = replace_exactly(data, old.encode(), new.encode(), "f")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes - expected < 4 * (len(data) + GROUP_BYTES)
    assert edited.diff_truncated == (data.count(old.encode()) > 1)
    assert len(edited.diff) <= DIFF_CHARACTERS
