"""The shipped policy: useful to a developer's agent, and closed to what it is not for."""

from __future__ import annotations

import shlex

import pytest

from config.keys import SHIPPED_DIR
from config.load import load_config
from policy.command import decide_command, executables, prove_examples
from policy.decision import Allow, CommandDecision, Confirm, Deny
from policy.path import PathRules, decide_path

POLICY = load_config(SHIPPED_DIR).policy


def decide(line: str, *, confirm: bool = False) -> CommandDecision:
    return decide_command(POLICY, shlex.split(line), confirm=confirm, programs={})


def test_every_example_holds_and_every_command_has_them_both_ways() -> None:
    assert prove_examples(POLICY, {}) == ()
    for name, rule in POLICY.allowed_commands.items():
        assert rule.examples is not None, name
        assert rule.examples.allow, name
        assert rule.examples.deny, name


@pytest.mark.parametrize(
    "line",
    [
        "git status",
        "git log --oneline -n 5",
        "git show HEAD",
        "git fetch",
        "git pull",
        "ls -la",
        "cat a",
        "head a",
        "tail a",
        "wc -l a",
        "grep -rn x .",
        "find . -name x",
        "diff a b",
        "sort -u a",
        "stat a",
        "file a",
        "du -sh",
        "df -h",
        "ps aux",
    ],
)
def test_a_developer_reads_without_confirming(line: str) -> None:
    assert isinstance(decide(line), Allow)


@pytest.mark.parametrize("name", ["python3", "pip", "npm", "make", "pytest"])
def test_what_runs_anything_is_confirmed_and_starts_only_what_is_named(name: str) -> None:
    decision = decide(f"{name} x")
    assert isinstance(decision, Confirm)
    assert decision.subject.may_run is not None
    assert isinstance(decide(f"{name} x", confirm=True), Allow)


@pytest.mark.parametrize(
    "name",
    [
        "sh",
        "bash",
        "env",
        "xargs",
        "timeout",
        "nice",
        "nohup",
        "setsid",
        "sudo",
        "busybox",
        "ssh",
        "curl",
        "awk",
        "sed",
        "perl",
        "node",
        "npx",
        "vim",
        "less",
        "man",
        "tee",
        "dd",
        "cp",
        "rm",
        "chmod",
        "tar",
        "rsync",
        "script",
        "gdb",
    ],
)
def test_shells_wrappers_and_writers_are_not_allowed(name: str) -> None:
    assert isinstance(decide(f"{name} x", confirm=True), Deny)


def test_commands_that_only_read_start_no_other_program() -> None:
    for name, rule in POLICY.allowed_commands.items():
        if not rule.requires_confirmation and name != "git":
            assert rule.may_run == (), name
    git = POLICY.allowed_commands["git"]
    assert git.may_run is not None
    assert not [path for path in git.may_run if path.endswith("sh") and not path.endswith("ssh")]


def test_no_session_may_execute_a_whole_folder_of_programs() -> None:
    beneath = [path for path in executables(POLICY) if path.endswith("/**")]
    assert not {"/usr/bin/**", "/bin/**", "/usr/**", "/**", "/usr/local/bin/**"} & {*beneath}


@pytest.mark.parametrize(
    "path",
    [
        "~/.ssh/id_ed25519",
        "~/.ssh",
        "~/p/.env",
        "~/p/.env.local",
        "~/.aws/credentials",
        "~/.gnupg",
        "~/.bashrc",
        "~/.git-credentials",
        "~/.config/gh/hosts.yml",
        "~/.bash_history",
        "~/.netrc",
    ],
)
def test_secrets_and_start_files_are_blocked(path: str) -> None:
    rules = PathRules.of(POLICY, "/home/ann")
    assert decide_path(rules, path.replace("~", "/home/ann"), "read").rule == "blocked_paths"


@pytest.mark.parametrize("path", ["~/p/.git/hooks/pre-commit", "~/p/.git/config", "~/p/.vscode/tasks.json", "~/bin/ls"])
def test_what_programs_obey_in_projects_is_read_and_not_written(path: str) -> None:
    rules, path = PathRules.of(POLICY, "/home/ann"), path.replace("~", "/home/ann")
    assert isinstance(decide_path(rules, path, "read"), Allow)
    assert decide_path(rules, path, "write").rule == "blocked_paths"


@pytest.mark.parametrize("path", ["/home/ann", "/home/ann/p/src/main.py", "/tmp/x", "/home/ann/p/.git/HEAD"])
def test_work_is_allowed(path: str) -> None:
    assert isinstance(decide_path(PathRules.of(POLICY, "/home/ann"), path, "write"), Allow)


@pytest.mark.parametrize("path", ["/etc/shadow", "/root/x", "/proc/self/root", "/dev/fd/3", "/", "/home/../etc/x"])
def test_the_rest_of_the_machine_is_not(path: str) -> None:
    assert isinstance(decide_path(PathRules.of(POLICY, "/home/ann"), path, "read"), Deny)
