"""The shipped policy: useful to a developer's agent, and its git does not obey a hostile repository.

The git here is the real one. Attacks run twice: without the broker's environment, where they must succeed,
then with it. What only the kernel stops (filters, textconv, drivers of a free name) is tested elsewhere.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from config.keys import SHIPPED_DIR
from config.load import load_config
from policy.command import decide_command, executables, prove_examples
from policy.decision import Allow, CommandDecision, Confirm, Deny
from policy.environment import BASE, User, build_environment
from policy.path import PathRules, decide_path

if TYPE_CHECKING:
    from pathlib import Path

POLICY = load_config(SHIPPED_DIR).policy
USER = User(name="ann", home="/home/ann")
git_is_here = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


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


# --- the real git -------------------------------------------------------------------------------------------


class HostileRepository:
    """A repository whose configuration names a program; `ran()` tells whether it was started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "repository"
        self._mark = folder / "mark"
        self.program = folder / "evil"
        self.program.write_text(f"#!/bin/sh\necho ran >> {self._mark}\nexit 1\n")
        self.program.chmod(0o755)
        self.folder.mkdir()
        self._plain = {"PATH": BASE["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1", "LANG": "C.UTF-8"}
        self.setup("init", "-q")
        (self.folder / "a.txt").write_text("one\n")
        self.setup("add", ".")
        self.setup("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one")
        (self.folder / "a.txt").write_text("two\n")

    def setup(self, *words: str) -> None:
        subprocess.run(["git", *words], cwd=self.folder, env=self._plain, check=True)

    def run(self, line: str, *, fenced: bool) -> subprocess.CompletedProcess[str]:
        decision = decide(line)
        assert isinstance(decision, Allow)
        run = decision.subject
        built = build_environment(POLICY, user=USER, rule_env=run.env, session_env={})
        env = {**built, "HOME": self._plain["HOME"]} if fenced else self._plain
        return subprocess.run(
            run.argv, executable=run.program, cwd=self.folder, env=env, capture_output=True, text=True, check=False
        )

    def ran(self) -> bool:
        found = self._mark.exists()
        self._mark.unlink(missing_ok=True)
        return found


@pytest.fixture
def repository(tmp_path: Path) -> HostileRepository:
    return HostileRepository(tmp_path)


def attack_is_fenced(repository: HostileRepository, line: str) -> None:
    repository.ran()
    repository.run(line, fenced=False)
    assert repository.ran(), "the control: without the environment the attack works"
    repository.run(line, fenced=True)
    assert not repository.ran()


@git_is_here
@pytest.mark.parametrize("line", ["git status", "git diff", "git grep one"])
def test_fsmonitor_of_a_repository_is_not_started(repository: HostileRepository, line: str) -> None:
    repository.setup("config", "core.fsmonitor", str(repository.program))
    attack_is_fenced(repository, line)


@git_is_here
def test_hooks_of_a_repository_are_not_started(repository: HostileRepository) -> None:
    hooks = repository.folder / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    (hooks / "post-index-change").write_bytes(repository.program.read_bytes())
    (hooks / "post-index-change").chmod(0o755)
    for fenced, ran in ((False, True), (True, False)):
        os.utime(repository.folder / "a.txt", (fenced, fenced))  # stale: `git status` writes the index again
        repository.run("git status", fenced=fenced)
        assert repository.ran() is ran


@git_is_here
def test_the_ssh_command_of_a_repository_is_not_started(repository: HostileRepository) -> None:
    repository.setup("config", "core.sshCommand", str(repository.program))
    repository.setup("remote", "add", "origin", "ssh://127.0.0.1:1/x")
    attack_is_fenced(repository, "git fetch origin")


@git_is_here
def test_the_upload_program_of_a_local_remote_is_not_started(repository: HostileRepository) -> None:
    repository.setup("remote", "add", "origin", str(repository.folder))
    repository.setup("config", "remote.origin.uploadpack", str(repository.program))
    attack_is_fenced(repository, "git fetch origin")


@git_is_here
def test_a_transport_that_is_a_program_is_not_started(repository: HostileRepository) -> None:
    repository.setup("config", "protocol.ext.allow", "always")
    repository.setup("remote", "add", "origin", f"ext::{repository.program}")
    attack_is_fenced(repository, "git fetch origin")


@git_is_here
def test_the_configuration_of_the_user_is_not_read(repository: HostileRepository, tmp_path: Path) -> None:
    (tmp_path / ".gitconfig").write_text(f"[core]\n\tfsmonitor = {repository.program}\n")
    attack_is_fenced(repository, "git status")


@git_is_here
@pytest.mark.parametrize(
    "line", ["git status", "git diff", "git log -p", "git show", "git branch --list -a", "git blame a.txt"]
)
def test_git_works_with_the_environment(repository: HostileRepository, line: str) -> None:
    done = repository.run(line, fenced=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
