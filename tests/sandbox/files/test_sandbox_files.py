"""Reading, resolving and listing through a real opener process."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from sandbox import wire
from sandbox.files.errors import (
    AccessDenied,
    BadPath,
    Changed,
    NotFound,
    OpenerGone,
    RanShort,
    Unanswered,
    WrongKind,
)
from tests.support.door import OTHER_UID, descriptors, needs_root, open_door, reachable, read, start_opener


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    return reachable(tmp_path)


async def test_a_file_is_resolved_and_read_with_its_facts(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"0123456789")
    async with open_door() as door:
        with await door.files.resolve(str(file), read=True) as found:
            assert found.path == str(file)
            status = file.stat()
            facts = found.facts
            assert (facts.kind, facts.size_bytes, facts.nlink) == ("file", 10, 1)
            assert facts.identity == (status.st_dev, status.st_ino)
            assert facts.mtime_ns == status.st_mtime_ns
            assert await door.files.read(found, 3, 4) == b"3456"
            assert await door.files.read(found, 8, 100) == b"89"
            assert await door.files.read(found, 100, 1) == b""


async def test_a_large_file_is_read_whole(tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "big").write_bytes(content)
    async with open_door() as door:
        assert await read(door.files, tmp_path / "big") == content


async def test_links_lead_to_the_real_path(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_text("x")
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "link").symlink_to(tmp_path / "folder/file")
    async with open_door() as door:
        with await door.files.resolve(str(tmp_path / "link")) as found:
            assert found.path == str(tmp_path / "real/file")


@pytest.mark.parametrize("path", ["/proc/self/root/etc/passwd", "/proc/self/cwd/x", "/proc/self/fd/1", "/dev/fd/1"])
async def test_magic_links_are_refused(path: str) -> None:
    async with open_door() as door:
        with pytest.raises(BadPath) as caught:
            await door.files.resolve(path, read=True)
        assert caught.value.errno_name == "ELOOP"


async def test_a_fifo_neither_blocks_nor_notices(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with open_door() as door:
        with await door.files.resolve(str(fifo), read=True) as found:
            assert found.facts.kind == "fifo"
            with pytest.raises(WrongKind, match="FIFO"):
                found.file()
            with pytest.raises(OSError, match="No such device"):  # ENXIO: it has no reader
                os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)


@pytest.mark.parametrize(
    ("path", "kind"), [("/dev/zero", "device"), ("/proc/self/environ", "kernel"), ("/sys/kernel", "kernel")]
)
async def test_what_is_no_file_of_a_disk_is_not_opened(path: str, kind: str) -> None:
    async with open_door() as door:
        with await door.files.resolve(path, read=True) as found:
            assert found.facts.kind == kind
            with pytest.raises(WrongKind):
                found.file()
            with pytest.raises(WrongKind):
                found.directory()


async def test_a_socket_is_not_a_file(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        async with open_door() as door:
            with await door.files.resolve(str(tmp_path / "s"), read=True) as found, pytest.raises(WrongKind):
                found.file()


async def test_a_directory_is_not_a_file_and_a_file_no_directory(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    async with open_door() as door:
        with await door.files.resolve(str(tmp_path), read=True) as found, pytest.raises(WrongKind, match="directory"):
            found.file()
        with await door.files.resolve(str(tmp_path / "f"), read=True) as found, pytest.raises(WrongKind):
            found.directory()


async def test_hard_links_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.link(tmp_path / "a", tmp_path / "b")
    async with open_door() as door:
        with await door.files.resolve(str(tmp_path / "b")) as found:
            assert found.facts.nlink == 2


@pytest.mark.parametrize(
    ("path", "error", "errno_name"),
    [
        ("/nonexistent/x", NotFound, "ENOENT"),
        ("/etc/passwd/x", NotFound, "ENOTDIR"),
        ("relative", BadPath, "EINVAL"),
        ("", BadPath, "EINVAL"),
        ("/a\0b", BadPath, "EINVAL"),
        ("/" + "a" * 300, BadPath, "ENAMETOOLONG"),
        ("/a" * 3000, BadPath, "ENAMETOOLONG"),
        ("/\ud800", BadPath, "EILSEQ"),
    ],
)
async def test_a_path_that_cannot_be_is_a_typed_error(path: str, error: type[Exception], errno_name: str) -> None:
    async with open_door() as door:
        for question in (door.files.resolve, door.files.place):
            with pytest.raises(error) as caught:
                await question(path)
            assert caught.value.errno_name == errno_name  # type: ignore[attr-defined]


async def test_an_error_text_escapes_what_would_fool_a_reader() -> None:
    async with open_door() as door:
        with pytest.raises(NotFound) as caught:
            await door.files.resolve("/none\n\x1b[31m\u202e\udcff")
        assert caught.value.sentence.isprintable()
        assert "\\n\\x1b[31m\\u202e\\udcff" in caught.value.sentence


@needs_root
async def test_the_opener_sees_with_the_eyes_of_its_user(shared: Path) -> None:
    (shared / "secret").write_text("root's")
    (shared / "secret").chmod(0o600)
    (shared / "closed").mkdir(mode=0o700)
    async with open_door(uid=OTHER_UID) as door:
        with await door.files.resolve(str(shared / "secret"), read=True) as found:
            assert found.path == str(shared / "secret")  # the policy is asked first
            with pytest.raises(AccessDenied):
                found.file()
        with pytest.raises(AccessDenied):
            await door.files.resolve(str(shared / "closed/x"))


async def test_a_removed_name_does_not_pass_as_another(tmp_path: Path) -> None:
    honest = tmp_path / "note (deleted)"
    honest.write_text("mine")
    async with open_door() as door:
        assert await read(door.files, honest) == b"mine"
        (tmp_path / "folder").mkdir()
        with await door.files.place(str(tmp_path / "folder/x")) as place:
            (tmp_path / "folder").rmdir()
            with pytest.raises(Changed):
                await door.files.overwrite(place, b"lost")


async def test_names_that_are_no_utf8_work_everywhere(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9 \xff"
    path = os.fsdecode(raw)
    async with open_door() as door:
        with await door.files.place(path) as place:
            await door.files.overwrite(place, b"strange")
        with await door.files.place(path) as place:
            await door.files.append(place, b"r")
        with await door.files.resolve(path, read=True) as found:
            assert os.fsencode(found.path) == raw
            assert await door.files.read(found, 0, 100) == b"stranger"
        with await door.files.resolve(str(tmp_path), read=True) as folder:
            listing = await door.files.list_directory(folder, limit=10)
        assert [os.fsencode(entry.name) for entry in listing.entries] == [b"caf\xe9 \xff"]


async def test_a_listing_is_sorted_capped_counted_and_follows_nothing(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("12345")
    (tmp_path / "a").mkdir()
    (tmp_path / "c").symlink_to("/etc/passwd")
    (tmp_path / ".hidden").touch()
    os.mkfifo(tmp_path / "d")
    async with open_door() as door:
        with await door.files.resolve(str(tmp_path), read=True) as found:
            listing = await door.files.list_directory(found, limit=3)
            assert [(e.name, e.kind) for e in listing.entries] == [("a", "directory"), ("b", "file"), ("c", "symlink")]
            assert listing.entries[1].size_bytes == 5
            assert (listing.total_count, listing.counted_all) == (4, True)
            everything = await door.files.list_directory(found, limit=100, include_hidden=True)
            assert [e.name for e in everything.entries] == [".hidden", "a", "b", "c", "d"]


@pytest.mark.parametrize("limit", [1000, 30_000])
async def test_a_huge_directory_is_listed_without_stopping_the_others(tmp_path: Path, limit: int) -> None:
    folder = tmp_path / "huge"
    folder.mkdir()
    for i in range(100_000 if limit == 1000 else 30_000):
        os.close(os.open(folder / f"{i:06}", os.O_CREAT, 0o600))
    async with open_door() as door:
        with await door.files.resolve(str(folder), read=True) as found:
            started = time.perf_counter()
            listing = await door.files.list_directory(found, limit=limit)
            assert time.perf_counter() - started < 3  # 0.1 s on an idle machine
    assert listing.total_count == (100_000 if limit == 1000 else 30_000)
    assert [e.name for e in listing.entries] == [f"{i:06}" for i in range(limit)]


async def test_many_tasks_get_each_their_own_answer(tmp_path: Path) -> None:
    for i in range(100):
        (tmp_path / str(i)).write_text(f"content {i}")

    async with open_door() as door:

        async def one(i: int) -> None:
            for _ in range(5):
                assert await read(door.files, tmp_path / str(i)) == f"content {i}".encode()
                with pytest.raises(NotFound):
                    await door.files.resolve(str(tmp_path / f"none{i}"))

        async with trio.open_nursery() as nursery:
            for i in range(100):
                nursery.start_soon(one, i)


async def test_a_question_cancelled_at_any_step_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("whole")
    async with open_door() as door:
        assert await read(door.files, tmp_path / "f") == b"whole"
        before = descriptors()
        for steps in range(12):
            with trio.CancelScope() as scope:

                async def cancel_later(scope: trio.CancelScope = scope, steps: int = steps) -> None:
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel_later)
                    with await door.files.resolve(str(tmp_path / "f"), read=True) as found:
                        await door.files.read(found, 0, 10)
            assert await read(door.files, tmp_path / "f") == b"whole"
        assert descriptors() == before


async def test_an_answer_that_comes_too_late_is_closed(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    async with open_door() as door:
        await read(door.files, tmp_path / "f")
        before = descriptors()
        door.opener.send_signal(signal.SIGSTOP)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(door.files.resolve, str(tmp_path / "f"))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        door.opener.send_signal(signal.SIGCONT)
        assert await read(door.files, tmp_path / "f") == b"x"  # answered after the twenty
        assert descriptors() == before


async def test_an_opener_that_hangs_does_not_hang_the_caller(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    async with open_door(answer_s=2) as door:
        await read(door.files, tmp_path / "f")
        door.opener.send_signal(signal.SIGSTOP)
        with pytest.raises(Unanswered, match="no answer within 2 s"):
            await door.files.resolve(str(tmp_path / "f"))
        door.opener.send_signal(signal.SIGCONT)
        assert await read(door.files, tmp_path / "f") == b"x"


async def test_the_death_of_the_opener_answers_every_question(tmp_path: Path) -> None:
    async with open_door() as door:
        (await door.files.resolve("/")).close()
        door.opener.send_signal(signal.SIGSTOP)
        gone = 0

        async def ask() -> None:
            nonlocal gone
            with pytest.raises(OpenerGone):
                await door.files.resolve("/")
            gone += 1

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            door.opener.kill()
        assert gone == 10
        with pytest.raises(OpenerGone):
            await door.files.place("/x")


def unread_answers(path: Path, *, open_files: int, questions: int) -> socket.socket:
    """Let an opener answer and end while nobody reads: what it opened stays under way in the socket returned."""
    ours, opener = start_opener(uid=0 if os.geteuid() else OTHER_UID, open_files=open_files)
    try:
        for number in range(questions):
            wire.send(ours, {"n": number, "op": "resolve", "path": str(path), "read": True})
        ours.shutdown(socket.SHUT_WR)
        assert opener.wait(20) == 0
    finally:
        opener.kill()
        opener.wait()
    return ours


def test_an_opener_refuses_what_is_more_than_its_user_may_have_under_way(shared: Path) -> None:
    (shared / "f").write_text("x")
    (shared / "f").chmod(0o644)
    answers = []
    with unread_answers(shared / "f", open_files=16, questions=40) as sock:
        while (answer := wire.receive(sock)) is not None:
            answers.append(answer)
    for _, fds in answers:
        for fd in fds:
            os.close(fd)
    served = [body["n"] for body, fds in answers if fds]
    assert [body["n"] for body, _ in answers] == list(range(40))
    assert served == list(range(len(served)))
    assert 0 < len(served) <= 17
    assert {body.get("errno") for body, fds in answers if not fds} == {errno.ETOOMANYREFS}


async def test_more_answers_than_a_user_may_have_under_way_are_refused_not_fatal(shared: Path) -> None:
    (shared / "f").write_text("x")
    (shared / "f").chmod(0o644)
    async with open_door(uid=0 if os.geteuid() else OTHER_UID, open_files=16) as door:
        assert await read(door.files, shared / "f") == b"x"
        refused = []

        async def ask() -> None:
            with pytest.raises(RanShort) as caught:
                await door.files.resolve(str(shared / "f"), read=True)
            refused.append(caught.value.errno_name)

        with unread_answers(shared / "f", open_files=256, questions=40):
            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(ask)
        assert refused == ["ETOOMANYREFS"] * 200
        assert await read(door.files, shared / "f") == b"x"


async def test_a_broker_that_leaves_ends_the_opener() -> None:
    async with open_door() as door:
        (await door.files.resolve("/")).close()
    assert door.opener.returncode == 0
