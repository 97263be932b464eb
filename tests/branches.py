"""Branch coverage by package: `python -m tests.branches FOLDER`, as `nox -s coverage` runs it.

Copies the packages and tests to FOLDER, appends to the packages there what measures them (`tests/measured.py`), runs
the tests of TESTS in the copy, and reports. A package below its FLOOR is a failure, and so is a run that broke
off. A test that fails is not: it does so for being traced, or in `tests` as well.
"""

from __future__ import annotations

import argparse
import json
import marshal
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from .measured import MARKS, PACKAGES, PLACES, prepare, steps

ROOT = Path(__file__).parent.parent
COPIED = (*PACKAGES, "tests", "bench", "docs", "pyproject.toml", "README.md")
TESTS = (
    *("policy_*", "config_*", "transfers_*", "transferhead", "output_*", "broker_*", "bytebudget", "session*"),
    *("sandbox_*", "walls_names*", "walls_births", "walls_closed", "treetools", "treetools_disk", "archive_*", "moves"),
    *("archives", "front_mcp", "front_jobs", "front_bulk", "front_hostile", "front_limits", "front_origins"),
    *("front_places", "front_shape", "guarded_paths", "jobs", "order", "outcomes", "ownership", "quotas", "reachable"),
    *("untenable", "live_inputs", "live_sessions", "live_policy"),
)
"""Of `test_*.py`, in any room: what enters most of the code in few minutes, without what is marked `long`."""
LONG_TESTS = ("front_stdio", "live_transfers", "live_own_port", "sandbox_sniffing", "transfer_stalls")
"""Of those that are marked `long` as a whole: what alone enters stdio, transfers by URL, peers and types."""
KINDS = "not (conformance or soak or guest or histories or failing)"
LEFT_OUT = (
    "broker/audit/test_broker_audit_redaction.py::test_redaction_takes_time_in_proportion",
    "live/test_live_own_port.py::test_a_call_whose_sender_is_gone_has_no_effect[user]",
    "live/test_live_own_port.py::test_no_address_leads_around_it",
    "live/test_live_own_port.py::test_no_process_of_a_session_is_served[namespaces-user]",
    "live/test_live_own_port.py::test_no_process_of_a_session_is_served[no namespaces-",
    "live/test_live_transfers.py::test_a_full_disk_is_told_and_leaves_the_file_as_it_was",
    "live/test_live_transfers.py::test_a_plain_users_broker_transfers_as_well",
    "transfers/test_transfers_crashes.py",  # kills what it measures, some hundred times
    "broker/contract/test_broker_errors.py::test_every_failure_fits_every_output_schema",
    "broker/tools/test_jobs.py::test_both_streams_keep_their_order",
    "sandbox/files/test_sandbox_files.py::test_more_answers_than_a_user_may_have_under_way_are_refused_not_fatal",
    "sandbox/inside/keeper/test_sandbox_spawner.py::test_a_keeper_without_a_thread_says_so",
    "sandbox/files/test_sandbox_treework.py::test_lines_are_numbered_across_blocks",
)
"""What fails, or takes minutes, while each line is traced: it counts on speed or memory, or is a great many cases."""
FLOORS = {"broker": 86, "config": 94, "policy": 97, "sandbox": 79, "transfers": 94}
"""Percent of the branches of a package, a little under what was measured (docs/coverage.md). The one place for them."""
SOME_FAILED = 1
"""Pytest's status where all ran and some failed."""


@attrs.define
class Taken:
    """Branches that were taken, of those that there are."""

    taken: int = 0
    there_are: int = 0

    def add(self, other: Taken) -> None:
        self.taken += other.taken
        self.there_are += other.there_are

    @property
    def percent(self) -> float:
        return 100 * self.taken / self.there_are if self.there_are else 100

    def __str__(self) -> str:
        return f"{self.percent:5.1f} %  {self.taken:5} of {self.there_are:5}"


def main() -> int:
    """Copy, run, report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the copy and what is measured; emptied first")
    parser.add_argument("pytest", nargs="*", help="more of pytest's command line, instead of the tests of TESTS")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    tree, data = folder / "tree", folder / "data"
    shutil.rmtree(folder, ignore_errors=True)
    _copy(tree)
    prepare(str(tree), str(data))
    status = _run_tests(tree, asked.pytest)
    floors = dict.fromkeys(FLOORS, 0) if asked.pytest else FLOORS  # they are for the tests of TESTS
    text, low = report(_merged(tree, data), floors)
    print(text)
    return status if status > SOME_FAILED else int(bool(low))


def _copy(tree: Path) -> None:
    """Copy what the tests read."""
    tree.mkdir(parents=True)
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)


def _run_tests(tree: Path, asked: list[str]) -> int:
    """Run what was asked for, else both of our choices; returns pytest's worst status."""
    return max(_run_pytest(tree, words) for words in ([asked] if asked else chosen(tree)))


def _run_pytest(tree: Path, words: list[str]) -> int:
    print(f"measured while these tests run: {' '.join(words)}", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-profile", "same", *words]
    return subprocess.run(command, cwd=tree, check=False).returncode


def chosen(tree: Path) -> tuple[list[str], list[str]]:
    """Return the words of pytest's command line that stand for TESTS, and those for LONG_TESTS."""
    at_once = ["-n", "logical", "--maxprocesses", "4", "--dist", "loadscope"]
    left_out = [word for test in LEFT_OUT for word in ("--deselect", f"tests/{test}")]

    def words(kinds: str, names: tuple[str, ...]) -> list[str]:
        files = sorted(
            {str(file.relative_to(tree)) for name in names for file in tree.glob(f"tests/**/test_{name}.py")}
        )
        return [*at_once, "-m", kinds, *left_out, *files]

    return words(f"{KINDS} and not long", TESTS), words(KINDS, LONG_TESTS)


def _merged(tree: Path, data: Path) -> dict[str, Any]:
    """Put together what both sides noted; return coverage.py's report of it, by file."""
    import coverage  # noqa: PLC0415  only the session has it

    places = marshal.loads((data / PLACES).read_bytes())  # noqa: S302  we wrote it
    child = coverage.CoverageData(basename=str(data / ".coverage.child"))
    child.add_arcs({str(tree / file): arcs for file, arcs in steps((data / MARKS).read_bytes(), places).items()})
    child.touch_files([str(file) for package in PACKAGES for file in (tree / package).rglob("*.py")])
    child.write()
    whole = coverage.Coverage(
        data_file=str(data / ".coverage"),
        branch=True,
        source=[str(tree / package) for package in PACKAGES],
        config_file=False,
        messages=False,
    )
    whole.set_option("report:exclude_also", ["if TYPE_CHECKING:"])
    whole.combine([str(data)])
    whole.save()
    whole.json_report(outfile=str(data / "report.json"))
    files: dict[str, Any] = json.loads((data / "report.json").read_text())["files"]
    return {str(Path(name).resolve().relative_to(tree)): found for name, found in files.items()}


def report(files: Mapping[str, Any], floors: Mapping[str, float]) -> tuple[str, list[str]]:
    """Return what was taken, by package and by file, as text, and the packages that are below their floor."""
    packages = {package: Taken() for package in floors}
    named = []
    for name, found in sorted(files.items()):
        taken = Taken(found["summary"]["covered_branches"], found["summary"]["num_branches"])
        packages[name.partition("/")[0]].add(taken)
        if found["missing_branches"]:
            missing = ", ".join(f"{source}->{'end' if to < 0 else to}" for source, to in found["missing_branches"])
            named.append(f"  {taken}  {name}: {missing}")
    low = [package for package, taken in packages.items() if taken.percent < floors[package]]
    lines = ["branches taken, by package:"]
    lines += [f"  {taken}  {package} (floor: {floors[package]} %)" for package, taken in packages.items()]
    lines += ["files with branches that were not taken:", *named]
    lines += [f"{package} is below its floor" for package in low]
    return "\n".join(lines), low


if __name__ == "__main__":
    sys.exit(main())
