"""The configurations that count as plain, beside what git reads in them; what git's own commands write is plain."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.inside.worker.aftermath import (
    _OF_A_NAME,
    _OF_A_SECTION,
    CONFIGURATION_BYTES,
    is_plain_common,
    is_plain_configuration,
    is_plain_pointer,
)

ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ALLOW_PROTOCOL": "file",
}
IDENTITY = ("-c", "user.name=x", "-c", "user.email=x@x", "-c", "init.defaultBranch=main")
WORDS = [
    "[core]",
    "[core",
    '[remote "o"]',
    "[Core]",
    "[alias]",
    "[core.sub]",
    '[core "x"]',
    "bare",
    "= true",
    "fsmonitor",
]
WORDS += [
    "url = x",
    "url = ext::sh -c x",
    "fsmonitor = x",
    "pager=x",
    "#",
    ";",
    "\\",
    '"',
    "\n",
    " ",
    "\t",
    "\r",
    "=",
    "]",
]
WORDS += [
    "sshCommand = x",
    "include",
    "path",
    "[include]",
    "st = !x",
    "\x0b",
    "\x0c",
    "\ufeff",
    "filemode = false",
    "\0",
]


def git(*words: str, cwd: Path, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run git with no configuration but the one that is meant."""
    return subprocess.run(
        ["git", *IDENTITY, *words], cwd=cwd, env=ENVIRONMENT, input=data, capture_output=True, check=False
    )


def keys(data: bytes) -> set[tuple[str, bool]]:
    """What git reads in a configuration, without the names that sections may have; nothing where it is broken."""
    listed = git("config", "--file", "-", "--name-only", "--list", "-z", cwd=Path("/"), data=data)
    if listed.returncode:
        return set()
    whole = [key.decode(errors="replace") for key in listed.stdout.split(b"\0") if key]
    return {(f"{key.split('.')[0]}.{key.split('.')[-1]}", key.count(".") > 1) for key in whole}


@given(st.lists(st.sampled_from(WORDS), max_size=12).map("".join) | st.text(max_size=40))
def test_in_what_is_plain_git_reads_nothing_that_is_not_listed(text: str) -> None:
    data = text.encode(errors="replace")
    if is_plain_configuration(data):
        for key, named in keys(data):
            assert key in (_OF_A_NAME if named else _OF_A_SECTION)


def test_git_reads_what_the_property_is_about() -> None:
    """The control: the oracle sees a hostile key."""
    assert keys(b"[core]\n\tfsmonitor = x\n") == {("core.fsmonitor", False)}
    assert not is_plain_configuration(b"[core]\n\tfsmonitor = x\n")


@pytest.mark.parametrize(
    "text",
    [
        "[core] fsmonitor = x\n",
        "[core]\nbare = tr\\\nue\n",
        "[include]\n\tpath = x\n",
        '[includeIf "gitdir:/"]\n\tpath = x\n',
        '[remote "o"]\n\turl = ext::sh -c x\n',
        '[remote "o"]\n\tuploadpack = x\n',
        '[submodule "s"]\n\tupdate = !x\n',
        '[filter "lfs"]\n\tsmudge = x\n',
        "bare = true\n",
        "[core]\n" + "# \n" * CONFIGURATION_BYTES,
    ],
)
def test_what_is_not_understood_is_not_plain(text: str) -> None:
    assert not is_plain_configuration(text.encode())


def test_what_git_itself_writes_is_plain(tmp_path: Path) -> None:
    for step in (
        "init source",
        "init inner",
        "clone source clone",
        "clone --bare source bare.git",
        "clone --depth=1 file://{}/source shallow",
    ):
        if step.startswith("clone source"):
            for name in ("source", "inner"):
                (tmp_path / name / "f").write_text("x")
                assert git("add", ".", cwd=tmp_path / name).returncode == 0
                assert git("commit", "-m", "x", cwd=tmp_path / name).returncode == 0
        done = git(*step.format(tmp_path).split(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    clone = tmp_path / "clone"
    for step in (
        "submodule add ../inner sub",
        "checkout -b other --track origin/main",
        "remote add more ../inner",
        "sparse-checkout init --cone",
        "worktree add ../work",
        "config user.email me@example.org",
    ):
        done = git(*step.split(), cwd=clone)
        assert done.returncode == 0, (step, done.stderr)
    written = [path for path in tmp_path.rglob("config*") if path.is_file() and ".git" in str(path)]
    assert len(written) > 5
    for path in written:
        assert is_plain_configuration(path.read_bytes()), path.read_text()
    assert is_plain_pointer((tmp_path / "work/.git").read_bytes())
    assert is_plain_pointer((clone / "sub/.git").read_bytes())
    assert is_plain_common((clone / ".git/worktrees/work/commondir").read_bytes())


@pytest.mark.parametrize(
    "target", ["evil", ".git/modules/../../evil", ".git/modules", "x/.git", ".git/modules/a\nx", "../.git/worktrees/.."]
)
def test_a_pointer_elsewhere_is_not_plain(target: str) -> None:
    assert not is_plain_pointer(f"gitdir: {target}\n".encode())
