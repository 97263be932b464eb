"""The system call filter on the real kernel: every attack once without the fence, where it works, and once with it.

`in_child` is what the other test_walls files stand on: walls cannot be taken down again, so whatever raises some
does it in a process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import pty
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sandbox.kernel import process, seccomp, syscalls
from sandbox.kernel.seccomp import Options

if TYPE_CHECKING:
    from collections.abc import Callable

CHILD_S = 120  # a net, not a measure: emulated guests are slow, and their clocks fast
AT_FDCWD = -100
AS_ROOT = os.geteuid() == 0
PLAIN_UID = 61183
STRICT = Options()
needs_root = pytest.mark.skipif(not AS_ROOT, reason="the control needs root: nobody else can do this without the fence")


@attrs.frozen(kw_only=True)
class Left:
    """How a child left: its wait code, and what it said."""

    code: int
    said: Any


def fork_child(work: Callable[[], Any]) -> Left:
    """Run *work* in a forked process and return what became of it; bounded by an alarm."""
    read_fd, write_fd = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: this child does nothing they could lock
        pid = os.fork()
    if pid == 0:
        _child(work, write_fd)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    return Left(code=os.waitstatus_to_exitcode(status), said=json.loads(said) if said else None)


def _child(work: Callable[[], Any], write_fd: int) -> None:
    code, said = 1, ""
    try:
        signal.alarm(CHILD_S)
        said = json.dumps(work())
        code = 0
    except Exception:  # noqa: BLE001 - the parent raises it as a failure of the test
        said = json.dumps(traceback.format_exc())
    finally:
        with contextlib.suppress(OSError):
            os.write(write_fd, said.encode())
        os._exit(code)


def in_child(work: Callable[[], Any]) -> Any:
    """Run *work* in a process of its own and return what it returned."""
    left = fork_child(work)
    assert left.code == 0, left.said or left.code
    return left.said


def become_plain() -> None:
    """Be somebody without any rights, as the walls make it; a plain user is that already."""
    if AS_ROOT:
        os.setgroups([])
        os.setresgid(PLAIN_UID, PLAIN_UID, PLAIN_UID)
        os.setresuid(PLAIN_UID, PLAIN_UID, PLAIN_UID)
        process.prctl(process.SET_DUMPABLE, 1)


def fence(options: Options = STRICT) -> None:
    process.prctl(process.SET_NO_NEW_PRIVS, 1)
    seccomp.install(seccomp.program(options))


def outcome(attack: Callable[[], object]) -> str:
    """Say `done`, or the name of the error."""
    try:
        attack()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


def without_and_with(attack: Callable[[], object], options: Options = STRICT) -> tuple[str, str]:
    """Return what became of the attack without the fence and behind it."""

    def fenced() -> str:
        fence(options)
        return outcome(attack)

    return in_child(lambda: outcome(attack)), in_child(fenced)


def call(name: str, *arguments: object) -> Callable[[], object]:
    return lambda: syscalls.call(name, *arguments)


EACH_OPTIONS = (
    STRICT,
    Options(internet=True, plain_memfds=True),
    Options(internet=True, plain_memfds=True, debugger=True),
)


@pytest.mark.parametrize("options", EACH_OPTIONS)
def test_the_filter_reports_no_weak_point_behind_itself(options: Options) -> None:
    def probe() -> list[str]:
        fence(options)
        return list(seccomp.weak_points(options))

    assert in_child(probe) == []


@pytest.mark.parametrize("probe", seccomp.probes(STRICT), ids=lambda probe: f"{probe[0]}-{probe[1]}")
def test_without_the_filter_every_probe_is_answered_otherwise(probe: tuple[str, tuple[int, ...], int]) -> None:
    """A probe that the kernel refuses the same way by itself would prove nothing."""
    name, arguments, code = probe

    def control() -> str:
        become_plain()
        return outcome(call(name, *arguments))

    assert in_child(control) != errno.errorcode[code]


def test_a_missing_filter_is_noticed() -> None:
    def probe() -> int:
        become_plain()
        return len(seccomp.weak_points(STRICT))

    assert in_child(probe) == len(seccomp.probes(STRICT))


def test_one_process_cannot_trace_another() -> None:
    def attack() -> None:
        victim = os.fork()
        if victim == 0:
            signal.pause()
        try:
            syscalls.call("ptrace", 0x4206, victim, 0, 0)  # PTRACE_SEIZE
        finally:
            os.kill(victim, signal.SIGKILL)

    assert without_and_with(attack) == ("done", "EPERM")
    assert without_and_with(attack, Options(debugger=True)) == ("done", "done")


def test_one_process_cannot_read_anothers_memory() -> None:
    secret = ctypes.create_string_buffer(b"secret")

    def attack() -> None:
        victim = os.fork()
        if victim == 0:
            signal.pause()
        try:
            into = ctypes.create_string_buffer(6)
            ours = struct.pack("=QQ", ctypes.addressof(into), 6)
            theirs = struct.pack("=QQ", ctypes.addressof(secret), 6)
            syscalls.call("process_vm_readv", victim, ours, 1, theirs, 1, 0)
            assert into.raw == b"secret"
        finally:
            os.kill(victim, signal.SIGKILL)

    assert without_and_with(attack) == ("done", "EPERM")


def test_nobody_makes_a_user_namespace() -> None:
    def by_clone() -> None:
        pid = syscalls.call("clone", 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    assert without_and_with(call("unshare", 0x10000000)) == ("done", "EPERM")
    assert without_and_with(by_clone) == ("done", "EPERM")


def test_unshare_still_serves_what_is_no_namespace() -> None:
    assert without_and_with(call("unshare", 0x400)) == ("done", "done")  # CLONE_FILES


@needs_root
@pytest.mark.parametrize(
    "attack",
    [
        call("unshare", 0x20000),
        call("mount", b"none", b"/proc/self/attr", b"tmpfs", 1 << 30, 0),
        call("chroot", b"/"),
        call("settimeofday", 0, 0),
        call("swapoff", b"/nonexistent"),
        call("fsopen", b"tmpfs", 0),
    ],
    ids=["unshare", "mount", "chroot", "settimeofday", "swapoff", "fsopen"],
)
def test_root_itself_is_refused(attack: Callable[[], object]) -> None:
    without, behind = without_and_with(attack)
    assert without != "EPERM"
    assert behind == "EPERM"


@needs_root
def test_no_packets_off_the_wire() -> None:
    def attack() -> None:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()

    assert without_and_with(attack, Options(internet=True)) == ("done", "EAFNOSUPPORT")


@needs_root
def test_a_file_cannot_be_opened_by_its_handle() -> None:
    """By handle, no directory above the file is asked for permission."""

    def attack() -> None:
        with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
            handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 8 + 128)
            mount_id = ctypes.c_int()
            path = file.name.encode()
            syscalls.call("name_to_handle_at", AT_FDCWD, path, handle, ctypes.byref(mount_id), 0)
            os.close(syscalls.call("open_by_handle_at", file.fileno(), handle, os.O_RDONLY))

    assert without_and_with(attack) == ("done", "EPERM")


def test_nothing_is_typed_into_a_terminal() -> None:
    def attack(request: int) -> None:
        _, terminal = pty.openpty()
        fcntl.ioctl(terminal, request, b"x")

    without, behind = without_and_with(lambda: attack(seccomp.TIOCSTI))
    assert without != "EPERM" or not AS_ROOT  # EIO where dev.tty.legacy_tiocsti is off, EPERM for who does not own it
    assert behind == "EPERM"
    high_bit = call("ioctl", 0, 1 << 32 | seccomp.TIOCSTI, b"x")  # the kernel ignores the bit, and so must we
    assert without_and_with(high_bit)[1] == "EPERM"


def test_the_internet_can_be_taken_away_and_local_sockets_stay() -> None:
    def families() -> list[str]:
        inet = [(socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET6, socket.SOCK_DGRAM)]
        local = [(socket.AF_UNIX, socket.SOCK_STREAM), (socket.AF_NETLINK, socket.SOCK_RAW)]
        return [outcome(lambda each=each: socket.socket(*each).close()) for each in inet + local]  # type: ignore[misc]

    def fenced(options: Options) -> list[str]:
        fence(options)
        return families()

    assert in_child(lambda: fenced(STRICT)) == ["EACCES", "EACCES", "done", "done"]
    assert in_child(lambda: fenced(Options(internet=True))) == in_child(families)


def test_programs_can_still_list_interfaces_but_have_no_other_netlink() -> None:
    def netlink(protocol: int) -> Callable[[], object]:
        return lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol).close()

    assert without_and_with(netlink(socket.NETLINK_ROUTE)) == ("done", "done")
    assert without_and_with(netlink(15)) == ("done", "EAFNOSUPPORT")  # NETLINK_KOBJECT_UEVENT


MAKE = os.O_CREAT | os.O_RDWR


def ways_to_a_mode(mode: int) -> dict[str, Callable[[str], object]]:
    """Every call that gives a file, of the name it is told, a mode."""
    how = struct.pack("=QQQ", MAKE, mode, 0)
    regular = mode | stat.S_IFREG

    def on(number: str, *arguments: object) -> Callable[[str], object]:
        def change(name: str) -> None:
            os.close(os.open(name, MAKE, 0o600))
            here = () if number == "chmod" else (AT_FDCWD,)
            syscalls.call(number, *here, name.encode(), mode, *arguments)

        return change

    def nameless(name: str) -> None:
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR, mode)
        os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=fd, follow_symlinks=True)  # it follows for a src_dir_fd alone

    ways: dict[str, Callable[[str], object]] = {
        "fchmod": lambda name: os.fchmod(os.open(name, MAKE, 0o600), mode),
        "fchmodat": on("fchmodat"),
        "fchmodat2": on("fchmodat2", 0),
        "openat": lambda name: os.open(name, MAKE, mode),
        "openat, O_TMPFILE": nameless,
        "openat2": lambda name: syscalls.call("openat2", AT_FDCWD, name.encode(), how, len(how)),
        "mknodat": lambda name: syscalls.call("mknodat", AT_FDCWD, name.encode(), regular, 0),
    }
    if os.uname().machine == "x86_64":
        ways |= {
            "chmod": on("chmod"),
            "open": lambda name: syscalls.call("open", name.encode(), MAKE, mode),
            "creat": lambda name: syscalls.call("creat", name.encode(), mode),
            "mknod": lambda name: syscalls.call("mknod", name.encode(), regular, 0),
        }
    return ways


def calls_that_set(bit: int, *, fenced: bool) -> set[str]:
    """Return the calls that make a file that has *bit*."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        if AS_ROOT:
            os.chown(folder, PLAIN_UID, PLAIN_UID)
        os.chdir(folder)
        become_plain()
        os.umask(0)
        if fenced:
            fence()
            seccomp.forbid_openat2()
        made = set()
        for number, (name, attack) in enumerate(ways_to_a_mode(0o755 | bit).items()):
            with contextlib.suppress(OSError):
                attack(str(number))
            if os.path.exists(str(number)) and os.stat(str(number)).st_mode & bit:
                made.add(name)
        return made


@pytest.mark.parametrize("bit", [stat.S_ISUID, stat.S_ISGID], ids=["user", "group"])
def test_nobody_makes_a_program_that_runs_as_the_sessions_user(bit: int) -> None:
    control = set(in_child(lambda: sorted(calls_that_set(bit, fenced=False))))
    newer_than_some_kernels = {"fchmodat2"}
    assert control | newer_than_some_kernels == set(ways_to_a_mode(0))
    assert in_child(lambda: sorted(calls_that_set(bit, fenced=True))) == []


def test_other_modes_are_everybodys_to_set() -> None:
    control = in_child(lambda: sorted(calls_that_set(stat.S_IWOTH, fenced=False)))
    assert set(control) - set(in_child(lambda: sorted(calls_that_set(stat.S_IWOTH, fenced=True)))) == {"openat2"}


def test_a_file_that_is_there_opens_whatever_stands_where_a_mode_would() -> None:
    """Without O_CREAT the kernel does not look at the mode, and a caller may leave anything in its place."""
    opens = call("openat", AT_FDCWD, b"/dev/null", os.O_RDONLY, 0o6777)
    assert without_and_with(opens) == ("done", "done")


def test_directories_inherit_their_group_as_ever() -> None:
    def work() -> bool:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            os.chmod(folder, 0o2700)
            fence()
            os.mkdir(f"{folder}/below", 0o2755)
            return bool(os.stat(f"{folder}/below").st_mode & stat.S_ISGID)

    assert in_child(work)


def test_openat2_is_as_absent_for_commands_and_there_for_our_opener() -> None:
    opened = call("openat2", AT_FDCWD, b"/dev/null", struct.pack("=QQQ", os.O_RDONLY, 0, 0), 24)

    def behind(*, forbidden: bool) -> str:
        fence()
        if forbidden:
            seccomp.forbid_openat2()
        return outcome(opened)

    assert in_child(lambda: behind(forbidden=False)) == "done"
    assert in_child(lambda: behind(forbidden=True)) == "ENOSYS"


def execute_memfd(flags: int) -> str:
    """Copy a program into a memory file and run it the way that no filter can see; return what it said."""
    memfd = os.memfd_create("program", flags)
    with open("/bin/echo", "rb") as program:
        os.write(memfd, program.read())
    ran = subprocess.run([f"/proc/self/fd/{memfd}", "ran"], capture_output=True, check=False, close_fds=False)
    return ran.stdout.decode().strip()


def test_a_memory_file_is_not_executed() -> None:
    def attack(flags: int, options: Options | None) -> str:
        if options:
            fence(options)
        try:
            return execute_memfd(flags)
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    assert in_child(lambda: attack(0, None)) == "ran"
    assert in_child(lambda: attack(0, STRICT)) == "ENOSYS"
    assert in_child(lambda: attack(seccomp.MFD_EXEC, STRICT)) == "EACCES"
    assert in_child(lambda: attack(seccomp.MFD_EXEC, Options(plain_memfds=True))) == "EACCES"


def test_a_memory_file_that_says_it_is_data_stays_usable() -> None:
    def use() -> str:
        fence()
        try:
            memfd = os.memfd_create("data", seccomp.MFD_NOEXEC_SEAL)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        with pytest.raises(PermissionError):
            os.fchmod(memfd, 0o700)
        return "done"

    assert in_child(use) in {"done", "EINVAL"}  # EINVAL: before Linux 6.3


INT80_GETPID = bytes.fromhex("b814000000cd80c3")  # mov eax, 20; int 0x80; ret


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the i386 entry is x86-64's")
def test_a_call_through_the_32_bit_entry_kills() -> None:
    def attack() -> int:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(INT80_GETPID)
        function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        return int(function() == os.getpid())

    def fenced() -> int:
        fence()
        return attack()

    control = fork_child(attack)
    if control.code == -signal.SIGSEGV:
        pytest.skip("this kernel has no 32-bit entry, so there is nothing to close")
    assert control == Left(code=0, said=1)
    assert fork_child(fenced) == Left(code=-signal.SIGSYS, said=None)


def test_calls_younger_than_the_table_do_not_exist() -> None:
    def attack() -> list[str]:
        libc = ctypes.CDLL(None, use_errno=True)
        fence()
        said = []
        for number in (syscalls.NEWEST + 1, 1 << 30 | 39, -1):  # 1 << 30: getpid of x32
            ctypes.set_errno(0)
            said.append(errno.errorcode[ctypes.get_errno()] if libc.syscall(number) < 0 else "done")
        return said

    assert in_child(attack) == ["ENOSYS"] * 3


def test_threads_and_programs_start_without_clone3() -> None:
    def work() -> list[str]:
        fence()
        said: list[str] = []
        thread = threading.Thread(target=lambda: said.append("thread"))
        thread.start()
        thread.join()
        ran = subprocess.run(["/bin/echo", "program"], capture_output=True, check=True)
        return [*said, ran.stdout.decode().strip()]

    assert in_child(work) == ["thread", "program"]


def test_what_a_program_starts_is_behind_the_same_filter() -> None:
    code = "import socket; socket.socket(socket.AF_INET)"

    def work() -> str:
        fence()
        return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).stderr.decode()

    assert "PermissionError" in in_child(work)


def test_a_second_filter_only_takes_away() -> None:
    def work() -> str:
        fence(Options(internet=True))
        fence(Options())
        return outcome(lambda: socket.socket(socket.AF_INET).close())

    assert in_child(work) == "EACCES"
