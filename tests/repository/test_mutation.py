"""The mutants are the faults they are named for, and what is argued away is still there to be argued about."""

from __future__ import annotations

import fnmatch
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from policy.pattern import matches_name
from tests.mutants import code_of, mutants_of
from tests.mutation import TESTS, WHOLE, Entries, all_modules
from tests.sandbox.kernel.test_walls_seccomp import in_child

ROOT = Path(__file__).parents[2]
ARGUED = Path(__file__).parents[1] / "mutation_argued.txt"
SOURCE = '''
"""A module."""
LIMIT = 3

def f(a: int, b: int = 1) -> int:
    """Say something."""
    if a < b and not b == 4:
        raise ValueError(f"{a + b}")
    return a + 2
'''
NAMES = [
    "without `a < b` in `a < b and (not b == 4)`",
    "without `not b == 4` in `a < b and (not b == 4)`",
    "`a < b and (not b == 4)` -> `not (a < b and (not b == 4))`",
    "`a < b` -> `a <= b`",
    "`not b == 4` -> `b == 4`",
    "`b == 4` -> `b != 4`",
    "`4` -> `5`",
    "without `raise ValueError(f'{a + b}')`",
    "without `return a + 2`",
    "`a + 2` -> `a - 2`",
    "`2` -> `3`",
]


def test_each_mutant_is_one_fault_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(SOURCE)
    mutants = list(mutants_of(tmp_path, "m.py"))
    assert [mutant.name for mutant in mutants] == [f"m.py f: {name}" for name in NAMES]
    answers = {mutant.name: answer(code_of(tmp_path, mutant)) for mutant in mutants}
    whole = answer(compile(SOURCE, "m.py", "exec"))
    assert whole == [ValueError, 7, 6, 3, 5]
    assert {name for name, said in answers.items() if said == whole} == set()


OF_A_CLASS = """
class C(Exception):
    def __init__(self) -> None:
        super().__init__("c")
"""


def test_a_function_takes_its_mutated_code_also_if_that_uses_less(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(OF_A_CLASS)
    (mutant,) = mutants_of(tmp_path, "m.py")
    names: dict[str, Any] = {}
    exec(compile(OF_A_CLASS, "m.py", "exec"), names)  # noqa: S102  it is ours
    (body,) = (code for code in code_of(tmp_path, mutant).co_consts if isinstance(code, CodeType))
    (init,) = (code for code in body.co_consts if isinstance(code, CodeType))
    names["C"].__init__.__code__ = init
    assert str(names["C"]()) == ""


ENTERED = "policy/pattern.py matches_name"


@pytest.fixture
def entries() -> Iterator[Entries]:
    entries = Entries({ENTERED, "policy/pattern.py components"})
    before = threading.gettrace(), sys.gettrace()
    threading.settrace(entries.note)
    try:
        yield entries
    finally:
        threading.settrace(before[0])  # type: ignore[arg-type]  # its stub knows no None
        sys.settrace(before[1])


def test_what_a_thread_enters_is_noted_for_the_test_that_is_on_by_now(entries: Entries) -> None:
    with ThreadPoolExecutor(1) as thread:
        for _ in range(2):
            entries.forget()
            assert entries.noted() == set()
            assert thread.submit(matches_name, "a*", "ab").result()
            assert entries.noted() == {ENTERED}


def test_what_a_child_enters_is_noted_as_well(entries: Entries) -> None:
    sys.settrace(entries.note)
    assert in_child(lambda: matches_name("a*", "ab"))
    assert entries.noted() == {ENTERED}


def answer(code: Any) -> list[Any]:
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102  it is ours
    said: list[Any] = []
    for arguments in ((2, 3), (5, 4), (4, 4), (1, 1), (3, 4)):
        try:
            said.append(names["f"](*arguments))
        except ValueError:
            said.append(ValueError)
    return said


def test_what_is_argued_away_is_a_mutant_and_has_a_reason() -> None:
    lines = [line for line in ARGUED.read_text().splitlines() if line and not line.startswith("#")]
    names = [line for line in lines if not line.startswith(" ")]
    there: Counter[str] = Counter()
    for file in {name.split(" ")[0] for name in names}:
        there.update(mutant.name for mutant in mutants_of(ROOT, file))
    assert [name for name in names if not there[name]] == []
    assert len(names) == len({*names})
    for name in names:
        assert lines[lines.index(name) + 1 :][0:1][0].startswith(" ") or lines[lines.index(name) + 1] in names, name
    assert lines[-1:] == [] or lines[-1].startswith(" ")


def test_what_is_to_be_mutated_is_there_at_any_depth_and_has_tests(tmp_path: Path) -> None:
    modules = all_modules()
    assert [pattern for pattern in WHOLE if not [*ROOT.glob(pattern)]] == []
    assert [pattern for pattern in TESTS if not [*ROOT.glob(pattern)]] == []
    assert [module for module in modules if not any(fnmatch.fnmatch(module, pattern) for pattern in TESTS)] == []
    (tmp_path / "policy" / "room").mkdir(parents=True)
    (tmp_path / "policy" / "room" / "x.py").touch()
    assert all_modules(tmp_path) == ["policy/room/x.py"]
