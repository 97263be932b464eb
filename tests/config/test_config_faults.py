"""Each thing that can be wrong in a file, with the line that is printed for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from config.faults import ConfigFaults, Fault, dotted, nearest, printable
from config.load import load_config

if TYPE_CHECKING:
    from pathlib import Path

CHUNK = "a chunk of transfers.max_chunk_bytes (8388608 bytes)"
LEAVE_OUT = "expected a list, found nothing; without a value, leave the key out"
SECTION = "server:\n  "
COMMAND = "policy:\n  allowed_commands:\n    git:\n      executable: /usr/bin/git\n      "


def told(tmp_path: Path, *, server: str | None = None, policy: str = "policy:\n") -> list[str]:
    folder = tmp_path / "config"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    for name, text in (("server.yaml", server), ("policy.yaml", policy)):
        if text is not None:
            (folder / name).write_text(text)
            (folder / name).chmod(0o644)
    with pytest.raises(ConfigFaults) as caught:
        load_config(folder)
    return [line.removeprefix(f"{folder}/") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("port: '8080'", "2: server.port:", "expected a whole number, found text ('8080')"),
        ("port: true", "2: server.port:", "expected a whole number, found true"),
        ("port: 80.0", "2: server.port:", "expected a whole number, found a number (80.0)"),
        ("port:", "2: server.port:", "expected a whole number, found nothing; without a value, leave the key out"),
        ("port: 65536", "2: server.port:", "must be between 0 and 65535, is 65536"),
        ("port: -1", "2: server.port:", "must be between 0 and 65535, is -1"),
        ("drain_s: yes", "2: server.drain_s:", "expected a whole number or a number, found true"),
        ("drain_s: .inf", "2: server.drain_s:", ".inf is not a finite number"),
        ("host: 8", "2: server.host:", "expected text, found a whole number (8); put it in quotes"),
        ("host: no", "2: server.host:", "expected text, found false; put it in quotes"),
        ("hots: x", "2: server.hots:", "unknown key; did you mean host?"),
        ("Max-Body-Bytes: 1", "2: server.Max-Body-Bytes:", "unknown key; did you mean max_body_bytes?"),
        ("audit_log: x", "2: server.audit_log:", "unknown key; did you mean server.logging.audit_log?"),
        ("allowed_hosts: box", "2: server.allowed_hosts:", "expected a list, found text ('box')"),
        ("allowed_hosts: {a: 1}", "2: server.allowed_hosts:", "expected a list, found a mapping"),
        (
            "allowed_hosts: [1]",
            "2: server.allowed_hosts[0]:",
            "expected text, found a whole number (1); put it in quotes",
        ),
        ("logging: text", "2: server.logging:", "expected a mapping, found text ('text')"),
        (
            "sandbox: {enable_cgroups: 'false'}",
            "2: server.sandbox.enable_cgroups:",
            "expected true or false, found text ('false')",
        ),
        (
            "sandbox: {enable_cgroups: 0}",
            "2: server.sandbox.enable_cgroups:",
            "expected true or false, found a whole number (0)",
        ),
        ("logging: {format: xml}", "2: server.logging.format:", "must be one of json, text, is 'xml'"),
        (
            "logging: {level: info}",
            "2: server.logging.level:",
            "must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL, is 'info'",
        ),
        ("logging: {audit_log: ''}", "2: server.logging.audit_log:", "must be the path of a file"),
        ("logging: {audit_log: ..}", "2: server.logging.audit_log:", "must be the path of a file"),
        ("logging: {audit_log: .}", "2: server.logging.audit_log:", "must be the path of a file"),
        ("logging: {error_log: log/audit.log}", "2: server.logging.error_log:", "must be another file than audit_log"),
        (
            "logging: {audit_log: ~no-such-user/a}",
            "2: server.logging.audit_log:",
            "~no-such-user/a: that home directory is not known",
        ),
        ("timeouts: {kill_grace: -1}", "2: server.timeouts.kill_grace:", "must be between 0 and 3600 seconds, is -1.0"),
        (
            "timeouts: {command_max: 0}",
            "2: server.timeouts.command_max:",
            "must be between 0.001 and 604800 seconds, is 0.0",
        ),
        (
            "timeouts: {command_max: 10}",
            "2: server.timeouts.command_default:",
            "must be at most command_max (10 seconds), is 30",
        ),
        (
            "max_body_bytes: 1_000_000",
            "2: server.max_body_bytes:",
            f"must be at least 11250348, since {CHUNK} comes in base64; is 1000000",
        ),
    ],
)
def test_a_wrong_server_setting_is_named(tmp_path: Path, text: str, where: str, said: str) -> None:
    assert told(tmp_path, server=SECTION + text) == [f"server.yaml:{where} {said}"]


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        (COMMAND + "max_arg: 3", "5: policy.allowed_commands.git.max_arg:", "unknown key; did you mean max_args?"),
        (
            COMMAND + "max_args: '3'",
            "5: policy.allowed_commands.git.max_args:",
            "expected a whole number, found text ('3')",
        ),
        (
            COMMAND + "allowed_prefixes: status",
            "5: policy.allowed_commands.git.allowed_prefixes:",
            "expected a list, found text ('status')",
        ),
        (
            COMMAND + "requires_confirmation: 1",
            "5: policy.allowed_commands.git.requires_confirmation:",
            "expected true or false, found a whole number (1)",
        ),
        (COMMAND + "env: [a]", "5: policy.allowed_commands.git.env:", "expected a mapping, found a list"),
        (
            COMMAND + "examples: {allow: [[git, 1]]}",
            "5: policy.allowed_commands.git.examples.allow[0][1]:",
            "expected text, found a whole number (1); put it in quotes",
        ),
        (
            COMMAND + "examples: {allow: [3]}",
            "5: policy.allowed_commands.git.examples.allow[0]:",
            "expected text, found a whole number (3); put it in quotes",
        ),
        (
            "policy:\n  allowed_commands:\n    git: {}",
            "3: policy.allowed_commands.git.executable:",
            "missing, and there is no default",
        ),
        (
            "policy:\n  allowed_commands:\n    git:",
            "3: policy.allowed_commands.git.executable:",
            "missing, and there is no default",
        ),
        ("policy:\n  allowed_commands: [git]", "2: policy.allowed_commands:", "expected a mapping, found a list"),
        ("policy:\n  allowed_paths:\n", "2: policy.allowed_paths:", LEAVE_OUT),
        ("policy:\n  allowed_paths: /srv/**", "2: policy.allowed_paths:", "expected a list, found text ('/srv/**')"),
        (
            "policy:\n  banned_commands: [rm]",
            "2: policy.banned_commands:",
            "unknown key; did you mean allowed_commands?",
        ),
        (
            "policy:\n  memory_max: 1",
            "2: policy.memory_max:",
            "unknown key; did you mean policy.resource_limits.memory_max?",
        ),
        (
            "policy:\n  resource_limits: {memory_max: 512M}",
            "2: policy.resource_limits.memory_max:",
            "expected a whole number, found text ('512M')",
        ),
        (
            "policy:\n  file_limits: {max_read_size: '1'}",
            "2: policy.file_limits.max_read_size:",
            "expected a whole number, found text ('1')",
        ),
        ("allowed_paths: []", "1: allowed_paths:", "unknown key; did you mean policy.allowed_paths?"),
        ("- a", "1:", "expected a mapping, found a list"),
        ("server: {}", "1: server:", "unknown key; known here: policy"),
        ("policy: 3", "1: policy:", "expected a mapping, found a whole number (3)"),
    ],
)
def test_a_wrong_policy_is_named(tmp_path: Path, text: str, where: str, said: str) -> None:
    assert told(tmp_path, policy=text) == [f"policy.yaml:{where} {said}"]


def test_all_faults_of_both_files_come_at_once(tmp_path: Path) -> None:
    server = (
        "server:\n  port: 99999\n  hots: x\n  port: 1\n  allowed_hosts: ['a b', 'c d']\n"
        "  timeouts:\n    command_max: 0\n    kill_grace: no\n    speed: 1\n"
    )
    policy = "policy:\n  allowed_paths: [x, 3]\n  allowed_commands:\n    git:\n      max_args: 010\n      env: 3\n"
    lines = told(tmp_path, server=server, policy=policy)
    assert [line.split(" ")[:2] for line in lines] == [
        ["policy.yaml:2:", "policy.allowed_paths[1]:"],
        ["policy.yaml:4:", "policy.allowed_commands.git.executable:"],
        ["policy.yaml:5:", "policy.allowed_commands.git.max_args:"],
        ["policy.yaml:6:", "policy.allowed_commands.git.env:"],
        ["server.yaml:2:", "server.port:"],
        ["server.yaml:3:", "server.hots:"],
        ["server.yaml:4:", "server.port:"],
        ["server.yaml:5:", "server.allowed_hosts:"],
        ["server.yaml:7:", "server.timeouts.command_max:"],
        ["server.yaml:8:", "server.timeouts.kill_grace:"],
        ["server.yaml:9:", "server.timeouts.speed:"],
    ]


def test_a_disproved_example_stops_the_load_at_its_line(tmp_path: Path) -> None:
    text = (
        COMMAND
        + "allowed_prefixes: [status]\n      examples:\n        allow:\n          - git status\n          - git push\n"
    )
    (line,) = told(tmp_path, policy=text)
    assert line.startswith("policy.yaml:9: policy.allowed_commands.git.examples.allow[1]: ")
    assert "push" in line


def test_a_log_path_that_is_a_directory_is_a_fault(tmp_path: Path) -> None:
    (line,) = told(tmp_path, server=SECTION + f"logging: {{audit_log: {tmp_path}}}")
    assert line == f"server.yaml:2: server.logging.audit_log: {tmp_path} is a directory"


def test_a_fault_is_one_printable_line_whatever_the_file_holds() -> None:
    fault = Fault(file="a\nb", line=3, path=("x\x1b[2J", 0, "\u202e"), message="no")
    assert str(fault) == "a\\nb:3: x\\x1b[2J[0].\\u202e: no"


def test_long_text_is_cut_with_its_length() -> None:
    assert printable("x" * 1000) == "x" * 80 + "... (1000 characters)"


def test_a_path_is_written_with_dots_and_positions() -> None:
    assert dotted(("policy", "allowed_paths", 2, "x")) == "policy.allowed_paths[2].x"


@pytest.mark.parametrize(("wrong", "meant"), [("max_arg", "max_args"), ("MAX-ARGS", "max_args"), ("zebra", None)])
def test_the_nearest_key_is_found(wrong: str, meant: str | None) -> None:
    assert nearest(wrong, ["max_args", "env"]) == meant
