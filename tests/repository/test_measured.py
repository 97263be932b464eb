"""The child side is measured where nothing else could: behind walls, in forks, up to a SIGKILL."""

from __future__ import annotations

import marshal
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.branches import FLOORS, LEFT_OUT, LONG_TESTS, TESTS, chosen, report
from tests.measured import MARKS, PACKAGES, PLACES, places_in, prepare, steps

pytestmark = pytest.mark.once

FOLDER = Path(__file__).parents[1]
SAMPLE = """\
import os
import signal


def pick(number):
    if number > 1:
        return "many"
    for _ in range(number):
        print(
            number,
        )
    return "few"


def numbers():
    yield 1
    yield 2


def main(number):
    if os.fork() == 0:
        list(numbers())
        pick(number)
        os.kill(os.getpid(), signal.SIGKILL)
    os.wait()
"""
ENTERED = {(-5, 6), (-15, 16), (16, 17), (17, -15), (-20, 21), (21, 22), (21, 25), (22, 23), (23, 24), (25, -20)}
MANY = {(6, 7), (7, -5)}
FEW = {(6, 8), (8, 9), (9, 10), (10, 9), (9, 8), (8, 12), (12, -5)}
AT_LOAD = {(-1, 1), (1, 2), (2, 5), (5, 15), (15, 20), (20, -1)}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy as `tests/branches.py` makes it, of packages that are empty but for one file."""
    tree = tmp_path / "tree"
    for package in PACKAGES:
        (tree / package).mkdir(parents=True)
        (tree / package / "__init__.py").touch()
    (tree / "sandbox" / "sample.py").write_text(SAMPLE)
    (tree / "tests").mkdir()
    shutil.copy(FOLDER / "measured.py", tree / "tests")
    prepare(str(tree), str(tmp_path / "data"))
    return tree


def taken(tree: Path, code: str) -> set[tuple[int, int]]:
    """Run *code* as the child side runs, and return the steps that were marked."""
    data = tree.parent / "data"
    prelude = f"import sys; sys.path.append({str(tree)!r}); from sandbox.sample import main; "
    subprocess.run([sys.executable, "-I", "-S", "-c", prelude + code], check=True, env={}, capture_output=True)
    found = steps((data / MARKS).read_bytes(), marshal.loads((data / PLACES).read_bytes()))  # noqa: S302  we wrote it
    return set(found.get("sandbox/sample.py", []))


@pytest.mark.parametrize(("number", "branch"), [(2, MANY), (1, FEW)])
def test_a_fork_that_is_killed_leaves_the_steps_it_took_and_no_others(
    tree: Path, number: int, branch: set[tuple[int, int]]
) -> None:
    assert taken(tree, f"main({number})") == AT_LOAD | ENTERED | branch


def test_no_descriptor_and_no_place_in_the_file_system_is_needed_once_it_runs(tree: Path) -> None:
    bare = "import os, resource; os.closerange(3, 64); resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0)); "
    user = "os.chroot('/proc'); os.setuid(65534); " if os.getuid() == 0 else ""
    assert taken(tree, bare + user + "main(2)") == AT_LOAD | ENTERED | MANY


def test_what_runs_in_a_thread_is_marked_too(tree: Path) -> None:
    code = "import _thread; from sandbox.sample import pick; lock = _thread.allocate_lock(); lock.acquire(); "
    code += "_thread.start_new_thread(lambda: (pick(2), lock.release()), ()); lock.acquire()"
    assert taken(tree, code) == AT_LOAD | {(-5, 6)} | MANY


def test_without_the_hook_nothing_is_marked(tree: Path) -> None:
    (tree / "sandbox" / "__init__.py").write_text("")
    assert taken(tree, "main(2)") == set()


@pytest.mark.parametrize(("taken", "low"), [(90, []), (89, ["policy"])])
def test_a_package_below_its_floor_is_named_and_so_are_the_branches_not_taken(taken: int, low: list[str]) -> None:
    files = {
        "policy/a.py": {"summary": {"covered_branches": taken - 40, "num_branches": 60}, "missing_branches": [[3, -1]]},
        "policy/b.py": {"summary": {"covered_branches": 40, "num_branches": 40}, "missing_branches": []},
    }
    text, found = report(files, {"policy": 90})
    assert found == low
    assert "policy/a.py: 3->end" in text
    assert "policy/b.py" not in text


def test_every_package_has_a_floor() -> None:
    assert sorted(FLOORS) == sorted(PACKAGES)


def test_a_module_and_a_test_in_a_sub_folder_are_measured_too(tmp_path: Path) -> None:
    for name in ("sandbox/inside/room/sample.py", "tests/policy/test_policy_x.py", "tests/policy/test_other.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(SAMPLE)
    places, _ = places_in(str(tmp_path), "sandbox")
    assert {*places} == {"sandbox/inside/room/sample.py"}
    quick, long = chosen(tmp_path)
    assert "tests/policy/test_policy_x.py" in quick
    assert "tests/policy/test_other.py" not in [*quick, *long]


@pytest.mark.parametrize("name", [*TESTS, *LONG_TESTS])
def test_every_name_of_the_choice_stands_for_a_file(name: str) -> None:
    assert [*FOLDER.rglob(f"test_{name}.py")]


@pytest.mark.parametrize("test", LEFT_OUT)
def test_what_is_left_out_is_there(test: str) -> None:
    file, _, function = test.partition("::")
    assert f"def {function.partition('[')[0]}" in (FOLDER / file).read_text()


def test_the_long_files_are_marked_as_a_whole_and_the_others_are_not() -> None:
    """Else a file of the first choice would enter nothing, which is how the transfers came to count for nothing."""
    marked = re.compile(r"^pytestmark = [^\n]*(\[[^\]]*)?\bmark\.long\b", re.MULTILINE)
    long = {f"test_{name}.py" for name in LONG_TESTS}
    chosen = {f"test_{name}.py" for name in (*TESTS, *LONG_TESTS)}
    files = [file for name in chosen for file in FOLDER.rglob(name)]
    assert {file.name for file in files if marked.search(file.read_text())} == long
