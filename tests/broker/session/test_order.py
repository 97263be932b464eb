"""Changes of one name by many sessions: one after the other, none lost, nobody kept waiting for ever."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from broker.calls import Answer
from broker.contract.errors import BrokerError, ErrorCode
from broker.session.name_locks import LOCK_WAIT_S, Name, NameLocks, name_of
from sandbox.files.errors import OutcomeUnknown
from sandbox.files.files import open_files
from tests.support.door import Door, open_door, start_opener
from tests.support.whole import Whole, open_whole


def at_once(call: Callable[[], None]) -> None:
    call()


SESSIONS = 4
ROUNDS = 8


@asynccontextmanager
async def sessions(base: Path, count: int = SESSIONS) -> AsyncIterator[tuple[Whole, list[str]]]:
    async with open_whole(base) as whole:
        made = [await whole.ok("create_session", working_dir=str(whole.work)) for _ in range(count)]
        yield whole, [one["session_id"] for one in made]


async def raise_counter(whole: Whole, sid: str, *, known: bool) -> int:
    """Raise the number in `counter` by one until that was acknowledged ROUNDS times; return how often it was."""
    raised = 0
    while raised < ROUNDS:
        text = (await whole.ok("read_file", session_id=sid, path="counter"))["content"]
        expected = {"expected_sha256": hashlib.sha256(text.encode()).hexdigest()} if known else {}
        edit = {"path": "counter", "old_text": text, "new_text": f"{int(text) + 1}\n", **expected}
        answer = await whole.answer("edit_file", session_id=sid, **edit)
        if answer.is_error:
            assert answer.structured["error_name"] in {"FILE_CHANGED", "FILE_EDIT_MISMATCH"}, answer.structured
        raised += not answer.is_error
    return raised


@pytest.mark.parametrize("known", [False, True], ids=["old_text", "expected_sha256"])
@pytest.mark.bounded(120)
async def test_no_acknowledged_edit_is_lost(tmp_path: Path, *, known: bool) -> None:
    async with sessions(tmp_path) as (whole, sids):
        await whole.ok("write_file", session_id=sids[0], path="counter", content="0\n")
        raised: list[int] = []

        async def one(sid: str) -> None:
            raised.append(await raise_counter(whole, sid, known=known))

        async with trio.open_nursery() as nursery:
            for sid in sids:
                nursery.start_soon(one, sid)
        assert int((whole.work / "counter").read_text()) == sum(raised) == SESSIONS * ROUNDS


@pytest.mark.bounded(120)
async def test_first_appends_to_one_file_all_succeed(tmp_path: Path) -> None:
    async with sessions(tmp_path) as (whole, sids):
        lines = [f"{sid}:{number}\n" for sid in sids for number in range(6)]
        answers: list[Any] = []

        async def one(line: str) -> None:
            sid = line.partition(":")[0]
            answers.append(await whole.answer("write_file", session_id=sid, path="log", content=line, mode="append"))

        async with trio.open_nursery() as nursery:
            for line in lines:
                nursery.start_soon(one, line)
        assert [answer.structured for answer in answers if answer.is_error] == []
        assert sorted((whole.work / "log").read_text().splitlines(keepends=True)) == sorted(lines)


@pytest.mark.bounded(120)
async def test_appends_and_edits_of_one_file_keep_each_other(tmp_path: Path) -> None:
    async with sessions(tmp_path) as (whole, sids):
        await whole.ok("write_file", session_id=sids[0], path="counter", content="0 raised\n")
        lines = [f"line {number}\n" for number in range(100, 100 + 3 * ROUNDS)]
        raised = 0

        async def count(sid: str) -> None:
            nonlocal raised
            while raised < ROUNDS:
                first = {"path": "counter", "start_line": 1, "line_count": 1}
                old = str((await whole.ok("read_file", session_id=sid, **first))["content"])
                edit = {"path": "counter", "old_text": old, "new_text": f"{int(old.split(maxsplit=1)[0]) + 1} raised\n"}
                raised += not (await whole.answer("edit_file", session_id=sid, **edit)).is_error

        async def append(sid: str, mine: list[str]) -> None:
            for line in mine:
                await whole.ok("write_file", session_id=sid, path="counter", content=line, mode="append")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count, sids[0])
            for number, sid in enumerate(sids[1:]):
                nursery.start_soon(append, sid, lines[number::3])
        first, *others = (whole.work / "counter").read_text().splitlines(keepends=True)
        assert (int(first.split()[0]), sorted(others)) == (raised, lines)


CHANGES = {
    "write_file": {"path": "f", "content": "new"},
    "edit_file": {"path": "f", "old_text": "old", "new_text": "new"},
    "upload_file": {"path": "f", "chunk_data": "bmV3", "is_last": True},
    "move_path": {"source": "f", "destination": "g"},
    "copy_path": {"source": "other", "destination": "f", "overwrite": True},
    "delete_path": {"path": "f"},
}


@pytest.mark.parametrize("tool", CHANGES)
async def test_each_change_waits_for_its_turn_and_then_succeeds(tmp_path: Path, tool: str) -> None:
    async with sessions(tmp_path, 1) as (whole, (sid,)):
        for name in ("f", "other"):
            await whole.ok("write_file", session_id=sid, path=name, content="old")
        directory, answers, locks = whole.work.stat(), list[Answer](), whole.gateway._host.locks

        async def change() -> None:
            answers.append(await whole.answer(tool, session_id=sid, **CHANGES[tool]))

        async with (
            trio.open_nursery() as nursery,
            locks.hold([(directory.st_dev, directory.st_ino, "f")], "f", at_once),
        ):
            nursery.start_soon(change)
            while not any(lock.free.statistics().tasks_waiting for lock in locks._locks.values()):
                await trio.lowlevel.checkpoint()
            assert (whole.work / "f").read_text() == "old"
            assert not (whole.work / "g").exists()
        assert not answers[0].is_error, answers[0].structured
        assert locks.names == 0


async def test_other_spellings_of_a_name_take_the_same_turns(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "file").symlink_to("folder/F\u00fcr")
    spellings = ("folder/F\u00fcr", "link/F\u00fcr", "file", "folder/fu\u0308R")
    async with open_door() as one, open_door() as other:
        names = set()
        for door in (one, other):
            for spelling in spellings:
                with await door.files.place(str(tmp_path / spelling)) as place:
                    names.add(name_of(place))
            with await door.files.names.entry(str(tmp_path / "link/F\u00fcr")) as entry:
                names.add(name_of(entry))
        with await one.files.names.entry(str(tmp_path / "file")) as link_itself:
            assert name_of(link_itself) not in names
    assert len(names) == 1


ONE, TWO = (1, 1, "one"), (1, 1, "two")


async def hold(locks: NameLocks, *names: Name, heard: Callable[[str], None], end: trio.Event) -> None:
    async with locks.hold(names, "it", at_once):
        heard("+")
        await end.wait()
    heard("-")


async def test_turns_are_taken_in_the_order_of_asking_and_leave_nothing(autojump_clock: object) -> None:
    locks, order, end = NameLocks(), list[str](), trio.Event()
    async with trio.open_nursery() as nursery:
        for number in "1234":
            nursery.start_soon(_hold_as, locks, number, order, end)
            await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1):  # a caller who leaves the line holds up nobody behind him
            await hold(locks, ONE, heard=order.append, end=end)
        assert (order, locks.names) == (["1"], 1)
        end.set()
    assert (order, locks.names) == (["1", "2", "3", "4"], 0)


async def _hold_as(locks: NameLocks, number: str, order: list[str], end: trio.Event) -> None:
    async with locks.hold([ONE], "it", at_once):
        order.append(number)
        await end.wait()


async def test_who_waits_too_long_is_told_and_holds_nothing(autojump_clock: object) -> None:
    locks, end = NameLocks(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_hold_as, locks, "1", [], end)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        with pytest.raises(BrokerError) as caught:
            async with locks.hold([TWO, ONE], "it", at_once):
                raise AssertionError("nobody else may be here")
        assert (caught.value.code, caught.value.code.retryable) == (ErrorCode.FILE_BUSY, True)
        assert trio.current_time() - began == LOCK_WAIT_S
        with trio.fail_after(1):  # the name that it did get is free again
            async with locks.hold([TWO], "it", at_once):
                assert locks.names == 2
        end.set()
    assert locks.names == 0


async def test_two_names_are_never_waited_for_crosswise(autojump_clock: object) -> None:
    locks = NameLocks()

    async def move(*names: Name) -> None:
        for _ in range(20):
            async with locks.hold(names, "it", at_once):
                await trio.sleep(0.01)

    with trio.fail_after(LOCK_WAIT_S):
        async with trio.open_nursery() as nursery:
            for names in ((ONE, TWO), (TWO, ONE), (ONE,), (TWO, TWO)):
                nursery.start_soon(move, *names)
    assert (locks.names, locks.changes) == (0, 4 + 120 - 4)


async def replace_held(locks: NameLocks, door: Door, file: Path, data: bytes) -> None:
    with await door.files.place(str(file)) as place:
        async with (
            locks.hold([name_of(place)], str(file), door.files.when_settled),
            await door.files.part(place) as part,
        ):
            await part.fill(data)
            door.stop()
            await part.commit()


async def remove_cancelled(locks: NameLocks, door: Door, file: Path) -> None:
    with await door.files.names.entry(str(file)) as entry, trio.CancelScope() as scope:
        async with locks.hold([name_of(entry)], str(file), door.files.when_settled), trio.open_nursery() as nursery:
            door.opener.send_signal(signal.SIGSTOP)
            nursery.start_soon(door.files.names.remove, entry)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()


async def test_a_change_whose_caller_left_keeps_its_name_until_it_came(tmp_path: Path) -> None:
    locks, file = NameLocks(), tmp_path / "f"
    file.write_text("old")
    async with open_door() as frozen, open_door() as door:
        await remove_cancelled(locks, frozen, file)
        assert (locks.names, file.exists()) == (1, True)
        frozen.go_on()
        with await door.files.place(str(file)) as place:
            async with locks.hold([name_of(place)], "f", door.files.when_settled):
                assert not file.exists()
                await door.files.overwrite(place, b"next")
    assert (file.read_text(), locks.names) == ("next", 0)


@pytest.mark.parametrize("end", [signal.SIGCONT, signal.SIGKILL], ids=["goes on", "dies"])
async def test_a_change_that_may_yet_come_keeps_its_name_and_no_other(tmp_path: Path, end: signal.Signals) -> None:
    locks, file = NameLocks(), tmp_path / "f"
    file.write_text("old")
    async with open_door() as frozen, open_door() as door:
        with pytest.raises(OutcomeUnknown):
            await replace_held(locks, frozen, file, b"late")
        assert locks.names == 1
        with await door.files.place(str(tmp_path / "g")) as place:
            async with locks.hold([name_of(place)], "g", door.files.when_settled):
                await door.files.overwrite(place, b"served meanwhile")
        with await door.files.place(str(file)) as place:
            with trio.move_on_after(0.1) as waiting:
                async with locks.hold([name_of(place)], "f", door.files.when_settled):
                    raise AssertionError("the other change may still come")
            assert waiting.cancelled_caught
            os.kill(frozen.opener.pid, end)
            async with locks.hold([name_of(place)], "f", door.files.when_settled):
                assert file.read_text() == ("late" if end is signal.SIGCONT else "old")
                await door.files.overwrite(place, b"next")
        assert (file.read_text(), locks.names) == ("next", 0)


async def test_a_change_that_its_session_left_behind_keeps_its_name_until_the_opener_is_gone(tmp_path: Path) -> None:
    """Its socket is closed before it ends, and what it was asked for is still in there."""
    locks, file = NameLocks(), tmp_path / "f"
    file.write_text("old")
    ours, opener = start_opener()
    try:
        async with open_files(ours, answer_s=20) as files:
            frozen = Door(files, opener)
            await remove_cancelled(locks, frozen, file)
        assert locks.names == 1
        opener.send_signal(signal.SIGCONT)
        await trio.to_thread.run_sync(opener.wait)
        assert (locks.names, file.exists()) == (1, False)
        files.settle()
        assert locks.names == 0
    finally:
        opener.kill()
        opener.wait()


async def test_a_session_lets_go_of_its_names_when_it_is_gone(tmp_path: Path) -> None:
    async with sessions(tmp_path, 1) as (whole, (sid,)):
        freed = trio.Event()
        files = whole.gateway._host.supervisor.get("me", sid).own.files
        files._exchange._unsettled.add(-1)  # what only its end can answer
        files.when_settled(freed.set)
        await whole.ok("kill_session", session_id=sid)
        assert freed.is_set()


async def test_a_name_waits_for_no_change_that_was_left_after_its_own(tmp_path: Path) -> None:
    """A client that leaves one call after the other does not keep what it changed before."""
    for name in "fg":
        (tmp_path / name).write_text("old")
    freed = list[str]()
    async with open_door() as door:
        entry = door.files.names.entry
        with await entry(str(tmp_path / "f")) as one, await entry(str(tmp_path / "g")) as two:
            with trio.move_on_after(0.1):
                door.opener.send_signal(signal.SIGSTOP)
                await door.files.names.remove(one)
            door.files.when_settled(lambda: freed.append("f"))
            with trio.move_on_after(0.1):
                await door.files.names.remove(two)
            exchange = door.files._exchange
            first, later = sorted(exchange._unsettled)
            exchange._deliver({"n": first}, [])
            assert (freed, exchange._unsettled) == (["f"], {later})
            door.go_on()
