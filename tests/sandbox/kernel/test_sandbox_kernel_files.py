"""Names, files without one, and room, by the calls that `os` lacks: on the real kernel, in this process or a child."""

from __future__ import annotations

import errno
import os
import resource
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandbox.kernel import files, mounting, namespaces, process, seccomp, syscalls
from sandbox.kernel.files import (
    flush_file_system,
    flush_names,
    free_bytes,
    open_nameless,
    rename_to_free_name,
    require_room,
    unflushed,
    unseen,
    write_at,
)
from sandbox.kernel.seccomp import Rule, has_any, refuse
from tests.sandbox.kernel.test_walls_seccomp import AS_ROOT, become_plain, in_child, outcome
from tests.support.descriptors import open_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = 4096
SMALL = 16 * PAGE  # of a file system of our own
O_TMPFILE = 0o20000000  # the kernel's own part of it


def rename(folder: Path, src: str, dst: str) -> str:
    fd = os.open(folder, os.O_PATH)
    try:
        return outcome(lambda: rename_to_free_name(fd, src, fd, dst))
    finally:
        os.close(fd)


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def refuse_renameat2(number: int) -> None:
    """Let renameat2 fail with *number*, as on a kernel or file system without it."""
    process.prctl(process.SET_NO_NEW_PRIVS, 1)
    program = (
        (seccomp.LOAD, 0, 0, seccomp.AT_NUMBER),
        (seccomp.EQUAL, 0, 1, files.SYS_RENAMEAT2),
        (seccomp.RETURN, 0, 0, refuse(number)),
        (seccomp.RETURN, 0, 0, seccomp.ALLOW),
    )
    seccomp.install(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))


# --- names


def test_a_file_takes_a_free_name_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    assert rename(tmp_path, "one", "two") == "EEXIST"
    assert texts(tmp_path) == {"one": "1", "two": "2"}
    assert rename(tmp_path, "one", "three") == "done"
    assert texts(tmp_path) == {"three": "1", "two": "2"}
    assert rename(tmp_path, "missing", "four") == "ENOENT"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EPERM])
def test_where_the_kernel_cannot_promise_it_the_name_is_looked_at_first(tmp_path: Path, number: int) -> None:
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").symlink_to("nowhere")  # what stands there may lead to nothing

    def attempt() -> list[str]:
        refuse_renameat2(number)
        return [rename(tmp_path, "one", name) for name in ("two", "three")]

    assert in_child(attempt) == ["EEXIST", "done"]
    assert (tmp_path / "three").read_text() == "1"
    assert (tmp_path / "two").is_symlink()


def test_another_failure_of_a_rename_is_told_and_nothing_moves(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")

    def attempt() -> str:
        refuse_renameat2(errno.EIO)
        return rename(tmp_path, "one", "two")

    assert in_child(attempt) == "EIO"
    assert texts(tmp_path) == {"one": "1"}


def test_a_file_system_is_flushed_or_the_kernel_says_why_not(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    flush_file_system(fd)
    os.close(fd)
    assert outcome(lambda: flush_file_system(fd)) == "EBADF"


@pytest.mark.parametrize(("path", "number"), [("/proc/self/net", errno.EINVAL), ("/dev/null", errno.ENOTDIR)])
def test_names_that_may_not_last_are_said_to_be_made_and_nothing_stays_open(path: str, number: int) -> None:
    fd = os.open(path, os.O_PATH)
    before = open_descriptors()
    with pytest.raises(files.Refused) as caught:
        flush_names(fd)
    assert (caught.value.kind, caught.value.number) == ("done", number)
    assert os.strerror(number) in caught.value.why
    assert open_descriptors() == before
    os.close(fd)


def test_names_are_flushed_where_their_directory_may_be_read_and_left_to_the_journal_elsewhere(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    before = open_descriptors()
    flush_names(fd)
    assert open_descriptors() == before
    tmp_path.chmod(0o311)

    def attempt() -> str:
        become_plain()
        flush_names(fd)
        return outcome(lambda: os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)))

    assert in_child(attempt) == "EACCES"
    os.close(fd)


@pytest.mark.parametrize("say", [unflushed, unseen])
def test_what_was_done_and_is_not_sure_says_the_kernels_reason_or_that_there_is_none(
    say: Callable[[OSError], files.Refused],
) -> None:
    told = say(OSError(errno.ENOSPC, "full"))
    assert (told.kind, told.number) == ("done", errno.ENOSPC)
    assert os.strerror(errno.ENOSPC) in told.why
    told = say(OSError("no number"))
    assert (told.kind, told.number) == ("done", errno.EIO)
    assert os.strerror(errno.EIO) in told.why


# --- files without a name


def look_at(fd: int, folder: Path) -> list[object]:
    write_at(fd, b"text", 2)
    status = os.fstat(fd)
    said = [status.st_mode & 0o777, status.st_nlink, os.pread(fd, 9, 0).decode(), os.get_inheritable(fd)]
    os.close(fd)
    return [*said, folder.stat().st_mode & 0o777, os.listdir(folder)]


@pytest.mark.parametrize("known", [True, False], ids=["O_TMPFILE", "without it"])
def test_a_nameless_file_is_private_wherever_it_is_made(tmp_path: Path, *, known: bool) -> None:
    folder = tmp_path / "deep" / "folder"

    def attempt() -> list[object]:
        os.umask(0)
        if not known:
            process.prctl(process.SET_NO_NEW_PRIVS, 1)
            rule = Rule("openat", refuse(errno.EOPNOTSUPP), has_any(2, O_TMPFILE))
            seccomp.install(seccomp.assemble(syscalls.this_machine(), (rule,)))
        os.close(open_nameless(str(folder)))
        return look_at(open_nameless(str(folder)), folder)

    assert in_child(attempt) == [0o600, 0, "\0\0text", False, 0o700, []]


def test_a_write_goes_on_where_the_kernel_stopped(tmp_path: Path) -> None:
    def attempt() -> list[object]:
        fd = open_nameless(str(tmp_path))
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6, hard))
        return [outcome(lambda: write_at(fd, b"abcdefgh", 1)), os.pread(fd, 9, 0).decode()]

    assert in_child(attempt) == ["EFBIG", "\0abcde"]


# --- room


def on_small_file_system(work: Callable[[int], list[object]]) -> list[object]:
    """Return what *work* says of a file system that holds SMALL bytes, of ours alone."""

    def attempt() -> list[object]:
        if not AS_ROOT:
            namespaces.unshare(namespaces.USER | namespaces.MOUNT)
        return work(mounting.make("tmpfs", 0, {"size": str(SMALL)}))

    said: list[object] = in_child(attempt)
    return said


def room(fd: int, needed: int, reserve: int) -> str:
    return outcome(lambda: require_room(fd, needed, reserve))


def test_room_is_counted_to_the_byte_and_asked_for_only_where_there_is_a_reserve() -> None:
    def work(fd: int) -> list[object]:
        return [
            free_bytes(fd),
            room(fd, SMALL - PAGE, PAGE),
            room(fd, SMALL - PAGE + 1, PAGE),
            room(fd, SMALL, 0),
            room(fd, 2 * SMALL, 0),
            room(fd, 0, 2 * SMALL),
        ]

    assert on_small_file_system(work) == [SMALL, "done", "ENOSPC", "done", "done", "done"]
