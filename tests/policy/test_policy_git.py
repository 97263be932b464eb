"""The git of the shipped policy does not obey a hostile repository.

Attacks run twice: as the line stands and without the broker's environment, where they must succeed, then as the
policy has it run. What only the kernel stops (filters, which have no option) is tested elsewhere.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

import pytest

from policy.command import decide_command
from policy.decision import Deny
from policy.git import INSERTED, hardened
from tests.support.hostile_git import POLICY, HostileRepository, git_is_here

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def repository(tmp_path: Path) -> HostileRepository:
    return HostileRepository(tmp_path)


def attack_is_fenced(repository: HostileRepository, line: str) -> None:
    is_fenced(repository, repository.run, line)


def is_fenced(repository: HostileRepository, run: Callable[..., object], line: str) -> None:
    repository.ran()
    run(line, fenced=False)
    assert repository.ran(), "the control: without the environment the attack works"
    run(line, fenced=True)
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


# --- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "run"),
    [
        ("git diff", "git diff --no-ext-diff --no-textconv --ignore-submodules=dirty"),
        ("git diff -- a", "git diff --no-ext-diff --no-textconv --ignore-submodules=dirty -- a"),
        ("git stash show -p", "git stash show --no-ext-diff --no-textconv -p"),
        ("git grep x", "git grep --no-textconv x"),
        ("git status -s", "git status --ignore-submodules=dirty -s"),
        ("git -C show -c a.b=log log -p", "git -C show -c a.b=log log --no-ext-diff --no-textconv -p"),
        ("git --no-pager show", "git --no-pager show --no-ext-diff --no-textconv"),
        ("git fetch origin diff", "git fetch origin diff"),
        ("git branch --list log", "git branch --list log"),
        ("git", "git"),
    ],
)
def test_options_stand_behind_the_subcommand_that_takes_them(line: str, run: str) -> None:
    assert hardened(tuple(shlex.split(line))) == tuple(shlex.split(run))


@git_is_here
@pytest.mark.parametrize("words", INSERTED, ids=" ".join)
def test_the_real_git_takes_the_options(repository: HostileRepository, words: tuple[str, ...]) -> None:
    repository.setup("stash")
    repository.setup("stash", "apply")
    needs = {
        "diff-index": "HEAD",
        "diff-tree": "HEAD",
        "range-diff": "HEAD...HEAD",
        "blame": "a.txt",
        "annotate": "a.txt",
        "grep": "two",
    }
    argv = hardened(("git", *words, *needs.get(words[0], "").split()))
    assert len(argv) > 1 + len(words)
    repository.setup(*argv[1:])  # raises when git does not know one of them


def test_every_allowed_subcommand_that_shows_differences_has_them() -> None:
    with_programs = {"blame", "diff", "diff-tree", "grep", "log", "range-diff", "show", "reflog show"}
    for prefix in POLICY.allowed_commands["git"].allowed_prefixes:
        takes = tuple(prefix.split()) in INSERTED
        assert takes == (prefix in with_programs | {"stash list", "stash show", "status"}), prefix


@git_is_here
def test_the_difference_program_of_a_repository_cannot_be_git_itself(repository: HostileRepository) -> None:
    """No shell and no file of its own: the program is git, and what it does an alias says."""
    (repository.folder / "cleanup").write_text("one\n")
    repository.setup("add", "cleanup")
    (repository.folder / "cleanup").write_text("two\n")
    repository.setup("config", "diff.external", "/usr/bin/git")
    repository.setup("config", "alias.cleanup", "branch -D victim")
    for fenced in (True, False):
        repository.setup("branch", "-f", "victim")
        repository.run("git diff cleanup", fenced=fenced)
        assert (repository.run("git branch --list victim", fenced=True).stdout != "") is fenced


@git_is_here
@pytest.mark.parametrize("line", ["git diff", "git diff HEAD -- a.txt"])
@pytest.mark.parametrize("key", ["diff.external", "diff.evil.command"])
def test_programs_that_show_differences_are_not_started(repository: HostileRepository, key: str, line: str) -> None:
    repository.setup("config", key, str(repository.program))
    (repository.folder / ".git" / "info" / "attributes").write_text("*.txt diff=evil\n")
    attack_is_fenced(repository, line)


@git_is_here
@pytest.mark.parametrize("line", ["git diff", "git log -p", "git show", "git blame a.txt"])
def test_programs_that_make_text_of_files_are_not_started(repository: HostileRepository, line: str) -> None:
    repository.setup("config", "diff.evil.textconv", str(repository.program))
    (repository.folder / ".git" / "info" / "attributes").write_text("*.txt diff=evil\n")
    attack_is_fenced(repository, line)


# --- submodules, in which git forgets the environment ---------------------------------------------------------


@pytest.fixture
def with_submodule(repository: HostileRepository, tmp_path: Path) -> HostileRepository:
    repository.setup("clone", "-q", str(repository.folder), str(tmp_path / "other"))
    repository.setup("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(tmp_path / "other"), "sub")
    repository.setup("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "sub")
    (repository.folder / "sub" / "a.txt").write_text("three\n")
    return repository


@git_is_here
@pytest.mark.parametrize("line", ["git status", "git status -s", "git diff"])
def test_nothing_is_run_in_a_submodule(with_submodule: HostileRepository, line: str) -> None:
    with_submodule.setup("-C", "sub", "config", "core.fsmonitor", str(with_submodule.program))
    attack_is_fenced(with_submodule, line)


@git_is_here
def test_no_difference_is_shown_in_a_submodule(with_submodule: HostileRepository) -> None:
    with_submodule.setup("config", "diff.submodule", "diff")
    with_submodule.setup("-C", "sub", "config", "diff.external", str(with_submodule.program))
    attack_is_fenced(with_submodule, "git diff")


@pytest.mark.parametrize(
    "line",
    [
        "git diff --submodule=diff",
        "git log -p --submodule=diff",
        "git status --ignore-submodules=none",
        "git diff --ignore-sub=none",
        "git describe --dirty",
        "git describe --always --broken",
    ],
)
def test_what_would_run_git_in_a_submodule_all_the_same_is_denied(line: str) -> None:
    decision = decide_command(POLICY, shlex.split(line), confirm=True, programs={})
    assert isinstance(decision, Deny)
    assert decision.rule == "allowed_commands.git.denied_args"


# --- the environment, which holds for gits that other commands start too --------------------------------------


def other_is_fenced(repository: HostileRepository, line: str) -> None:
    is_fenced(repository, repository.run_by_another, line)


@git_is_here
@pytest.mark.parametrize("key", ["credential.helper", "credential.https://example.org.helper", "core.askPass"])
def test_helpers_for_passwords_are_not_started(repository: HostileRepository, key: str) -> None:
    repository.setup("config", key, str(repository.program))
    other_is_fenced(repository, "git credential fill")


@git_is_here
def test_the_command_for_a_signing_key_is_not_started(repository: HostileRepository) -> None:
    for key, value in (
        ("user.name", "a"),
        ("user.email", "a@b"),
        ("commit.gpgSign", "true"),
        ("gpg.format", "ssh"),
        ("gpg.ssh.defaultKeyCommand", str(repository.program)),
    ):
        repository.setup("config", key, value)
    for line in ("git commit --allow-empty -m x", "git commit -S --allow-empty -m x"):
        other_is_fenced(repository, line)


@git_is_here
@pytest.mark.parametrize("key", ["core.editor", "sequence.editor", "core.sshCommand"])
def test_editors_and_the_ssh_of_a_repository_are_not_started(repository: HostileRepository, key: str) -> None:
    for name, value in (("user.name", "a"), ("user.email", "a@b"), (key, str(repository.program))):
        repository.setup("config", name, value)
    lines = {
        "core.editor": "git commit --allow-empty",
        "sequence.editor": "git rebase -i --root",
        "core.sshCommand": "git ls-remote ssh://127.0.0.1:1/x",
    }
    repository.setup("checkout", "-q", "a.txt")
    other_is_fenced(repository, lines[key])


@git_is_here
@pytest.mark.parametrize("way", ["insteadOf", "vcs", "pushInsteadOf"])
def test_a_remote_that_becomes_a_program_is_not_started(repository: HostileRepository, way: str) -> None:
    repository.setup("config", "protocol.ext.allow", "always")
    if way == "vcs":
        repository.setup("config", "remote.origin.url", str(repository.program))
        repository.setup("config", "remote.origin.vcs", "ext")
    else:
        repository.setup("remote", "add", "origin", "https://example.invalid/x")
        repository.setup("config", f"url.ext::{repository.program} .{way}", "https://example.invalid/")
    other_is_fenced(repository, "git push origin HEAD" if way == "pushInsteadOf" else "git fetch origin")


@git_is_here
def test_a_new_repository_gets_no_hooks_of_a_template(repository: HostileRepository, tmp_path: Path) -> None:
    hooks = tmp_path / "template" / "hooks"
    hooks.mkdir(parents=True)
    (hooks / "post-checkout").write_text("#!/bin/sh\n")
    repository.setup("config", "--file", str(tmp_path / ".gitconfig"), "init.templateDir", str(hooks.parent))
    for name, fenced in (("plain", False), ("fenced", True)):
        repository.run_by_another(f"git init -q {name}", fenced=fenced)
        assert (repository.folder / name / ".git" / "HEAD").exists()
        assert (repository.folder / name / ".git" / "hooks").exists() is not fenced
