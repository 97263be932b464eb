"""What nox selects: every test is in a session, whatever its marks are, and `full` runs them all."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MARKS = [re.split(r"[:(]", line)[0] for line in PROJECT["tool"]["pytest"]["markers"]]
APART = ("conformance", "soak", "guest")
COMBINED = [some for n in (0, 1, 2) for some in itertools.combinations(("long", "once", *APART), n)]

pytestmark = pytest.mark.once  # it reads files only


def selects(expression: str, marks: tuple[str, ...]) -> bool:
    """Tell whether `pytest -m expression` takes a test with these marks."""
    return bool(eval(expression, {}, {mark: mark in marks for mark in MARKS}))  # noqa: S307 - our own words


@pytest.fixture(scope="module")
def noxfile() -> Any:
    return pytest.importorskip("noxfile", reason="nox is not installed where the tests run")


@pytest.mark.parametrize("marks", COMBINED, ids="-".join)
def test_a_test_runs_once_on_the_python_of_nox_whatever_its_marks(noxfile: Any, marks: tuple[str, ...]) -> None:
    apart = set(marks) & set(APART)
    taken = [selects(expression, marks) for expression in (noxfile.QUICK, noxfile.LONG)]
    assert taken.count(True) == (0 if apart else 1)
    assert selects(noxfile.ELSEWHERE, marks) is (not apart and "once" not in marks)


def test_what_the_default_leaves_out_and_the_default_are_all(noxfile: Any) -> None:
    sessions = noxfile.nox.registry.get()
    tagged = {tag: {name for name, session in sessions.items() if tag in session.tags} for tag in ("full", "rest")}
    assert tagged["full"] == tagged["rest"] | set(noxfile.nox.options.sessions)
    assert set(APART) < tagged["rest"]
    assert sessions.keys() - tagged["full"] == {"newest", "lock"}


def test_what_waits_is_linted_at_any_depth_and_nothing_else(noxfile: Any, tmp_path: Path) -> None:
    room = tmp_path / "sandbox" / "inside" / "room"
    room.mkdir(parents=True)
    (room / "waits.py").write_text("async def f(): ...")
    (room / "works.py").write_text("def f(): ...")
    assert noxfile.waiting(tmp_path) == ["sandbox/inside/room/waits.py"]
    assert {"broker/session/session.py", "sandbox/threads.py"} <= {*noxfile.waiting(ROOT)}


def test_the_tests_that_are_named_for_a_guest_are_there(noxfile: Any) -> None:
    assert [name for name in noxfile.GUEST_TESTS if not (ROOT / name).is_file()] == []
