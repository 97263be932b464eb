"""What is opened by path, and what is said of it: each on the real kernel, in this process or in a child."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sandbox.inside.opener.names import facts_of
from sandbox.kernel import process, seccomp, syscalls
from sandbox.kernel.files import Held, Refused, file_system, kind_of, open_path, real_path, reopen
from tests.sandbox.kernel.test_walls_seccomp import become_plain, in_child, outcome
from tests.support.descriptors import open_descriptors

AS_WITHOUT = pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM], ids=["old kernel", "old filter"])


@contextmanager
def opened(path: str | Path, *, dir_fd: int | None = None, flags: int = 0) -> Iterator[int]:
    fd = open_path(str(path), flags=flags) if dir_fd is None else open_path(str(path), dir_fd=dir_fd, flags=flags)
    try:
        yield fd
    finally:
        os.close(fd)


def refused(fd: int) -> tuple[str, int, str, str]:
    with pytest.raises(Refused) as caught:
        real_path(fd)
    return caught.value.kind, caught.value.number, caught.value.why, str(caught.value)


# --- who closes


def test_what_is_held_is_closed_at_the_end_unless_it_is_kept(tmp_path: Path) -> None:
    before = open_descriptors()
    with Held(open_path(str(tmp_path))) as held:
        assert real_path(held.fd) == str(tmp_path)
    assert open_descriptors() == before
    with Held(open_path(str(tmp_path))) as held:
        kept = held.keep()
    assert real_path(kept) == str(tmp_path)
    os.close(kept)
    assert open_descriptors() == before


# --- opening


def test_opening_touches_nothing_and_children_do_not_inherit_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with opened(tmp_path / "fifo") as fd:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH
        assert not os.get_inheritable(fd)


def test_symbolic_links_are_followed_unless_they_shall_not_be(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "link").symlink_to("f")
    with opened(tmp_path / "link") as fd:
        assert real_path(fd) == str(tmp_path / "f")
    with opened(tmp_path / "link", flags=os.O_NOFOLLOW) as fd:
        assert real_path(fd) == str(tmp_path / "link")


def test_a_name_is_looked_for_in_the_directory_that_is_given(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with opened(tmp_path) as parent, opened("a", dir_fd=parent) as fd:
        assert real_path(fd) == str(tmp_path / "a")


def test_what_cannot_be_opened_is_named_by_the_kernels_error(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "loop").symlink_to("loop")
    said = {name: outcome(lambda name=name: open_path(str(tmp_path / name))) for name in ("missing", "f/x", "loop")}
    assert said == {"missing": "ENOENT", "f/x": "ENOTDIR", "loop": "ELOOP"}
    with pytest.raises(FileNotFoundError, match="No such file or directory"):
        open_path(str(tmp_path / "missing"))


def test_a_magic_link_is_not_stepped_through() -> None:
    os.close(os.open("/proc/self/root/etc", os.O_PATH))  # the control
    assert outcome(lambda: open_path("/proc/self/root/etc")) == "ELOOP"


def test_the_first_number_is_a_descriptor_too() -> None:
    def child() -> int:
        os.close(0)
        return open_path("/")

    assert in_child(child) == 0


@AS_WITHOUT
def test_where_the_call_is_missing_paths_are_opened_all_the_same(tmp_path: Path, number: int) -> None:
    (tmp_path / "a").touch()

    def child() -> list[str]:
        process.prctl(process.SET_NO_NEW_PRIVS, 1)
        rules = (seccomp.Rule("openat2", seccomp.refuse(number)),)
        seccomp.install(seccomp.assemble(syscalls.this_machine(), rules))
        parent = open_path(str(tmp_path))
        found = [parent, open_path("a", dir_fd=parent)]
        assert all(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH for fd in found)
        assert not any(os.get_inheritable(fd) for fd in found)
        return [*map(real_path, found), outcome(lambda: open_path(str(tmp_path / "missing")))]

    assert in_child(child) == [str(tmp_path), str(tmp_path / "a"), "ENOENT"]


def test_what_was_looked_at_is_opened_again_to_be_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    with opened(tmp_path / "f") as looked_at:
        (tmp_path / "f").rename(tmp_path / "g")
        fd = reopen(looked_at, os.O_RDONLY)
        try:
            assert os.read(fd, 100) == b"content"
            assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
            assert not os.get_inheritable(fd)
        finally:
            os.close(fd)


# --- where it is


def test_what_no_path_leads_to_has_no_real_path(tmp_path: Path) -> None:
    """An anonymous thing is known by a text of the kernel's, as a mount is that was taken away."""
    reading, writing = os.pipe()
    try:
        why = "it is not reachable from the root directory"
        assert refused(reading) == ("changed", errno.ESTALE, why, why)
    finally:
        os.close(reading)
        os.close(writing)
    with opened(tmp_path) as here:
        assert real_path(here) == str(tmp_path), "the control"


@pytest.mark.parametrize("other", ["nothing", "another file", "the file itself"])
def test_a_removed_file_is_told_from_one_that_is_called_so(tmp_path: Path, other: str) -> None:
    path, called_so = tmp_path / "f", tmp_path / "f (deleted)"
    path.touch()
    with opened(path) as fd:
        if other == "another file":
            called_so.touch()
        if other == "the file itself":
            os.link(path, called_so)
        path.unlink()
        why = "it was removed or replaced meanwhile"
        if other == "the file itself":  # its link is at the path that the kernel's text happens to be
            assert real_path(fd) == str(called_so)
        else:
            assert refused(fd) == ("changed", errno.ESTALE, why, why)


@pytest.mark.parametrize("directory", ["file", "loop", "gone"])
def test_a_removed_file_is_so_whatever_its_directory_is_by_now(tmp_path: Path, directory: str) -> None:
    path = tmp_path / "d/f"
    path.parent.mkdir()
    path.touch()
    with opened(path) as fd:
        path.unlink()
        path.parent.rmdir()
        if directory == "file":
            path.parent.touch()
        if directory == "loop":
            path.parent.symlink_to("d")
        assert refused(fd)[0] == "changed"


def test_a_removed_file_is_so_although_its_name_is_too_long_with_the_kernels_mark(tmp_path: Path) -> None:
    path = tmp_path / ("f" * 255)
    path.touch()
    with opened(path) as fd:
        path.unlink()
        assert refused(fd)[0] == "changed"


def test_a_name_that_cannot_be_looked_for_is_not_taken_for_a_removed_one() -> None:
    def child() -> str:
        become_plain()
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/f (deleted)"
            with open(path, "xb"), opened(path) as fd:
                os.chmod(folder, 0)
                try:
                    return outcome(lambda: real_path(fd))
                finally:
                    os.chmod(folder, 0o700)

    assert in_child(child) == "EACCES"


def test_a_file_may_be_called_as_if_it_were_removed(tmp_path: Path) -> None:
    (tmp_path / "f (deleted)").touch()
    with opened(tmp_path / "f (deleted)") as fd:
        assert real_path(fd) == str(tmp_path / "f (deleted)")


def test_where_a_file_is_can_be_said_although_nobody_may_look_into_its_directory_any_more() -> None:
    def child() -> bool:
        become_plain()
        with tempfile.TemporaryDirectory() as folder:
            path = f"{os.path.realpath(folder)}/f"
            with open(path, "xb"), opened(path) as fd:
                os.chmod(folder, 0)
                try:
                    assert outcome(lambda: os.lstat(path)) == "EACCES", "the control"
                    return real_path(fd) == path
                finally:
                    os.chmod(folder, 0o700)

    assert in_child(child)


# --- what it is


def kind_at(path: str | Path) -> str:
    with opened(path, flags=os.O_NOFOLLOW) as fd:
        return kind_of(fd, os.fstat(fd))


def test_each_kind_has_its_word(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    (tmp_path / "symlink").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    kinds = ("file", "directory", "symlink", "fifo", "socket")
    assert {kind: kind_at(tmp_path / kind) for kind in kinds} == {kind: kind for kind in kinds}
    assert kind_at("/dev/null") == "device"


def test_files_and_directories_of_the_kernel_are_its_own_kind_and_nothing_else_there_is() -> None:
    assert {path: kind_at(path) for path in ("/proc", "/proc/self/status", "/sys")} == {
        "/proc": "kernel",
        "/proc/self/status": "kernel",
        "/sys": "kernel",
    }
    assert kind_at("/proc/self") == "symlink"
    with ExitStack() as stack:
        for fd in (ends := os.openpty()):
            stack.callback(os.close, fd)
        assert kind_at(os.ttyname(ends[1])) == "device"


@pytest.mark.parametrize("path", ["/proc", "/sys", "/dev/pts", "/tmp", "/"])
def test_a_file_system_is_known_by_the_number_that_stat_says(path: str) -> None:
    said = subprocess.run(["stat", "-f", "-c", "%t", path], check=True, capture_output=True, text=True).stdout
    with opened(path) as fd:
        assert file_system(fd) == int(said, 16)


def test_what_is_not_open_is_on_no_file_system(tmp_path: Path) -> None:
    with opened(tmp_path) as fd:
        pass
    assert outcome(lambda: file_system(fd)) == "EBADF"


def test_the_facts_are_those_of_stat(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    path.chmod(0o4751)
    os.link(path, tmp_path / "g")
    status = path.stat()
    with opened(path) as fd:
        assert facts_of(fd) == {
            "path": str(path),
            "kind": "file",
            "size_bytes": 5,
            "mode": 0o4751,
            "nlink": 2,
            "uid": status.st_uid,
            "dev": status.st_dev,
            "ino": status.st_ino,
            "mtime_ns": status.st_mtime_ns,
        }
