"""Namespaces on the real kernel, as root and as a plain user in a user namespace: what is in sight, what ends with it.

`behind_walls` is what the other test_walls_namespaces files stand on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sandbox.init.spare import PACKAGE_PARENT
from sandbox.inside.init.trial import reap_all
from sandbox.kernel import masks, mounting, namespaces, process, root
from sandbox.kernel.mounting import NO_DEV, NO_SUID, READ_ONLY
from tests.sandbox.kernel.test_walls_seccomp import (
    AS_ROOT,
    CHILD_S,
    PLAIN_UID,
    become_plain,
    in_child,
    needs_root,
    outcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EVERYTHING = namespaces.MOUNT | namespaces.PID | namespaces.IPC | namespaces.UTS | namespaces.CGROUP | namespaces.NET
SYSTEM = READ_ONLY | NO_SUID | NO_DEV
WORKSPACE = NO_SUID | NO_DEV
SYSTEM_PATHS = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/sys")


def why_no_user_namespace() -> str:
    """Say why a plain user can have none here, or nothing."""

    def attempt() -> str:
        become_plain()
        try:
            namespaces.unshare(namespaces.USER | namespaces.MOUNT)
            mounting.make_private()
        except OSError as error:
            return str(error)
        return ""

    return str(in_child(attempt))


WHY_NOT = why_no_user_namespace()
AS_USER = pytest.param("user", marks=pytest.mark.skipif(bool(WHY_NOT), reason=f"no user namespace here: {WHY_NOT}"))
WHO = (pytest.param("root", marks=needs_root), AS_USER)
as_each = pytest.mark.parametrize("who", WHO)


def enter(spaces: int) -> int:
    """Be process 1 of new namespaces, as a session's is. Who stays outside is its parent, and ends with its code."""
    if os.fork():
        os._exit(reap_all())
    namespaces.unshare(spaces)
    return namespaces.clone_first(lambda _pidfd: None)


@attrs.frozen(kw_only=True)
class Walls:
    """Whose walls, and what is special about them."""

    who: str
    binds: tuple[tuple[str, int], ...] = ()
    private: tuple[tuple[str, int], ...] = (("/tmp", NO_SUID | NO_DEV), ("/dev/shm", NO_SUID | NO_DEV))
    private_bytes: int = 16 << 20
    masks: tuple[str, ...] = ()
    spaces: int = EVERYTHING

    def plan(self) -> root.RootPlan:
        system = ((path, SYSTEM) for path in SYSTEM_PATHS)
        return root.RootPlan(
            binds=(*system, *self.binds),
            private=self.private,
            private_bytes=self.private_bytes,
            close=lambda: masks.close((path, False) for path in self.masks),
        )

    def raise_up(self) -> root.RootOutcome:
        """Do what a birth does, in its order; afterwards the caller is process 1 and has no rights."""
        if self.who == "user":
            become_plain()
        parent = enter(self.spaces | (namespaces.USER if self.who == "user" else 0))
        if self.spaces & namespaces.NET:
            namespaces.raise_loopback()
        built = root.build(self.plan())
        namespaces.forbid_memfd_execution()
        namespaces.drop_bounding()
        if self.who == "root":
            become_plain()
        namespaces.drop_capabilities()
        namespaces.die_with(parent)
        return built


def behind(walls: Walls, work: Callable[[], Any]) -> Any:
    """Return what *work* returns behind the walls."""

    def child() -> Any:
        walls.raise_up()
        return work()

    return in_child(child)


@pytest.fixture
def workspace() -> Iterator[Path]:
    """A directory of the session's user that it can reach, in a place that is private behind the walls."""
    top = Path(tempfile.mkdtemp(prefix="walls-")).resolve()
    try:
        top.chmod(0o755)
        if AS_ROOT:
            os.chown(top, PLAIN_UID, PLAIN_UID)
        yield top
    finally:
        shutil.rmtree(top)


@as_each
def test_a_session_sees_its_own_processes_only(who: str) -> None:
    outside = os.getpid()

    def look() -> list[object]:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return [os.getpid(), pids, outcome(lambda: os.kill(outside, 0))]

    assert outside != 1
    assert behind(Walls(who=who), look) == [1, [1], "ESRCH"]


@as_each
def test_the_user_stays_who_it_is_and_has_no_rights_left(who: str) -> None:
    expected = PLAIN_UID if AS_ROOT else os.getuid()

    def look() -> list[object]:
        regain = {outcome(lambda: os.setuid(0)), outcome(lambda: os.setgroups([0]))}
        return [os.getuid(), os.geteuid(), "done" in regain, list(namespaces.capabilities_left())]

    assert behind(Walls(who=who), look) == [expected, expected, False, []]


@needs_root
def test_capabilities_are_there_before_they_are_dropped() -> None:
    assert in_child(lambda: list(namespaces.capabilities_left())) != []


@as_each
def test_a_program_gains_nothing_by_exec(who: str) -> None:
    def look() -> str:
        read_fd, write_fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(write_fd, 1)
            os.execv("/bin/cat", ["cat", "/proc/self/status"])  # noqa: S606
        os.waitpid(pid, 0)
        return os.read(read_fd, 1 << 16).decode()

    status = behind(Walls(who=who), look)
    sets = {line.split()[0]: int(line.split()[1], 16) for line in status.splitlines() if line.startswith("Cap")}
    assert set(sets.values()) == {0}
    assert len(sets) == 5


@as_each
@pytest.mark.parametrize("kind", ["mnt", "pid", "ipc", "uts", "cgroup", "net"])
def test_every_namespace_is_its_own(who: str, kind: str) -> None:
    inside = behind(Walls(who=who), lambda: os.readlink(f"/proc/self/ns/{kind}"))
    assert inside != os.readlink(f"/proc/self/ns/{kind}")


@as_each
def test_only_loopback_is_there_and_it_is_up(who: str) -> None:
    def talk() -> list[object]:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
            return [list(namespaces.interfaces()), outcome(lambda: client.connect(server.getsockname()))]

    assert behind(Walls(who=who), talk) == [["lo"], "done"]


@as_each
@pytest.mark.parametrize("kind", ["tcp", "abstract"])
def test_what_listens_outside_cannot_be_reached(who: str, kind: str) -> None:
    if kind == "tcp":
        server = socket.create_server(("127.0.0.1", 0))
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(f"\0walls-{os.getpid()}")
        server.listen()
    with server:
        address, family = server.getsockname(), server.family

        def connect() -> str:
            with socket.socket(family) as client:
                client.settimeout(5)
                return outcome(lambda: client.connect(address))

        assert in_child(connect) == "done"
        assert behind(Walls(who=who), connect) == "ECONNREFUSED"
        assert behind(Walls(who=who, spaces=EVERYTHING & ~namespaces.NET), connect) == "done"


def leave_daemon(held_fd: int) -> int:
    """Start a process that escapes by setsid and a double fork, and holds *held_fd* and nothing else until it dies."""
    up_read, up_write = os.pipe()
    if (middle := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0:
            os.dup2(held_fd, 3)
            os.write(up_write, struct.pack("=i", os.getpid()))
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))
            signal.alarm(CHILD_S)
            signal.pause()
        os._exit(0)
    os.waitpid(middle, 0)
    os.close(up_write)
    with os.fdopen(up_read, "rb") as up:
        return int(struct.unpack("=i", up.read())[0])


def is_at_end(read_fd: int) -> bool:
    """Tell, without waiting, whether nobody holds the other end of a pipe."""
    return bool(select.select([read_fd], [], [], 0)[0])


@contextlib.contextmanager
def leash() -> Iterator[tuple[int, int]]:
    """Give a pipe to which nothing is ever written: its end of file says that its holders are dead."""
    read_fd, write_fd = os.pipe()
    try:
        yield read_fd, write_fd
    finally:
        os.close(read_fd)
        with contextlib.suppress(OSError):  # the test let go of it, to see the end
            os.close(write_fd)


@as_each
def test_the_end_of_process_1_is_the_end_of_everything(who: str) -> None:
    with leash() as (read_fd, write_fd):
        behind(Walls(who=who), lambda: leave_daemon(write_fd))
        os.close(write_fd)
        assert is_at_end(read_fd)  # at once: who stays outside ends only when the namespace is empty


def test_without_a_pid_namespace_a_daemon_outlives_its_parent() -> None:
    with leash() as (read_fd, write_fd):
        daemon = in_child(lambda: leave_daemon(write_fd))
        os.close(write_fd)
        assert not is_at_end(read_fd)
        os.kill(daemon, signal.SIGKILL)
        assert os.read(read_fd, 1) == b""


@as_each
def test_killing_the_parent_of_process_1_kills_the_namespace(who: str) -> None:
    with leash() as (read_fd, write_fd), leash() as (up_read, up_write):

        def work() -> None:
            Walls(who=who).raise_up()
            leave_daemon(write_fd)
            os.write(up_write, b"r")
            signal.pause()

        def middle() -> bool:
            if (pid := os.fork()) == 0:
                try:
                    work()
                finally:
                    os._exit(1)
            os.close(write_fd)
            os.read(up_read, 1)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return True

        assert in_child(middle)
        os.close(write_fd)
        assert os.read(read_fd, 1) == b""


@as_each
def test_process_1_cannot_be_signalled_or_traced_from_inside(who: str) -> None:
    def attack() -> list[str]:
        process.prctl(process.SET_DUMPABLE, 0)
        pid = os.fork()
        if pid == 0:
            for signum in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
                os.kill(1, signum)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        return ["alive", str(os.waitstatus_to_exitcode(status))]

    assert behind(Walls(who=who), attack) == ["alive", "0"]


def memfd_is_executable() -> bool:
    """Tell whether a memory file made without any word about execution could be executed."""
    try:
        fd = os.memfd_create("probe", os.MFD_CLOEXEC)
    except OSError:  # no memory files at all
        return False
    try:
        return bool(os.fstat(fd).st_mode & 0o111)
    finally:
        os.close(fd)


@needs_root
def test_memory_files_cannot_be_executed_even_without_a_filter() -> None:
    if not os.path.exists(namespaces.MEMFD_NOEXEC):
        pytest.skip("this kernel has no vm.memfd_noexec (it needs Linux 6.3)")
    assert in_child(memfd_is_executable)
    assert not behind(Walls(who="root"), memfd_is_executable)


@pytest.mark.skipif(bool(WHY_NOT), reason=f"no user namespace here: {WHY_NOT}")
def test_a_plain_user_is_told_that_memory_files_stay_executable() -> None:
    """The setting belongs to root of the machine, even in a namespace of one's own: seccomp has to do it."""

    def attempt() -> bool:
        become_plain()
        enter(EVERYTHING | namespaces.USER)
        root.build(Walls(who="user").plan())
        return namespaces.forbid_memfd_execution() == (not memfd_is_executable())

    assert in_child(attempt)


def test_a_refused_step_says_what_it_was() -> None:
    def attempt() -> str:
        become_plain()
        with pytest.raises(OSError, match="unshare: Operation not permitted") as caught:
            namespaces.unshare(namespaces.MOUNT)
        return str(caught.value.strerror)

    assert in_child(attempt) == "unshare: Operation not permitted"


@pytest.mark.skipif(bool(WHY_NOT), reason=f"no user namespace here: {WHY_NOT}")
@pytest.mark.parametrize("forbidden", [False, True])
def test_a_user_namespace_can_be_the_last_one(*, forbidden: bool) -> None:
    def attempt() -> str:
        become_plain()
        enter(EVERYTHING | namespaces.USER)
        root.build(Walls(who="user").plan())
        if forbidden:
            namespaces.forbid_nesting()
        namespaces.drop_capabilities()
        return outcome(lambda: namespaces.unshare(namespaces.USER))

    before = Path(namespaces.MAX_USER_NAMESPACES).read_text()
    assert in_child(attempt) == ("ENOSPC" if forbidden else "done")
    assert Path(namespaces.MAX_USER_NAMESPACES).read_text() == before


def run_trial(flags: int, before: str = "pass") -> Any:
    code = (
        f"import sys; sys.path.append({PACKAGE_PARENT!r})\n"
        f"from sandbox.inside.init.trial import main; {before}; main({flags}, {PLAIN_UID}, {PLAIN_UID})"
    )
    said = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, check=True, timeout=CHILD_S)
    return json.loads(said.stdout)


@as_each
def test_a_trial_says_that_all_is_well(who: str) -> None:
    with_user = namespaces.USER if who == "user" else 0
    assert run_trial(EVERYTHING | with_user) == {"own_task_count": who == "user"}


@needs_root
def test_a_trial_names_the_stage_that_fails_and_why() -> None:
    no_more_rights = f"import os; os.setresuid({PLAIN_UID}, {PLAIN_UID}, {PLAIN_UID})"
    assert run_trial(EVERYTHING, no_more_rights) == {"stage": "namespaces", "why": "unshare: Operation not permitted"}


def test_a_process_inside_is_known_outside_by_its_pidfd() -> None:
    """Numbers inside mean nothing outside; a descriptor means the same process everywhere."""
    if not AS_ROOT and WHY_NOT:
        pytest.skip(f"no namespaces here: {WHY_NOT}")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:

        def work() -> int:
            Walls(who="root" if AS_ROOT else "user").raise_up()
            socket.send_fds(theirs, [b"x"], [os.pidfd_open(os.getpid())])
            theirs.recv(1)
            return os.getpid()

        def outside() -> int:
            _, (pidfd,), _, _ = socket.recv_fds(ours, 1, 1)
            facts = dict(line.split(":\t") for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines())
            status = Path(f"/proc/{facts['Pid']}/status").read_text()
            os.close(pidfd)
            ours.send(b"g")
            return int(status.partition("NSpid:")[2].splitlines()[0].split()[-1])

        with ThreadPoolExecutor(1) as pool:
            inner = pool.submit(outside)
            assert in_child(work) == inner.result(CHILD_S) == 1
