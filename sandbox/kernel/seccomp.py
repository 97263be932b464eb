"""System call filter: a table of refusals, assembled into BPF. Child side, stdlib only.

A deny list, first match wins. It is the second fence behind missing capabilities and Landlock, and the first one
against kernel code that nobody in a session needs. What programs probe for and can do without is answered as if
the kernel did not have it (ENOSYS, EAFNOSUPPORT), so that they fall back; everything else with EPERM.

Only the low half of an argument is looked at: each argument tested here is an int for the kernel too, and a
filter that compared all 64 bits could be passed by setting one that the kernel ignores.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct

from sandbox.kernel import syscalls

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant

ALLOW = 0x7FFF0000
KILL = 0x80000000  # SECCOMP_RET_KILL_PROCESS
_ERRNO = 0x00050000
SET_MODE_FILTER = 1

CLONE_NEW_ANY = 0x7E020000  # mount, cgroup, uts, ipc, user, pid, network
CLONE_NEWTIME = 0x80  # of unshare only: in clone's flags these bits are the exit signal
MFD_NOEXEC_SEAL = 0x8
MFD_EXEC = 0x10
SET_ID = stat.S_ISUID | stat.S_ISGID
MAKES_A_FILE = os.O_CREAT | 0o20000000  # the kernel's own __O_TMPFILE: without them open(2) does not look at a mode
TIOCSTI = 0x5412  # types into a terminal
TIOCLINUX = 0x541C  # pastes into a console
TIOCSETD = 0x5423  # loads a line discipline, an often attacked corner

LOAD = 0x20  # a word of struct seccomp_data
MASK = 0x54
EQUAL = 0x15
GREATER = 0x25
RETURN = 0x06
AT_NUMBER = 0
AT_ARCH = 4
AT_ARGUMENTS = 16  # eight bytes each, the low half first: both machines are little-endian
_WORD = 0xFFFFFFFF


class Condition:
    """One condition on an argument's low half: masked, it equals a value, or it does not."""

    __slots__ = ("argument", "equal", "mask", "value")

    def __init__(self, argument: int, value: int, *, mask: int = _WORD, equal: bool = True) -> None:
        self.argument = argument
        self.value = value
        self.mask = mask
        self.equal = equal


def has_any(argument: int, bits: int) -> Condition:
    """Return the condition that one of *bits* is set."""
    return Condition(argument, 0, mask=bits, equal=False)


class Rule:
    """One line of the table: what becomes of calls by these names when all tests hold."""

    __slots__ = ("action", "names", "tests")

    def __init__(self, names: str, action: int, *tests: Condition) -> None:
        self.names = names.split()
        self.action = action
        self.tests = tests


class Options:
    """Choice of the optional rules; the defaults are the strict ones.

    Attributes:
        internet: sockets of the internet families may be made. Off, this is the network layer of hosts without
            network namespaces; it takes loopback away too.
        plain_memfds: memfd_create works without MFD_NOEXEC_SEAL, because something else keeps such files from
            being executed (`namespaces.forbid_memfd_execution`). Off, it does as if the kernel had no memfds.
        debugger: a process may trace those that Landlock lets it trace.
    """

    __slots__ = ("debugger", "internet", "plain_memfds")

    def __init__(self, *, internet: bool = False, plain_memfds: bool = False, debugger: bool = False) -> None:
        self.internet = internet
        self.plain_memfds = plain_memfds
        self.debugger = debugger

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and hash(self) == hash(other)

    def __hash__(self) -> int:
        return self.internet | self.plain_memfds << 1 | self.debugger << 2


def refuse(code: int) -> int:
    """Return the action that makes a call fail with *code*."""
    return _ERRNO | code


def rules(options: Options) -> tuple[Rule, ...]:
    """Return the table; the first rule whose name and tests match decides, and what none matches is allowed."""
    perm, nosys = refuse(errno.EPERM), refuse(errno.ENOSYS)
    return (
        *(() if options.debugger else (Rule("ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp", perm),)),
        Rule("mount umount2 pivot_root chroot open_tree open_tree_attr move_mount mount_setattr", perm),
        Rule("fsopen fsconfig fsmount fspick setns", perm),
        Rule("unshare", perm, has_any(0, CLONE_NEW_ANY | CLONE_NEWTIME)),
        Rule("clone", perm, has_any(0, CLONE_NEW_ANY)),
        Rule("clone3", nosys),  # its flags lie in memory, out of a filter's sight; the C library falls back to clone
        Rule("bpf perf_event_open userfaultfd fanotify_init syslog", perm),
        Rule("add_key request_key keyctl", perm),
        Rule("io_uring_setup io_uring_enter io_uring_register", nosys),  # calls made through it bypass filters
        Rule("kexec_load kexec_file_load init_module finit_module delete_module reboot swapon swapoff", perm),
        Rule("settimeofday clock_settime clock_adjtime adjtimex acct quotactl quotactl_fd vhangup", perm),
        Rule("iopl ioperm modify_ldt", perm),
        # Of another process: RLIMIT_CPU would end it, and no signal scope sees that. 0 is the caller itself.
        Rule("prlimit64", perm, Condition(0, 0, equal=False)),
        Rule("open_by_handle_at name_to_handle_at", perm),  # reach a file around every directory above it
        *(Rule("ioctl", perm, Condition(1, request)) for request in (TIOCSTI, TIOCLINUX, TIOCSETD)),
        *_set_ids(),
        *_sockets(internet=options.internet),
        *_memfds(plain=options.plain_memfds),
    )


def _set_ids() -> Iterator[Rule]:
    """Let nobody make a program that runs as the session's user or group, whoever of the machine starts it.

    mkdir drops these bits itself, and a directory inherits its group's without a call. openat2: `forbid_openat2`.
    """
    perm = refuse(errno.EPERM)
    yield Rule("chmod fchmod creat mknod", perm, has_any(1, SET_ID))
    yield Rule("fchmodat fchmodat2 mknodat", perm, has_any(2, SET_ID))
    yield Rule("open", perm, has_any(1, MAKES_A_FILE), has_any(2, SET_ID))
    yield Rule("openat", perm, has_any(2, MAKES_A_FILE), has_any(3, SET_ID))


def _sockets(*, internet: bool) -> Iterator[Rule]:
    """Allow the families that programs live on: the others are rarely used and often attacked."""
    on_internet = ALLOW if internet else refuse(errno.EACCES)
    yield Rule("socket socketpair", ALLOW, Condition(0, socket.AF_UNIX))
    yield Rule("socket", on_internet, Condition(0, socket.AF_INET))
    yield Rule("socket", on_internet, Condition(0, socket.AF_INET6))
    # Reads of the route table are how programs list interfaces; writes take a capability that nobody here has.
    yield Rule("socket", ALLOW, Condition(0, socket.AF_NETLINK), Condition(2, socket.NETLINK_ROUTE))
    yield Rule("socket socketpair", refuse(errno.EAFNOSUPPORT))


def _memfds(*, plain: bool) -> Iterator[Rule]:
    """Close execution of memory files: Landlock does not see them, and they hold whatever was written to them."""
    yield Rule("memfd_create", refuse(errno.EACCES), has_any(1, MFD_EXEC))
    if not plain:
        yield Rule("memfd_create", refuse(errno.ENOSYS), Condition(1, 0, mask=MFD_NOEXEC_SEAL))


def assemble(machine: str, table: Sequence[Rule], *, otherwise: int = ALLOW) -> bytes:
    """Return the BPF program of *table* for *machine*. *otherwise*: what becomes of calls that no rule matches."""
    numbers = syscalls.numbers(machine)
    code: list[Instruction] = [
        (LOAD, 0, 0, AT_ARCH),
        (EQUAL, 1, 0, syscalls.audit_arch(machine)),
        (RETURN, 0, 0, KILL),  # a foreign architecture, where the same numbers mean other calls
        (LOAD, 0, 0, AT_NUMBER),
        (GREATER, 0, 1, syscalls.NEWEST),
        (RETURN, 0, 0, refuse(errno.ENOSYS)),  # calls younger than this table, and x32, which starts at 1 << 30
    ]
    for rule in table:
        code += _rule(rule, numbers)
    code.append((RETURN, 0, 0, otherwise))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _rule(rule: Rule, numbers: Mapping[str, int]) -> Iterator[Instruction]:
    """Code one rule; it begins and ends with the call's number in the accumulator."""
    wanted = [numbers[name] for name in rule.names if name in numbers]
    if not wanted:
        return
    tests = [instruction for test in rule.tests for instruction in _test(test)]
    reload = [(LOAD, 0, 0, AT_NUMBER)] if tests else []
    for left, number in zip(range(len(wanted) - 1, -1, -1), wanted, strict=True):
        past = len(tests) + 1 + len(reload)
        yield (EQUAL, left, 0 if left else past, number)
    for index, (code, if_true, if_false, constant) in enumerate(tests):
        to_reload = len(tests) - index  # past what is left of the tests, and the return
        yield (code, if_true * to_reload, if_false * to_reload, constant)
    yield (RETURN, 0, 0, rule.action)
    yield from reload


def _test(test: Condition) -> Iterator[Instruction]:
    """Code one test; a jump of 1 stands for the way out."""
    yield (LOAD, 0, 0, AT_ARGUMENTS + 8 * test.argument)
    if test.mask != _WORD:
        yield (MASK, 0, 0, test.mask)
    yield (EQUAL, 0 if test.equal else 1, 1 if test.equal else 0, test.value)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install(code: bytes) -> None:
    """Put the calling thread and all its children under the filter *code* for good; filters add up.

    The caller has set no_new_privs. Raises OSError.
    """
    buffer = ctypes.create_string_buffer(code, len(code))
    description = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_char_p))
    syscalls.call("seccomp", SET_MODE_FILTER, 0, ctypes.byref(description))


def program(options: Options) -> bytes:
    """Return the filter of this machine. Raises syscalls.UnknownMachine."""
    return assemble(syscalls.this_machine(), rules(options))


def forbid_internet() -> None:
    """Put a small filter on top of the session's: no internet sockets for this process and its children."""
    eacces = refuse(errno.EACCES)
    families = (socket.AF_INET, socket.AF_INET6)
    table = tuple(Rule("socket", eacces, Condition(0, family)) for family in families)
    install(assemble(syscalls.this_machine(), table))


def forbid_openat2() -> None:
    """Put a small filter on top of the session's: no openat2 here and below, as before Linux 5.6.

    The mode of what it makes lies in memory, out of a filter's sight; programs fall back to openat. Our opener, which
    needs it to step around magic links, is forked before. Raises OSError where it cannot be had or does not hold.
    """
    install(assemble(syscalls.this_machine(), (Rule("openat2", refuse(errno.ENOSYS)),)))
    if _error_of("openat2", (-1, 0, 0, 0)) != errno.ENOSYS:  # EINVAL: the kernel looked at the arguments
        raise OSError(errno.EINVAL, "openat2 is still there")


# Calls that do nothing whatever the filter says, and the error that only the filter gives them: without it the
# kernel finds fault with the arguments before it looks at anybody's rights.
_PROBES = (
    ("mount_setattr", (-1, 0, -1, 0, 0), errno.EPERM),
    ("open_tree", (-1, 0, -1), errno.EPERM),
    ("setns", (-1, 0), errno.EPERM),
    ("unshare", (CLONE_NEW_ANY | 1, 0), errno.EPERM),
    ("clone", (CLONE_NEW_ANY | 0x200, 0, 0, 0, 0), errno.EPERM),  # a new user namespace with shared CLONE_FS
    ("clone3", (0, 0), errno.ENOSYS),
    ("perf_event_open", (0, 0, 0, 0, -1), errno.EPERM),
    ("userfaultfd", (-1,), errno.EPERM),
    ("add_key", (0, 0, 0, 0, 0), errno.EPERM),
    ("keyctl", (-1, 0, 0, 0, 0), errno.EPERM),
    ("io_uring_setup", (0, 0), errno.ENOSYS),
    ("name_to_handle_at", (-1, 0, 0, 0, -1), errno.EPERM),
    ("ioctl", (-1, TIOCSTI, 0), errno.EPERM),
    ("ioctl", (-1, TIOCSTI | 1 << 32, 0), errno.EPERM),
    ("socket", (socket.AF_PACKET, socket.SOCK_RAW, 0), errno.EAFNOSUPPORT),
    ("memfd_create", (0, MFD_EXEC), errno.EACCES),
    ("prlimit64", (-1, -1, 0, 0), errno.EPERM),
    ("fchmod", (-1, stat.S_ISUID), errno.EPERM),
    ("fchmod", (-1, stat.S_ISGID | 1 << 32), errno.EPERM),
    ("fchmodat", (-1, 0, stat.S_ISUID), errno.EPERM),
    ("fchmodat2", (-1, 0, stat.S_ISUID, 0), errno.EPERM),
    ("openat", (-1, 0, os.O_CREAT, stat.S_ISUID), errno.EPERM),
    ("openat", (-1, 0, os.O_TMPFILE | os.O_RDWR, stat.S_ISUID), errno.EPERM),
    ("mknodat", (-1, 0, stat.S_IFREG | stat.S_ISUID, 0), errno.EPERM),
)
_TRACING_PROBES = (("ptrace", (2, 0, 0, 0), errno.EPERM), ("process_vm_readv", (0, 0, 0, 0, 0, 0), errno.EPERM))


def probes(options: Options) -> tuple[tuple[str, tuple[int, ...], int], ...]:
    """Return harmless calls, their arguments, and the error each gives only behind the filter."""
    return (
        *_PROBES,
        *(() if options.debugger else _TRACING_PROBES),
        *(() if options.internet else (("socket", (socket.AF_INET, -1, 0), errno.EACCES),)),
        *(() if options.plain_memfds else (("memfd_create", (0, 0), errno.ENOSYS),)),
    )


def weak_points(options: Options) -> tuple[str, ...]:
    """Try the filter from inside; return the calls that were not refused as they should be."""
    return tuple(name for name, arguments, code in probes(options) if _error_of(name, arguments) != code)


def _error_of(name: str, arguments: tuple[int, ...]) -> int:
    try:
        syscalls.call(name, *arguments)
    except OSError as error:
        return error.errno or 0
    return 0
