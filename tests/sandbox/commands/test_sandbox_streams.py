"""What is kept of a command's output."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from sandbox.commands.streams import Output


@given(pieces=st.lists(st.binary(min_size=1, max_size=50), max_size=20), limit=st.integers(0, 200))
def test_an_output_keeps_the_first_bytes_and_counts_all(pieces: list[bytes], limit: int) -> None:
    output = Output(limit)
    for piece in pieces:
        os.write(output.theirs, piece)
        assert output.pump()
    output.close_theirs()
    assert not output.pump()
    output.close()
    whole = b"".join(pieces)
    assert output.captured().data == whole[:limit]
    assert output.captured().total_bytes == len(whole)
    assert output.captured().truncated == (len(whole) > limit)
