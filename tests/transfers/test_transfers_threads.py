"""Work in a thread: what it returns and raises is its own, and want of a thread is told from both."""

from __future__ import annotations

import errno
import os

import pytest

from tests.transfers.test_transfers_upload_ends import no_thread
from transfers.threads import NoThread, run_in_thread


async def test_what_the_work_returns_and_raises_comes_through() -> None:
    assert await run_in_thread(divmod, 7, 3) == (2, 1)
    with pytest.raises(ZeroDivisionError):
        await run_in_thread(divmod, 7, 0)


async def test_an_error_of_the_work_is_not_taken_for_want_of_a_thread() -> None:
    def work() -> None:
        raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError, match="can't start new thread"):
        await run_in_thread(work)


async def test_want_of_a_thread_is_an_error_of_the_system_and_nothing_of_the_work_happened() -> None:
    begun = []
    async with no_thread():
        with pytest.raises(NoThread) as caught:
            await run_in_thread(begun.append, 1)
    assert (caught.value.errno, caught.value.strerror) == (errno.EAGAIN, os.strerror(errno.EAGAIN))
    assert begun == []
