"""Developers' programs do real work inside the walls of a real broker, under the policy as it is shipped.

What the shipped file says an operator must add for it (local git remotes) is added, and nothing else. A program that is
not on this machine is a visible skip.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml

from config.keys import SHIPPED_DIR
from tests.support.whole import Whole, open_whole

SHIPPED = yaml.safe_load((SHIPPED_DIR / "policy.yaml").read_text(encoding="utf-8"))["policy"]
WORK_S = 100
PURE_PYTHON = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments")
IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@b")


@attrs.frozen(kw_only=True)
class Desk:
    """A session in a workspace of its own."""

    whole: Whole
    session_id: str

    @property
    def work(self) -> Path:
        return self.whole.work

    def own(self) -> None:
        """Give what was prepared to the session's user."""
        if os.geteuid() == 0:
            user = self.whole.foundation.user
            for path in self.work.rglob("*"):
                os.chown(path, user.uid, user.gid, follow_symlinks=False)

    def prepare_repository(self, *, at: str) -> None:
        """As the session's user, outside the walls: a repository with one commit and a file that is not in it."""
        (self.work / at).mkdir(exist_ok=True)
        (self.work / at / "file").write_text("one\n")
        self.own()
        user = self.whole.foundation.user
        ids: dict[str, Any] = {"user": user.uid, "group": user.gid, "extra_groups": []} if os.geteuid() == 0 else {}
        for words in (("init", "-q"), (*IDENTITY, "commit", "-q", "--allow-empty", "-m", "first"), ("add", "file")):
            subprocess.run(["/usr/bin/git", *words], cwd=self.work / at, env={"HOME": user.home}, check=True, **ids)

    async def run(self, *argv: str) -> str:
        """Run a confirmed command that must do its work; its output."""
        answer = await self.whole.answer(
            "execute_command", session_id=self.session_id, argv=list(argv), confirm=True, timeout_seconds=WORK_S
        )
        assert answer.structured.get("exit_code") == 0, answer.structured
        return str(answer.structured["stdout"])


@asynccontextmanager
async def open_desk(tmp_path: Path, *programs: str, **added: Mapping[str, Any]) -> AsyncIterator[Desk]:
    """A broker with the shipped policy, with *added* keys for the rules that they name; skips without *programs*."""
    missing = [program for program in programs if not Path(program).exists()]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not on this machine")
    commands = {name: {**rule, **added.get(name, {})} for name, rule in SHIPPED["allowed_commands"].items()}
    policy = {
        **SHIPPED,
        "allowed_commands": commands,
        "allowed_paths": [*SHIPPED["allowed_paths"], "WORK/**"],
    }
    text = json.dumps({"policy": policy}).replace("{", "{{").replace("}", "}}").replace("WORK/**", "{work}/**")
    async with open_whole(tmp_path, text) as whole:
        created = await whole.ok("create_session", working_dir=str(whole.work))
        yield Desk(whole=whole, session_id=created["session_id"])


@pytest.mark.bounded(WORK_S)
async def test_git_clones_a_local_repository_and_reads_it(tmp_path: Path) -> None:
    local = {
        "env": {"GIT_ALLOW_PROTOCOL": "https:ssh:file"},
        "may_run": [*SHIPPED["allowed_commands"]["git"]["may_run"], "/bin/sh"],
    }
    async with open_desk(tmp_path, "/usr/bin/git", git=local) as desk:
        desk.prepare_repository(at="origin")
        await desk.run("git", "clone", str(desk.work / "origin"), str(desk.work / "copy"))
        head = (desk.work / "copy" / ".git" / "HEAD").read_text()
        assert head == (desk.work / "origin" / ".git" / "HEAD").read_text()


@pytest.mark.bounded(WORK_S)
async def test_git_shows_status_history_and_differences(tmp_path: Path) -> None:
    async with open_desk(tmp_path, "/usr/bin/git") as desk:
        desk.prepare_repository(at=".")
        assert "first" in await desk.run("git", "log", "--oneline")
        assert "A  file" in await desk.run("git", "status", "--short")
        assert "+one" in await desk.run("git", "diff", "--cached")


@pytest.mark.bounded(WORK_S)
async def test_make_and_the_compiler_build_a_c_program(tmp_path: Path) -> None:
    makefile = (
        "hello: hello.o other.o\n\tcc -o $@ $^ && ar rc libother.a other.o\n"
        "%.o: %.c\n\tcc -O2 -c -o $@ $<\nclean:\n\trm -f *.o hello\n"
    )
    async with open_desk(tmp_path, "/usr/bin/make", "/usr/bin/cc") as desk:
        (desk.work / "hello.c").write_text('#include <stdio.h>\nint n(void);\nint main(void) { printf("%d", n()); }\n')
        (desk.work / "other.c").write_text("int n(void) { return 42; }\n")
        (desk.work / "Makefile").write_text(makefile)
        desk.own()
        await desk.run("make", "-j", "2")
        assert subprocess.run([desk.work / "hello"], capture_output=True, check=True).stdout == b"42"
        await desk.run("make", "clean")
        assert not (desk.work / "hello").exists()


@pytest.mark.bounded(WORK_S)
async def test_pip_installs_a_package_from_a_local_index(tmp_path: Path) -> None:
    async with open_desk(tmp_path, "/usr/bin/pip", "/usr/bin/python3") as desk:
        index = desk.work / "index"
        index.mkdir()
        with zipfile.ZipFile(index / "thing-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("thing.py", "answer = 42\n")
            wheel.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
            wheel.writestr(
                "thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr("thing-1.0.dist-info/RECORD", "")
        desk.own()
        await desk.run("pip", "install", "--no-index", "--find-links", str(index), "--target", "lib", "thing")
        said = await desk.run(
            "python3", "-c", "import sys; sys.path.insert(0, 'lib'); import thing; print(thing.answer)"
        )
        assert said == "42\n"


@pytest.mark.bounded(WORK_S)
async def test_npm_installs_a_local_tarball_and_runs_a_script(tmp_path: Path) -> None:
    async with open_desk(tmp_path, "/usr/bin/npm", "/usr/bin/node") as desk:
        with tarfile.open(desk.work / "thing-1.0.0.tgz", "w:gz") as tarball:
            files = {
                "package.json": json.dumps({"name": "thing", "version": "1.0.0"}),
                "index.js": "module.exports = 42\n",
            }
            for name, text in files.items():
                member = tarfile.TarInfo(f"package/{name}")
                member.size = len(text)
                tarball.addfile(member, io.BytesIO(text.encode()))
        project = {"name": "x", "version": "1.0.0", "scripts": {"test": "node -p 'require(\"thing\")'"}}
        (desk.work / "package.json").write_text(json.dumps(project))
        desk.own()
        await desk.run("npm", "install", "--offline", "./thing-1.0.0.tgz")
        assert (await desk.run("npm", "test", "--silent")) == "42\n"


@pytest.mark.bounded(WORK_S)
async def test_a_suite_of_tests_runs(tmp_path: Path) -> None:
    """The shipped rule names /usr/bin/pytest; where that is not installed, the same by the python3 of the policy."""
    library = tmp_path / "work" / "lib"
    has_program = Path("/usr/bin/pytest").exists()
    rule = {} if has_program else {"python3": {"env": {"PYTHONPATH": str(library)}}}
    async with open_desk(tmp_path, "/usr/bin/python3", **rule) as desk:
        if not has_program:
            _copy_pytest(library)
        (desk.work / "test_it.py").write_text("def test_sum(tmp_path):\n    assert sum([1, 2]) == 3\n")
        desk.own()
        argv = ["pytest"] if has_program else ["python3", "-m", "pytest"]
        assert "1 passed" in await desk.run(*argv, "-q", "-p", "no:cacheprovider", "test_it.py")


def _copy_pytest(library: Path) -> None:
    """Put our own pytest, which is pure Python, where the session can read it."""
    library.mkdir()
    for name in PURE_PYTHON:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        if spec.submodule_search_locations:
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree(spec.submodule_search_locations[0], library / name, ignore=unwanted)
        else:
            shutil.copy(spec.origin, library)
