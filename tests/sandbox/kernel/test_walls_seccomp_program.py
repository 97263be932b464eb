"""The filter as a program: run by an interpreter of BPF against a plain statement of what it is to refuse."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.kernel import seccomp, syscalls
from sandbox.kernel.seccomp import ALLOW, KILL, Options

if TYPE_CHECKING:
    from collections.abc import Sequence

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NEVER = frozenset(
    "mount umount2 pivot_root chroot open_tree open_tree_attr move_mount mount_setattr fsopen fsconfig fsmount fspick "
    "setns bpf perf_event_open userfaultfd fanotify_init syslog add_key request_key keyctl kexec_load kexec_file_load "
    "init_module finit_module delete_module reboot swapon swapoff settimeofday clock_settime clock_adjtime adjtimex "
    "acct quotactl quotactl_fd vhangup iopl ioperm modify_ldt open_by_handle_at name_to_handle_at".split()
)
TRACING = frozenset("ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp".split())
AS_IF_ABSENT = frozenset("clone3 io_uring_setup io_uring_enter io_uring_register".split())
NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

options = st.builds(Options, internet=st.booleans(), plain_memfds=st.booleans(), debugger=st.booleans())
machines = st.sampled_from(sorted(MACHINES))
telling = st.sampled_from(
    [
        0,
        1,
        2,
        8,
        10,
        16,
        17,
        40,
        0x80,
        0x18,
        0x5412,
        0x541C,
        0x5423,
        0x10000000,
        0x40000000,
        0x7E020000,
        1 << 32,
        0o100,
        0o4755,
        0o2755,
        0o1777,
        0o20200000,
    ]
)
values = st.one_of(telling, telling.map(lambda low: low | 1 << 32), st.integers(0, (1 << 64) - 1))
calls = st.lists(values, min_size=6, max_size=6)


def run(program: bytes, arch: int, number: int, arguments: Sequence[int]) -> int:
    """Interpret *program* as the kernel does, and refuse what its verifier would."""
    data = struct.pack("=iIQ6Q", struct.unpack("=i", struct.pack("=I", number))[0], arch, 0, *arguments)
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, constant = code[at]
        at += 1
        if operation == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            assert constant % 4 == 0
            accumulator = struct.unpack_from("=I", data, constant)[0]
        elif operation == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            accumulator &= constant
        elif operation == 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
            at += if_true if accumulator == constant else if_false
        elif operation == 0x25:  # BPF_JMP | BPF_JGT | BPF_K
            at += if_true if accumulator > constant else if_false
        elif operation == 0x06:  # BPF_RET | BPF_K
            return int(constant)
        else:
            raise AssertionError(f"unknown instruction {operation:#x}")


def oracle(name: str, arguments: Sequence[int], chosen: Options) -> int | str:
    """What a call deserves, said plainly: an error, or `allowed`."""
    low = [value % (1 << 32) for value in arguments]
    if name in NEVER or (name in TRACING and not chosen.debugger):
        return errno.EPERM
    if name in AS_IF_ABSENT:
        return errno.ENOSYS
    if name == "unshare" and low[0] & (NAMESPACES | 0x80):
        return errno.EPERM
    if name == "clone" and low[0] & NAMESPACES:
        return errno.EPERM
    if name == "prlimit64" and low[0]:  # another process than oneself
        return errno.EPERM
    if name == "ioctl" and low[1] in {0x5412, 0x541C, 0x5423}:
        return errno.EPERM
    if gives_set_ids(name, low):
        return errno.EPERM
    if name == "memfd_create":
        return memfd_oracle(low[1], chosen)
    if name in {"socket", "socketpair"}:
        return socket_oracle(name, low, chosen)
    return "allowed"


def gives_set_ids(name: str, low: Sequence[int]) -> bool:
    """Whether a call would give a file a mode with a set-user-ID or set-group-ID bit, as the manual pages have it."""
    mode_at = {"chmod": 1, "fchmod": 1, "creat": 1, "mknod": 1, "open": 2, "fchmodat": 2, "fchmodat2": 2, "mknodat": 2}
    mode_at |= {"openat": 3}
    flags_at = {"open": 1, "openat": 2}
    if name not in mode_at or not low[mode_at[name]] & 0o6000:
        return False
    return name not in flags_at or bool(low[flags_at[name]] & (0o100 | 0o20000000))


def memfd_oracle(flags: int, chosen: Options) -> int | str:
    if flags & 0x10:
        return errno.EACCES
    return "allowed" if flags & 0x8 or chosen.plain_memfds else errno.ENOSYS


def socket_oracle(name: str, low: Sequence[int], chosen: Options) -> int | str:
    if low[0] == 1:
        return "allowed"
    if name == "socket" and low[0] in {2, 10}:
        return "allowed" if chosen.internet else errno.EACCES
    if name == "socket" and (low[0], low[2]) == (16, 0):
        return "allowed"
    return errno.EAFNOSUPPORT


def verdict(action: int) -> int | str:
    return "allowed" if action == ALLOW else "killed" if action == KILL else action & 0xFFFF


def program(machine: str, chosen: Options) -> bytes:
    return seccomp.assemble(machine, seccomp.rules(chosen))


@given(machine=machines, chosen=options, name=st.sampled_from(sorted(syscalls.numbers("x86_64"))), arguments=calls)
def test_the_program_does_what_was_meant(machine: str, chosen: Options, name: str, arguments: list[int]) -> None:
    number = syscalls.numbers(machine).get(name)
    if number is not None:
        said = run(program(machine, chosen), MACHINES[machine], number, arguments)
        assert verdict(said) == oracle(name, arguments, chosen)


@given(machine=machines, chosen=options, number=st.integers(0, syscalls.NEWEST), arguments=calls)
def test_a_call_that_no_rule_names_is_allowed(machine: str, chosen: Options, number: int, arguments: list[int]) -> None:
    if number not in syscalls.numbers(machine).values():
        assert run(program(machine, chosen), MACHINES[machine], number, arguments) == ALLOW


@given(machine=machines, number=st.integers(syscalls.NEWEST + 1, (1 << 32) - 1), arguments=calls)
def test_numbers_beyond_the_table_are_refused(machine: str, number: int, arguments: list[int]) -> None:
    said = run(program(machine, Options()), MACHINES[machine], number, arguments)
    assert verdict(said) == errno.ENOSYS


@given(
    machine=machines,
    arch=st.one_of(st.sampled_from([0x40000003, 0x40000028, *MACHINES.values()]), st.integers(0, (1 << 32) - 1)),
    number=st.integers(0, (1 << 32) - 1),
)
def test_a_foreign_architecture_kills(machine: str, arch: int, number: int) -> None:
    if arch != MACHINES[machine]:
        assert run(program(machine, Options()), arch, number, [0] * 6) == KILL


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_the_program_is_one_that_the_kernel_takes(machine: str) -> None:
    code = list(struct.iter_unpack("=HBBI", program(machine, Options())))
    assert len(code) <= 4096
    assert code[-1][0] == 0x06
    for at, (operation, if_true, if_false, constant) in enumerate(code):
        if operation in {0x15, 0x25}:
            assert max(if_true, if_false) < len(code) - at - 1
        if operation == 0x20:
            assert constant <= 64 - 4


def test_more_freedom_in_the_options_never_refuses_more() -> None:
    strict, free = Options(), Options(internet=True, plain_memfds=True, debugger=True)
    for machine, arch in MACHINES.items():
        for number in range(syscalls.NEWEST + 1):
            if run(program(machine, strict), arch, number, [0] * 6) == ALLOW:
                assert run(program(machine, free), arch, number, [0] * 6) == ALLOW


@pytest.mark.parametrize(
    ("machine", "header"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        ("aarch64", "/usr/include/asm-generic/unistd.h"),
    ],
)
def test_the_numbers_are_those_of_the_kernel_headers(machine: str, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"the kernel headers are not installed: {header}")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text())
    known = {name: int(number) for name, number in reversed(found)}
    checked = {name: number for name, number in syscalls.numbers(machine).items() if name in known}
    assert checked == {name: known[name] for name in checked}
    assert (
        len(checked) >= len(syscalls.numbers(machine)) - 2
    )  # the headers may be older than open_tree_attr and fchmodat2
