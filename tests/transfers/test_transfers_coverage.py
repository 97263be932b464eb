"""Which bytes went out, against a set of numbers."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from transfers.filestreams import MAX_GAPS, Coverage

SIZE = 40
spans = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted), max_size=12)


@example([[5, 8], [2, 5], [0, 2]])
@example([[0, 2], [2, 5], [5, 8]])
@given(spans)
def test_coverage_is_what_a_set_of_bytes_says(asked: list[list[int]]) -> None:
    coverage, model = Coverage(SIZE), set[int]()
    for start, stop in asked:
        coverage.add(start, stop)
        model |= set(range(start, stop))
        assert coverage.covered_bytes == len(model)
        assert coverage.next_offset == next((byte for byte in range(SIZE) if byte not in model), SIZE)
        assert coverage.is_whole == (len(model) == SIZE)


def test_of_an_empty_file_nothing_is_missing() -> None:
    assert Coverage(0).is_whole


def test_scattered_pieces_beyond_the_limit_are_not_remembered() -> None:
    coverage = Coverage(10 * MAX_GAPS)
    for piece in range(MAX_GAPS + 50):
        coverage.add(5 * piece, 5 * piece + 2)
    assert coverage.covered_bytes == 2 * MAX_GAPS


def test_of_scattered_pieces_the_smallest_is_not_remembered() -> None:
    coverage = Coverage(10 * MAX_GAPS)
    for piece in range(MAX_GAPS):
        coverage.add(5 * piece, 5 * piece + 2)
    coverage.add(5 * MAX_GAPS, 5 * MAX_GAPS + 1)
    assert coverage.covered_bytes == 2 * MAX_GAPS
