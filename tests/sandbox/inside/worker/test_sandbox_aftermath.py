"""The look for closed names after a birth, on real trees: what is found, what is not, and in which order."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from sandbox import wire
from sandbox.inside import blocked_paths
from sandbox.inside.worker import aftermath
from sandbox.inside.worker.job import Job, Stop

ENV = r"/\.env(?=/|\Z)"
GIT = r"/\.git/(?:modules/[^/]+/)?(?:config|hooks)(?=/|\Z)|/\.git/(?:worktrees/[^/]+/)?commondir(?=/|\Z)"
NEVER = "(?!)"


def born(*roots: Path, max_names: int = blocked_paths.MAX_NAMES) -> blocked_paths.Search:
    """A search that a birth has made in *roots*; without mounts, as its `left` says."""
    last_ns = max(path.lstat().st_ctime_ns for root in roots for path in (root, *root.rglob("*")))
    while time.clock_gettime_ns(blocked_paths.CLOCK) <= last_ns:  # what came in the same tick counts as later
        continue
    places = [str(root) for root in roots]
    none: dict[str, Any] = {
        name: [] for name in ("places", "names", "folders", "opened", "system", "sockets_in", "sockets_of")
    }
    names = {
        "blocked": (NEVER, ENV),
        "guarded": (NEVER, GIT),
        "last_names": r"/(?:\.env|config|hooks|commondir)(?=/|\Z)",
    }
    search = blocked_paths.Search(
        {**none, **names, "roots": places, "writable": places, "uid": os.getuid()}, max_names=max_names
    )
    search.left = frozenset(path for path, only_guarded in search.found() if only_guarded)
    return search


def look(search: blocked_paths.Search, first: Path, max_items: int = 100) -> tuple[list[str], str]:
    """What a look finds, without the first root's path, and why it stopped."""
    ours, theirs = wire.pair()
    with ours, theirs:
        job = Job(theirs, {"timeout_s": 20, "max_items": max_items}, search)
        stopped = ""
        try:
            aftermath.look(job, {"first": str(first)}, [])
        except Stop as stop:
            stopped = stop.why
        job.flush()
        received = wire.receive(ours)
        assert received is not None
        return [path for path, _program, _aside in received[0]["piece"]], stopped


def write(path: Path, mode: int = 0o644, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def test_hooks_count_only_where_git_would_run_them(tmp_path: Path) -> None:
    search = born(tmp_path)
    hooks = tmp_path / "r/.git/hooks"
    write(hooks / "pre-commit", 0o755)
    write(hooks / "update.sample", 0o755)
    write(hooks / "notes")
    assert look(search, tmp_path) == ([str(hooks), str(hooks / "pre-commit")], "")
    assert {path.name.split(".")[-1] for path in hooks.iterdir()} == {"set-aside", "sample", "notes"}
    assert look(search, tmp_path) == ([str(hooks)], "")


def test_what_was_there_is_found_only_when_it_changed(tmp_path: Path) -> None:
    old, covered = tmp_path / "old/.git/hooks/pre-commit", tmp_path / "old/.env"
    write(old, 0o755)
    write(covered)
    search = born(tmp_path)
    assert look(search, tmp_path) == ([], "")
    write(covered)  # closed to commands: whoever changed it is outside
    write(old, 0o755)
    assert look(search, tmp_path) == ([str(old)], "")


def test_a_folder_that_becomes_a_repository_by_what_is_in_it_is_found(tmp_path: Path) -> None:
    write(tmp_path / "module/.git")
    for name in ("HEAD", "objects/x", "refs/x", "config"):
        write(tmp_path / "old" / name)
    for name in ("HEAD", "objects/x", "config"):
        write(tmp_path / "half" / name)
    search = born(tmp_path)
    assert look(search, tmp_path) == ([], "")
    write(tmp_path / "sub/.git")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/.git").symlink_to("../sub")
    for name in ("HEAD", "objects/x", "refs/x", "config"):
        write(tmp_path / "new" / name)
        write(tmp_path / "usual/.git" / name)
    write(tmp_path / "half/config")
    found, _ = look(search, tmp_path)
    assert sorted(found) == [
        str(tmp_path / name) for name in ("linked/.git", "new/config", "sub/.git", "usual/.git/config")
    ]
    write(tmp_path / "old/config")
    assert str(tmp_path / "old/config") in look(search, tmp_path)[0]


def test_no_link_is_followed(tmp_path: Path) -> None:
    workspace, elsewhere = tmp_path / "ws", tmp_path / "elsewhere"
    workspace.mkdir()
    search = born(workspace)
    write(elsewhere / ".env")
    (workspace / "way").symlink_to(elsewhere)
    assert look(search, workspace) == ([], "")
    (workspace / ".env").symlink_to(elsewhere)  # the control: the link itself has a closed name
    assert look(search, workspace) == ([str(workspace / ".env")], "")


def test_where_the_birth_did_not_see_all_only_what_changed_since_is_found(tmp_path: Path) -> None:
    for n in range(20):
        write(tmp_path / f"d{n}/.env")
    search = born(tmp_path, max_names=25)
    assert search.missed
    assert look(search, tmp_path) == ([], "")
    write(tmp_path / "new/.env")
    assert look(search, tmp_path) == ([str(tmp_path / "new/.env")], "")


def test_the_working_directory_comes_first_and_a_limit_ends_it(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in "abc"]
    for root in roots:
        root.mkdir()
    search = born(*roots)
    for root in roots:
        write(root / "d/.env")
    for root in roots:
        assert look(search, root, max_items=1) == ([str(root / "d/.env")], "count")
    assert len(look(search, roots[0])[0]) == 3


def test_names_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aftermath, "MAX_NAMES", 10)
    search = born(tmp_path)
    for n in range(11):
        (tmp_path / f"f{n}").touch()
    assert look(search, tmp_path) == ([], "names")
    os.unlink(tmp_path / "f0")
    assert look(search, tmp_path) == ([], "")


EVIL = "[core]\n\tfsmonitor = ./evil\n"
PLAIN = '[core]\n\trepositoryformatversion = 0\n[remote "origin"]\n\turl = /srv/x.git\n'


def test_what_would_start_a_program_in_a_new_repository_is_set_aside(tmp_path: Path) -> None:
    write(tmp_path / "old/.git/config", text=EVIL)
    search = born(tmp_path)
    hostile = ["a/.git/config", "b/.git/modules/s/config", "c/.git/commondir", "d/.git/worktrees/w/commondir", "e/.git"]
    for name, text in zip(hostile, (EVIL, EVIL, "../evil", "../../../evil", "gitdir: evil\n"), strict=True):
        write(tmp_path / name, text=text)
    for name in ("f/.git/hooks/pre-commit", "g/.git/modules/s/hooks/update"):
        hostile.append(name)
        write(tmp_path / name, mode=0o755)
    for name, target in (("h/.git/hooks", "../../evil"), ("i/.git/config", "/etc/hostname"), ("j/.git", "../evil")):
        hostile.append(name)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "f/.git/config")
    honest = {"k/.git/config": PLAIN, "k/.git/modules/s/config": PLAIN, "k/.git/worktrees/w/commondir": "../..\n"}
    honest |= {"l/.git": "gitdir: ../k/.git/modules/s\n", "m/.git": f"gitdir: {tmp_path}/k/.git/worktrees/w\n"}
    for name, text in honest.items():
        write(tmp_path / name, text=text)
    write(tmp_path / "old/.git/config", text=f"{EVIL}# of somebody outside")
    found, _ = look(search, tmp_path)
    assert set(found) >= {str(tmp_path / name) for name in (*hostile, *honest, "old/.git/config", "f/.git/config")}
    assert [name for name in (*hostile, "f/.git/config") if os.path.lexists(tmp_path / name)] == []
    assert [name for name in (*honest, "old/.git/config") if not (tmp_path / name).exists()] == []
    assert len(list(tmp_path.rglob("*.set-aside"))) == len(hostile) + 1, "nothing is lost"
