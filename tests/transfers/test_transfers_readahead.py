"""Reading ahead: the bytes in their order, as far ahead as was said, and an error where it belongs."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from transfers.filestreams import reading_ahead
from transfers.refusals import SourceUnreadable

CONTENT = bytes(range(100))


async def read(offset: int, length: int) -> bytes:
    await trio.lowlevel.checkpoint()
    return CONTENT[offset : offset + length]


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 40))
def test_the_pieces_are_the_bytes_that_were_asked_for(start: int, stop: int, piece_bytes: int) -> None:
    async def check() -> None:
        async with reading_ahead(read, start, stop, piece_bytes) as ahead:
            for offset in range(start, stop, piece_bytes):
                assert await ahead.next() == CONTENT[offset : min(stop, offset + piece_bytes)]
            for _ in range(2):
                assert await ahead.next() == b""

    trio.run(check)


async def test_one_piece_is_used_one_waits_and_one_was_read_behind_it() -> None:
    offsets = []

    async def note(offset: int, length: int) -> bytes:
        offsets.append(offset)
        return await read(offset, length)

    async with reading_ahead(note, 0, 100, 10) as ahead:
        for taken in range(5):
            await trio.testing.wait_all_tasks_blocked()
            assert offsets == list(range(0, 10 * (taken + 2), 10))
            await ahead.next()


async def test_an_error_arrives_behind_what_was_read_before_it_and_stays() -> None:
    async def fail_at_twenty(offset: int, length: int) -> bytes:
        if offset == 20:
            raise SourceUnreadable("f", "Input/output error")
        return await read(offset, length)

    async with reading_ahead(fail_at_twenty, 0, 100, 10) as ahead:
        assert [await ahead.next() for _ in range(2)] == [CONTENT[:10], CONTENT[10:20]]
        for _ in range(2):
            with pytest.raises(SourceUnreadable):
                await ahead.next()


async def test_leaving_ends_the_reading() -> None:
    async with reading_ahead(read, 0, 100, 10) as ahead:
        await ahead.next()
    assert ahead.error is None
