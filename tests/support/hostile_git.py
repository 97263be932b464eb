"""A repository whose configuration names a program that git is to run. The git is the real one."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from config.keys import SHIPPED_DIR
from config.load import load_config
from policy.command import decide_command
from policy.decision import Allow
from policy.environment import BASE, User, build_environment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

POLICY = load_config(SHIPPED_DIR).policy
USER = User(name="ann", home="/home/ann")
GIT = "/usr/bin/git"
REQUEST = "protocol=https\nhost=example.org\n\n"  # what `git credential fill` reads; the others read nothing
git_is_here = pytest.mark.skipif(shutil.which(GIT) is None, reason="git is not installed")


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
        """Run what the shipped policy makes of a line, or the line as it is."""
        decision = decide_command(POLICY, shlex.split(line), confirm=False, programs={})
        assert isinstance(decision, Allow)
        return self._run(decision.subject.argv if fenced else shlex.split(line), fenced=fenced)

    def run_by_another(self, line: str, *, fenced: bool) -> None:
        """Run a git that some other command starts: it has the environment, and no options."""
        self._run(shlex.split(line), fenced=fenced)

    def _run(self, argv: Sequence[str], *, fenced: bool) -> subprocess.CompletedProcess[str]:
        built = build_environment(POLICY, user=USER, rule_env={}, session_env={})
        env = {**built, "HOME": self._plain["HOME"]} if fenced else self._plain
        return subprocess.run(
            argv, executable=GIT, cwd=self.folder, env=env, capture_output=True, text=True, check=False, input=REQUEST
        )

    def ran(self) -> bool:
        found = self._mark.exists()
        self._mark.unlink(missing_ok=True)
        return found
