"""The new root: what was named is there with the rights it was given, nothing else is, and nothing leaks outside."""

from __future__ import annotations

import os
import socket
import stat
import string
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.kernel import namespaces, root
from sandbox.kernel.mounting import NO_DEV, NO_EXEC, NO_SUID, READ_ONLY
from sandbox.kernel.root import needed, trace
from tests.sandbox.kernel.test_walls_namespaces import SYSTEM, WORKSPACE, Walls, as_each, behind, enter, workspace
from tests.sandbox.kernel.test_walls_seccomp import in_child, needs_root, outcome

__all__ = ["workspace"]

SCRIPT = "#!/bin/sh\nexit 0\n"


def can_read(path: Path) -> str:
    return outcome(lambda: os.close(os.open(path, os.O_RDONLY)))


def can_write(path: Path) -> str:
    return outcome(lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)))


def can_execute(path: Path) -> str:
    """Execute for real, in a child, and say how that went."""

    def run() -> None:
        os.execv(path, [str(path)])  # noqa: S606

    pid = os.fork()
    if pid == 0:
        os._exit(1 if outcome(run) == "EACCES" else 2)
    return {0: "done", 1: "EACCES"}.get(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "odd")


def mountinfo() -> list[list[str]]:
    return [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]


@as_each
def test_the_root_holds_what_was_named_and_nothing_else(who: str) -> None:
    names = behind(Walls(who=who), lambda: sorted(os.listdir("/")))
    expected = {path.split("/")[1] for path in Walls(who=who).plan().binds if os.path.lexists(path)}
    assert set(names) == expected | {"dev", "proc", "tmp"}


@as_each
def test_programs_run_and_find_their_loader(who: str) -> None:
    assert behind(Walls(who=who), lambda: can_execute(Path("/bin/true"))) == "done"


@as_each
def test_the_workspace_is_at_its_own_path_and_writable(who: str, workspace: Path) -> None:
    walls = Walls(who=who, binds=((str(workspace), WORKSPACE),))
    assert behind(walls, lambda: can_write(workspace / "new")) == "done"
    assert (workspace / "new").exists()


@as_each
def test_the_workspace_may_be_noexec(who: str, workspace: Path) -> None:
    script = workspace / "script"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    for rights, expected in ((WORKSPACE, "done"), (WORKSPACE | NO_EXEC, "EACCES")):
        walls = Walls(who=who, binds=((str(workspace), rights),))
        assert behind(walls, lambda: can_execute(script)) == expected


@as_each
def test_a_file_may_be_bound_alone(who: str, workspace: Path) -> None:
    for name in ("shown", "hidden"):
        (workspace / name).write_text("x")
        (workspace / name).chmod(0o666)
    walls = Walls(who=who, binds=((str(workspace / "shown"), SYSTEM),))

    def look() -> list[str]:
        return [can_read(workspace / "shown"), can_write(workspace / "shown"), can_read(workspace / "hidden")]

    assert behind(walls, look) == ["done", "EROFS", "ENOENT"]


@as_each
def test_rights_follow_the_nearest_name(who: str, workspace: Path) -> None:
    """A read-only directory inside a writable one, and a writable one inside that."""
    frozen, loose = workspace / "frozen", workspace / "frozen" / "loose"
    loose.mkdir(parents=True)
    for path in (frozen, loose):
        path.chmod(0o777)
    binds = ((str(loose), WORKSPACE), (str(workspace), WORKSPACE), (str(frozen), SYSTEM))

    def look() -> list[str]:
        return [can_write(path / "new") for path in (workspace, frozen, loose)]

    assert in_child(look) == ["done"] * 3
    for path in (workspace, frozen, loose):
        (path / "new").unlink()
    assert behind(Walls(who=who, binds=binds), look) == ["done", "EROFS", "done"]


@needs_root
def test_root_of_the_session_cannot_change_the_system() -> None:
    def attack() -> list[str]:
        enter(namespaces.MOUNT | namespaces.PID)
        root.build(Walls(who="root").plan())
        places = ("/usr/walls", "/etc/walls", "/walls", "/dev/walls", "/sys/walls")
        return [can_write(Path(place)) for place in places]

    assert set(in_child(attack)) <= {"EROFS", "EPERM"}


@as_each
def test_no_mount_gives_set_user_ids_and_only_devices_are_devices(who: str, workspace: Path) -> None:
    walls = Walls(who=who, binds=((str(workspace), WORKSPACE),))
    for fields in behind(walls, mountinfo):
        place, options = fields[4], fields[5].split(",")
        assert "nosuid" in options, place
        assert "nodev" in options or place.startswith("/dev"), place
        assert "ro" in options or place.startswith(("/tmp", "/dev/shm", "/dev/pts", "/proc")), place


@as_each
def test_the_devices_that_programs_need_work(who: str) -> None:
    def use() -> list[object]:
        Path("/dev/null").write_bytes(b"x")
        master, terminal = os.openpty()
        return [
            Path("/dev/zero").open("rb").read(1) == b"\0",
            len(Path("/dev/urandom").open("rb").read(8)),
            os.ttyname(terminal),
            os.isatty(master),
            outcome(lambda: os.chmod("/dev/null", 0o600)) != "done",
            stat.S_ISCHR(os.stat("/dev/full").st_mode),
            sorted(set(os.listdir("/dev")) - {"fd", "stdin", "stdout", "stderr", "ptmx", "pts", "shm", *root.DEVICES}),
        ]

    assert behind(Walls(who=who), use) == [True, 8, "/dev/pts/0", True, True, True, []]


@as_each
def test_private_directories_are_the_sessions_own(who: str) -> None:
    outside = Path(tempfile.mkstemp(prefix="walls-")[1])
    inside = Path("/tmp/walls-inside")
    try:
        outside.chmod(0o644)
        assert in_child(lambda: can_read(outside)) == "done"
        look = behind(Walls(who=who), lambda: [can_read(outside), can_write(inside), os.listdir("/dev/shm")])
        assert look == ["ENOENT", "done", []]
        assert not inside.exists()
    finally:
        outside.unlink()


@as_each
def test_a_private_directory_holds_no_more_than_it_may(who: str) -> None:
    def fill() -> str:
        return outcome(lambda: Path("/tmp/big").write_bytes(bytes(3 << 20)))

    assert behind(Walls(who=who), fill) == "done"
    assert behind(Walls(who=who, private_bytes=2 << 20), fill) == "ENOSPC"


@as_each
def test_a_unix_socket_outside_cannot_be_connected_to(who: str, workspace: Path) -> None:
    path = workspace / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o777)
        server.listen()

        def connect() -> str:
            with socket.socket(socket.AF_UNIX) as client:
                return outcome(lambda: client.connect(str(path)))

        assert in_child(connect) == "done"
        assert behind(Walls(who=who), connect) == "ENOENT"


@as_each
def test_a_file_outside_cannot_even_be_asked_about(who: str, workspace: Path) -> None:
    secret = workspace / "secret"
    secret.write_text("x")
    assert in_child(lambda: outcome(lambda: os.stat(secret))) == "done"
    assert behind(Walls(who=who), lambda: outcome(lambda: os.stat(secret))) == "ENOENT"


@as_each
def test_the_old_root_is_out_of_reach(who: str, workspace: Path) -> None:
    secret = workspace / "secret"
    secret.write_text("x")

    def attack() -> list[str]:
        places = ("/proc/1/root", "/proc/self/root", "/proc/self/cwd", "/..", "/dev/fd/../..")
        return [can_read(Path(place + str(secret))) for place in places]

    assert set(behind(Walls(who=who), attack)) <= {"ENOENT", "EACCES"}


@as_each
def test_links_that_lead_to_a_bind_lead_there_inside_too(who: str, workspace: Path) -> None:
    (workspace / "real" / "deep").mkdir(parents=True)
    (workspace / "real" / "deep" / "file").write_text("x")
    (workspace / "link").symlink_to("real")
    named = workspace / "link" / "deep"
    walls = Walls(who=who, binds=((str(named), SYSTEM),))
    look = behind(
        walls, lambda: [can_read(named / "file"), can_read(workspace / "real/deep/file"), os.readlink("/bin")]
    )
    assert look == ["done", "done", "usr/bin"]


@as_each
def test_masks_hide_what_is_there_and_keep_it_in_place(who: str, workspace: Path) -> None:
    (workspace / ".ssh").mkdir()
    (workspace / ".ssh" / "id").write_text("secret")
    (workspace / ".env").write_text("secret")
    for path in (workspace / ".ssh", workspace / ".ssh" / "id", workspace / ".env"):
        path.chmod(0o777)
    masks = (str(workspace / ".ssh"), str(workspace / ".env"), str(workspace / "absent"))

    def attack() -> list[str]:
        folder, file = workspace / ".ssh", workspace / ".env"
        return [
            can_read(file),
            can_write(file),
            outcome(lambda: os.listdir(folder)),
            can_read(folder / "id"),
            can_write(folder / "new"),
            outcome(lambda: os.chmod(file, 0o700)),
            outcome(lambda: os.chmod(folder, 0o700)),
            outcome(lambda: os.rename(file, workspace / "moved")),
            outcome(lambda: os.rename(folder, workspace / "moved")),
            outcome(lambda: os.unlink(file)),
            outcome(lambda: os.link(file, workspace / "linked")),
        ]

    binds = ((str(workspace), WORKSPACE),)
    control = behind(
        Walls(who=who, binds=binds), lambda: [can_read(workspace / ".env"), can_read(workspace / ".ssh/id")]
    )
    assert control == ["done", "done"]
    refused = behind(Walls(who=who, binds=binds, masks=masks), attack)
    assert set(refused) <= {"EACCES", "EROFS", "EBUSY", "EPERM", "EXDEV"}
    assert (workspace / ".env").read_text() == "secret"


@as_each
def test_a_mask_reaches_through_a_link_and_all_names_of_a_directory(who: str, workspace: Path) -> None:
    (workspace / "keys").mkdir()
    (workspace / "keys" / "id").write_text("secret")
    (workspace / ".ssh").symlink_to("keys")
    walls = Walls(who=who, binds=((str(workspace), WORKSPACE),), masks=(str(workspace / ".ssh"),))
    look = behind(walls, lambda: [can_read(workspace / ".ssh/id"), can_read(workspace / "keys/id")])
    assert look == ["ENOTDIR", "EACCES"]  # the link itself is an empty file


@as_each
def test_what_is_missing_is_reported(who: str, workspace: Path) -> None:
    (workspace / "there").write_text("x")
    absent, there = str(workspace / "absent"), str(workspace / "there")

    def look() -> list[list[str]]:
        walls = Walls(who=who, binds=((absent, SYSTEM), (str(workspace), WORKSPACE)), masks=(absent, there))
        built = walls.raise_up()
        return [list(built.missing), list(built.closed.masked)]

    assert in_child(look) == [[absent], [there]]


@as_each
def test_nothing_is_made_in_a_tree_of_the_machine(who: str, workspace: Path) -> None:
    """Where a private directory has no place to be, it is left out rather than made on somebody's disk."""
    walls = Walls(who=who, binds=((str(workspace), WORKSPACE),), private=((str(workspace / "a" / "b"), WORKSPACE),))

    def look() -> list[str]:
        return list(walls.raise_up().missing)

    assert in_child(look) == [str(workspace / "a" / "b")]
    assert list(workspace.iterdir()) == []


@as_each
def test_the_machine_keeps_its_mounts(who: str, workspace: Path) -> None:
    before = mountinfo()
    behind(Walls(who=who, binds=((str(workspace), WORKSPACE),), masks=(str(workspace),)), lambda: None)
    assert mountinfo() == before


@as_each
def test_the_whole_machine_may_be_the_ground(who: str, workspace: Path) -> None:
    """A policy that allows everything still gets its own /proc, /dev and /tmp, and its masks."""
    (workspace / "secret").write_text("x")
    binds = (("/", WORKSPACE), (str(workspace), WORKSPACE))
    walls = Walls(who=who, binds=binds, masks=(str(workspace / "secret"),))

    def look() -> list[object]:
        return [
            sorted(set(os.listdir("/")) - {"lost+found"}),
            os.listdir("/tmp") == [workspace.name],
            can_write(workspace / "new"),
            can_read(workspace / "secret"),
            [name for name in os.listdir("/proc") if name.isdigit()],
        ]

    assert behind(walls, look) == [sorted(set(os.listdir("/")) - {"lost+found"}), True, "done", "EACCES", ["1"]]


@as_each
def test_a_failing_step_says_at_what(who: str) -> None:
    def attempt() -> str:
        try:
            Walls(who=who, private=(("/tmp", 1 << 31),)).raise_up()  # there is no such right
        except OSError as error:
            return error.strerror or ""
        return "done"

    assert in_child(attempt) == "tmpfs: Invalid argument"


names = st.text(string.ascii_lowercase, min_size=1, max_size=2)
paths = st.lists(names, max_size=4).map(lambda parts: "/" + "/".join(parts))


@given(
    binds=st.dictionaries(paths, st.sampled_from([SYSTEM, WORKSPACE]), max_size=6), special=st.sets(paths, max_size=2)
)
def test_leaving_out_what_is_shown_anyway_changes_no_right(binds: dict[str, int], special: set[str]) -> None:
    def rights_at(table: Any, path: str) -> int | None:
        while True:
            if path in table:
                return int(table[path])
            if path == "/" or path in special:
                return None
            path = os.path.dirname(path)

    binds = {path: rights for path, rights in binds.items() if path not in special}
    kept = dict(needed(binds, special))
    assert kept.items() <= binds.items()
    for path in binds:
        assert rights_at(kept, path) == rights_at(binds, path)


def test_a_trace_agrees_with_realpath(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "up").symlink_to("a/../a/b")
    (tmp_path / "a" / "out").symlink_to(tmp_path / "up")
    for name in ("a/b", "up", "a/out", "a/out/..", "up/../b/."):
        real, links = trace(str(tmp_path / name))
        assert real == os.path.realpath(tmp_path / name)
        assert all(os.readlink(link) == target for link, target in links)


def test_a_trace_in_circles_ends(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels"):
        trace(str(tmp_path / "loop"))


def test_rights_are_the_kernels_numbers() -> None:
    assert (READ_ONLY, NO_SUID, NO_DEV, NO_EXEC) == (1, 2, 4, 8)
