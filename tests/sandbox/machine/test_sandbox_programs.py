"""What execve would open for a program, found out from the file alone."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.machine import programs
from sandbox.machine.programs import resolve_program

if TYPE_CHECKING:
    from pathlib import Path


def script(path: Path, text: str, mode: int = 0o755) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_a_program_has_its_real_file_and_its_loader(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/bin/sh")
    program = resolve_program(str(link))
    assert program.path == str(link)
    assert program.real_path == os.path.realpath("/bin/sh")
    assert program.problem == ""
    assert program.exec_paths == (program.real_path, *program.interpreters)
    listed = subprocess.run(["/usr/bin/ldd", program.real_path], capture_output=True, text=True, check=True).stdout
    loader = next(word for line in listed.splitlines() for word in line.split() if "/ld-" in word)
    assert program.interpreters == (os.path.realpath(loader),)


def test_a_script_brings_the_whole_chain(tmp_path: Path) -> None:
    shell = resolve_program("/bin/sh")
    inner = script(tmp_path / "inner", "#! /bin/sh -e\n")
    outer = script(tmp_path / "outer", f"#!{inner}\nanything\n")
    assert resolve_program(outer).interpreters == (inner, *shell.exec_paths)


def test_env_is_not_the_end_of_a_chain(tmp_path: Path) -> None:
    tool = script(tmp_path / "tool", "#!/bin/sh\n")
    user = script(tmp_path / "user", "#!/usr/bin/env -S A=1 tool --flag\n")
    found = resolve_program(user, search_path=("/nowhere", str(tmp_path))).interpreters
    assert found[:2] == (os.path.realpath("/usr/bin/env"), tool)
    assert os.path.realpath("/bin/sh") in found


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        ("#!/bin/sh\n", 0o644, "not executable"),
        ("plain text", 0o755, "neither an ELF program nor a script"),
        ("", 0o755, "neither an ELF program nor a script"),
        ("#!\n", 0o755, "names no interpreter"),
        ("#!/no/such/thing\n", 0o755, "No such file"),
    ],
)
def test_what_cannot_run_says_why(tmp_path: Path, content: str, mode: int, problem: str) -> None:
    program = resolve_program(script(tmp_path / "file", content, mode))
    assert problem in program.problem
    assert program.interpreters == ()


def test_devices_directories_and_pipes_are_no_programs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o755)
    for path in ("/dev/zero", "/usr", str(tmp_path / "fifo"), "/nowhere"):
        assert resolve_program(path).problem


def test_a_circle_of_scripts_ends(tmp_path: Path) -> None:
    first = script(tmp_path / "first", f"#!{tmp_path / 'second'}\n")
    script(tmp_path / "second", f"#!{first}\n")
    assert first in resolve_program(first).interpreters


@given(head=st.binary(max_size=300))
def test_a_damaged_elf_file_is_a_problem_and_no_crash(head: bytes) -> None:
    with contextlib.suppress(ValueError):  # which is what resolve_program takes for a problem
        programs._elf_interpreter(b"\x7fELF" + head)


def test_both_classes_and_byte_orders_are_read() -> None:
    name = b"/lib/ld.so\0"
    for wide in (True, False):
        for order, mark in (("<", 1), (">", 2)):
            size, at = (56, 64) if wide else (32, 52)
            header = bytearray(at)
            header[:6] = b"\x7fELF" + bytes([2 if wide else 1, mark])
            struct.pack_into(order + ("Q" if wide else "I"), header, 32 if wide else 28, at)
            struct.pack_into(order + "HH", header, 54 if wide else 42, size, 1)
            entry = bytearray(size)
            struct.pack_into(order + "I", entry, 0, 3)
            where, length = (8, 32) if wide else (4, 16)
            struct.pack_into(order + ("Q" if wide else "I"), entry, where, at + size)
            struct.pack_into(order + ("Q" if wide else "I"), entry, length, len(name))
            assert programs._elf_interpreter(bytes(header + entry) + name) == "/lib/ld.so"


def test_this_very_interpreter_is_a_program() -> None:
    program = resolve_program(sys.executable)
    assert program.problem == ""
    assert stat.S_ISREG(os.stat(program.real_path).st_mode)
