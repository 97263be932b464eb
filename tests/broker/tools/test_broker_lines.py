"""Lines are found where a list of lines has them, however small the blocks."""

from __future__ import annotations

import functools
import re
import sys

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from broker.tools.read import LineStart, ReadRange, count_lines, find_last_lines, find_line, first_lines

DATA = st.lists(st.sampled_from([b"a", b"\n", b"\r\n", b"xyz"]), max_size=12).map(b"".join)


def reader(data: bytes) -> ReadRange:
    async def read(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    return read


@pytest.fixture(autouse=True, params=[1, 3, 1 << 20])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.tools.read.BLOCK_BYTES", request.param)


@given(data=DATA, number=st.integers(1, 14))
@example(data=b"a\nb", number=3)
def test_a_line_begins_where_it_begins(data: bytes, number: int) -> None:
    every = data.split(b"\n")
    expected = len(b"\n".join(every[: number - 1])) + 1 if 1 < number <= len(every) else 0 if number == 1 else len(data)
    assert trio.run(find_line, reader(data), number) == LineStart(expected, number)


@given(data=DATA, count=st.integers(1, 14))
@example(data=b"a\n\n", count=1)
def test_the_last_lines_are_the_last_lines(data: bytes, count: int) -> None:
    every = re.findall(rb"[^\n]*\n|[^\n]+", data)
    found = trio.run(functools.partial(find_last_lines, reader(data), count, len(data)))
    assert data[found.offset :] == b"".join(every[-count:])
    assert found.number in (None, 1)
    assert found.number is None or found.offset == 0


@given(data=DATA, count=st.integers(1, 5))
def test_lines_are_counted_and_cut(data: bytes, count: int) -> None:
    cut = first_lines(data, count)
    assert data.startswith(cut)
    assert count_lines(cut) == min(count, count_lines(data))


def test_many_lines_take_few_looks() -> None:
    """They are looked for where every call waits."""
    data = b"\n" * 1_000_000
    looks = 0

    def count(_frame: object, event: str, _called: object) -> None:
        nonlocal looks
        looks += event == "c_call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        cut = first_lines(data, len(data) - 1)
    finally:
        sys.setprofile(before)
    assert len(cut) == len(data) - 1
    assert looks < 100
