"""The attacks of `python -m broker doctor`, as a process inside the walls tries them. Child side, stdlib only.

Only the doctor's own throw-away session loads this (`Plan.besieged`, before its walls are up), and there a leader runs
it instead of a program: nothing more than in a real session may be executed. `outside` is the control, the same attack
by the same user with no wall around it. An attack that goes through says what it did; one that is stopped raises
OSError, or does not come back.
"""

from __future__ import annotations

import _thread
import ctypes
import fcntl
import json
import mmap
import os
import resource
import select
import signal
import socket
import stat
import struct
from types import MappingProxyType

from sandbox.inside.init import attacks_around
from sandbox.kernel import process, syscalls

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from typing import NoReturn

    from sandbox.protocol.commands import Attack, AttackSaid

PTRACE_SEIZE = 0x4206  # unlike an attach, it does not stop who is traced
NEW_USER = 0x10000000
AT_FDCWD = -100
FIRST_FD = 3
STACK_BYTES = 64 * 1024
PAGE = mmap.PAGESIZE


def main(spec: Attack) -> NoReturn:
    """Try the attack that *spec* names, say what came of it on standard output, and exit."""
    _perform(spec)
    os._exit(0)


def outside(text: str) -> NoReturn:
    """Become the user that the JSON *text* names, and try its attack without any walls."""
    spec = json.loads(text)
    if spec["switch_user"]:
        os.setgroups(spec["groups"])
        os.setresgid(spec["gid"], spec["gid"], spec["gid"])
        os.setresuid(spec["uid"], spec["uid"], spec["uid"])
        process.prctl(process.SET_DUMPABLE, 1)  # as a program that was started would be
    if spec["attack"] == "call_broker":  # which takes its own descendants for those of a session
        _leave_ancestors()
    _perform(spec)
    os._exit(0)


def _leave_ancestors() -> None:
    """Go on in a process that descends from none of them; this one waits for its end and exits."""
    ended, held = os.pipe()
    middle = os.fork()
    if middle:
        os.close(held)
        os.waitpid(middle, 0)
        os.read(ended, 1)  # nothing: who holds the other end has ended
        os._exit(0)
    parent = os.pidfd_open(os.getpid())
    if os.fork():
        os._exit(0)
    select.select([parent], [], [])


def _perform(spec: Attack) -> None:
    try:
        said = ATTACKS[spec["attack"]](spec)
        _say(through=True, said=said)
    except (OSError, MemoryError) as error:
        _say(through=False, said=str(error) or type(error).__name__)


def _say(*, through: bool, said: str) -> None:
    line: AttackSaid = {"through": through, "said": said}
    os.write(1, json.dumps(line).encode() + b"\n")


def _write_file(target: Attack) -> str:
    os.close(os.open(target["path"], os.O_WRONLY | os.O_CREAT, 0o600))
    return f"{target['path']} was made"


def _read_file(target: Attack) -> str:
    fd = os.open(target["path"], os.O_RDONLY)
    os.close(fd)
    return f"{target['path']} was opened"


def _execute(target: Attack) -> str:
    pid = os.fork()
    if pid == 0:
        try:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 1)
            os.dup2(null, 2)
            os.execve(target["program"], ["attack"], {})  # noqa: S606 - no shell is the point
        except OSError as error:
            os._exit(error.errno or 1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, f"{target['program']}: {os.strerror(code) if code > 0 else f'signal {-code}'}")
    return f"{target['program']} ran"


def _execute_memory(target: Attack) -> str:
    fd = os.memfd_create("attack", 0)
    with open(target["program"], "rb") as source:
        os.write(fd, source.read())
    return _execute({"attack": "execute", "program": f"/proc/self/fd/{fd}"})


def _trace(target: Attack) -> str:
    """Trace the victim, or inside what keeps this process."""
    pid = target["victim"] if target["control"] else os.getppid()
    syscalls.call("ptrace", PTRACE_SEIZE, pid, 0, 0)
    return f"process {pid} is traced"


def _recognize(target: Attack) -> int:
    """Return the victim's pid if it is the victim here too: a pid namespace has other processes by its numbers."""
    with open(f"/proc/{target['victim']}/cmdline", encoding="utf-8", errors="replace") as words:
        if target["mark"] not in words.read():
            raise ProcessLookupError(f"process {target['victim']} is another one here")
    return int(target["victim"])


def _see(target: Attack) -> str:
    return f"the arguments of process {_recognize(target)} can be read"


def _environment(target: Attack) -> str:
    with open(f"/proc/{_recognize(target)}/environ", "rb") as variables:
        variables.read()
    return f"the variables of process {target['victim']} can be read"


def _signal(target: Attack) -> str:
    os.kill(_recognize(target), signal.SIGCONT)
    return f"process {target['victim']} was signalled"


def _keeper(target: Attack) -> str:
    pid = target["victim"] if target["control"] else os.getppid()
    os.kill(pid, 0)
    return f"process {pid} can be signalled"


def _daemon(target: Attack) -> str:
    """Leave a daemon behind that holds a lock and says so on descriptor 0; wait to be killed."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            fd = os.open(target["path"], os.O_RDWR)
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(0, str(os.getpid()).encode())
            for number in (0, 1, 2):
                os.close(number)
            for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(signum, signal.SIG_IGN)
            while True:
                signal.pause()
        os._exit(0)
    while True:
        signal.pause()


def _idle(_target: Attack) -> str:
    """Be somebody's victim until the input closes."""
    _say(through=True, said="up")
    os.read(0, 1)
    return "over"


def _set_user_id(target: Attack) -> str:
    """Make the file one that runs as its owner, whoever starts it; or make another one, by the call without a limit."""
    mode = stat.S_ISUID | 0o700
    try:
        os.chmod(target["path"], mode)
    except OSError:
        name = f"{target['path']}-set-user-id"
        how = struct.pack("=QQQ", os.O_CREAT | os.O_WRONLY, mode, 0)
        os.close(syscalls.call("openat2", AT_FDCWD, os.fsencode(name), ctypes.c_char_p(how), len(how)))
    return "a set-user-ID program was made"


def _threads(target: Attack) -> str:
    """Start tasks until the kernel refuses or there are enough; they end with this process."""
    _thread.stack_size(STACK_BYTES)
    hold = _thread.allocate_lock()
    hold.acquire()
    for started in range(target["count"]):
        try:
            _thread.start_new_thread(hold.acquire, ())
        except RuntimeError:
            raise BlockingIOError(f"no more than {started} tasks") from None
    return f"{target['count']} tasks ran at once"


def _memory(target: Attack) -> str:
    _fill(target["bytes"])
    return f"{target['bytes'] >> 20} MiB were used"


def _fill(size: int) -> mmap.mmap:
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, size, PAGE):
        area[at] = 1
    return area


def _memory_together(target: Attack) -> str:
    """Have several processes use memory at the same time."""
    ready, say_ready = os.pipe()
    until, go = os.pipe()
    for _ in range(target["processes"]):
        if os.fork() == 0:
            os.close(go)
            area = _fill(target["bytes"])
            os.write(say_ready, bytes([area[0]]))
            os.read(until, 1)
            os._exit(0)
    os.close(say_ready)
    held = 0
    while held < target["processes"] and (said := os.read(ready, 1)):
        held += len(said)
    if held < target["processes"]:
        raise MemoryError(f"only {held} of {target['processes']} processes were left")
    return f"{held} processes used {target['bytes'] >> 20} MiB each"


def _connect(target: Attack) -> str:
    family = getattr(socket, target["family"])
    where = target["address"]
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        sock.connect(tuple(where) if isinstance(where, list) else where)
    return f"{where} answered"


def _call_broker(target: Attack) -> str:
    """Ask a broker over HTTP as a client of this machine does; whom it refuses, it tells so."""
    where = tuple(target["address"])
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:  # no look-up of a name: it would import codecs
        sock.settimeout(5)
        sock.connect(where)
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        with sock.makefile("rb") as answer:
            status = answer.readline().split()[1:2]
    if status != [b"200"]:
        raise PermissionError(f"port {where[1]} answered {b''.join(status).decode() or 'nothing'}")
    return f"port {where[1]} served it"


def _namespace(_target: Attack) -> str:
    syscalls.call("unshare", NEW_USER)
    return "a user namespace was made"


def _key(_target: Attack) -> str:
    syscalls.call("add_key", ctypes.c_char_p(b"user"), ctypes.c_char_p(b"doctor"), ctypes.c_char_p(b"x"), 1, -2)
    return "a key was kept in the kernel"


def _ring(_target: Attack) -> str:
    os.close(syscalls.call("io_uring_setup", 2, ctypes.create_string_buffer(120)))
    return "io_uring was set up"


def _limits(target: Attack) -> str:
    resource.prlimit(_recognize(target), resource.RLIMIT_CORE, (0, 0))
    return f"limits of process {target['victim']} were set"


def _descriptors(target: Attack) -> str:
    """Look for descriptors that a program started here would inherit."""
    if target["control"]:
        os.dup2(0, 9)
    inherited = [fd for fd in range(FIRST_FD, 256) if _is_inherited(fd)]
    if not inherited:
        raise OSError("none is inherited")
    return f"descriptors {inherited} would be inherited"


def _is_inherited(fd: int) -> bool:
    try:
        return not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    except OSError:  # not open
        return False


ATTACKS = MappingProxyType(
    {
        "call_broker": _call_broker,
        "change_file": attacks_around.change_file,
        "change_mode": attacks_around.change_mode,
        "connect": _connect,
        "daemon": _daemon,
        "descriptors": _descriptors,
        "environment": _environment,
        "execute": _execute,
        "execute_memory": _execute_memory,
        "idle": _idle,
        "keeper": _keeper,
        "key": _key,
        "lay": attacks_around.lay,
        "limits": _limits,
        "link_file": attacks_around.link_file,
        "make_file": attacks_around.make_file,
        "memory": _memory,
        "memory_together": _memory_together,
        "namespace": _namespace,
        "read_file": _read_file,
        "rename_folder": attacks_around.rename_folder,
        "replace_file": attacks_around.replace_file,
        "ring": _ring,
        "see": _see,
        "set_user_id": _set_user_id,
        "signal": _signal,
        "threads": _threads,
        "trace": _trace,
        "write_file": _write_file,
    }
)
