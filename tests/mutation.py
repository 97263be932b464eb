"""Mutation testing: `python -m tests.mutation [--sample N] [MODULE...]`. A fault that no test notices is a finding.

For each group of `TESTS`, one process loads the tests and forks for every mutant: the fork puts the mutated code into
the functions that are there, and runs the tests that enter the mutated function, the fastest first, until one fails.
What also ran while modules were loaded is mutated on the way in as well, in a process of its own.
What survives is printed, and is a failure unless `mutation_argued.txt` says why no test can tell.

A sample is drawn anew for each state of the sources, and is the same whenever it is drawn for that state.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import hashlib
import importlib.abc
import importlib.util
import itertools
import json
import mmap
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import attrs
import pytest

from .mutants import Mutant, code_of, mutants_of

ROOT = Path(__file__).parent.parent
ARGUED = Path(__file__).parent / "mutation_argued.txt"
CHILD_SIDE = ("sandbox_kernel_files", "sandbox_openat", "sandbox_protocol", "sandbox_rlimits", "sandbox_wire")
"""Tests that call the child side's functions themselves, in this process or a fork: a mutant is in no other process."""
TESTS = {
    "policy/*.py": ("policy_*",),
    "transfers/*.py": ("transfers_*", "transfer_stalls", "quotas"),
    **{f"sandbox/{name}.py": CHILD_SIDE for name in ("kernel/files", "kernel/rlimits", "wire")},
    "broker/contract/decode.py": ("broker_contract",),
    "broker/http/bulk.py": ("front_bulk",),
    "broker/http/body_shape.py": ("front_shape",),
    "broker/audit/logfile.py": ("broker_auditlog",),
    "broker/audit/run.py": ("broker_auditrun",),
    "broker/audit/sync.py": ("broker_auditsync",),
    "broker/audit/writer.py": ("broker_auditwriter",),
    "broker/audit/audit.py": ("broker_audit", "broker_audit_floods", "broker_audit_order"),
    "broker/audit/refusals.py": ("broker_audit_redaction", "broker_audit_floods"),
    "broker/audit/redact.py": ("broker_audit_redaction", "broker_audit_floods"),
    "broker/audit/secret_words.py": ("broker_audit_redaction", "broker_audit_floods"),
    "broker/records.py": ("broker_records",),
}
"""What can be mutated, at any depth of a folder, and the test files (`test_*.py`, of any room) that answer for it."""
WHOLE = (
    "policy/**/*.py",
    *("transfers/upload*.py", "transfers/download*.py", "transfers/filestreams.py", "transfers/ticket.py"),
    *("broker/contract/decode.py", "broker/http/body_shape.py", "broker/audit/refusals.py", "broker/records.py"),
    *("broker/audit/redact.py", "broker/audit/secret_words.py", "broker/audit/audit.py"),
    *("transfers/disk.py", "transfers/store.py", "transfers/threads.py"),
    *("transfers/media.py", "transfers/refusals.py", "transfers/digest.py"),
    *("broker/audit/logfile.py", "broker/audit/run.py", "broker/audit/sync.py", "broker/audit/writer.py"),
    *("sandbox/kernel/files.py", "sandbox/kernel/rlimits.py", "sandbox/wire.py"),
)
"""Where every survivor was killed or is argued: what is tried, and drawn from, where no module is named."""
QUICK = "not (conformance or soak or guest or long)"
SLACK_S = 3.0
SLOWER = 4
"""A test has so many times the processor's seconds that it took, and SLACK_S. A mutant that takes more is noticed."""
MUTANT_S = 240.0
"""Of one that waits for ever."""
EXAMPLES = 25
"""Of each property."""
MEMORY_BYTES = 4 << 30
NOT_NOTICED = 0
NOT_THERE = 99  # no function takes the mutated code


# --- in the process that has loaded the tests


@attrs.define(eq=False)
class _Group:
    """A plugin that, instead of running the tests once, runs what is asked for mutant by mutant."""

    mutants: Sequence[Mutant]
    report: Callable[[Mutant], None]
    _at_load: Entries = attrs.field(init=False)
    _functions: dict[tuple[Any, ...], list[FunctionType]] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self._at_load = self._entries()

    def _entries(self) -> Entries:
        return Entries({f"{mutant.file} {mutant.function}" for mutant in self.mutants})

    def pytest_collection(self) -> None:
        _few_examples()
        sys.settrace(self._at_load.note)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        sys.settrace(None)
        if session.testsfailed:
            raise session.Failed("the tests cannot be loaded")
        self._functions = _functions_by_place()
        items = {item.nodeid: item for item in session.items}
        loaded = self._at_load.noted()
        seconds, entering = _forked_for(lambda: _observed(session, items, self._entries()))
        for mutant in self.mutants:
            tests = sorted(entering.get(f"{mutant.file} {mutant.function}", ()), key=seconds.__getitem__)
            chosen = {items[test]: seconds[test] for test in tests}
            status = _forked(lambda m=mutant, c=chosen: self._run(session, m, c))
            also_loaded = f"{mutant.file} {mutant.function}" in loaded
            noticed = status not in (NOT_NOTICED, NOT_THERE)
            if status == NOT_THERE or (also_loaded and not noticed):
                noticed = _noticed_at_load(mutant)
            if not noticed:
                self.report(mutant)
        return True

    def _run(self, session: pytest.Session, mutant: Mutant, chosen: Mapping[pytest.Item, float]) -> int:
        put_in = set()
        threading.excepthook = _end_noticed
        for code in _codes(code_of(ROOT, mutant)):
            for function in self._functions.get(_place(code), ()):
                function.__code__ = code
                put_in.add(code.co_qualname.partition(".<locals>")[0])
        return _run(session, chosen) if mutant.function in put_in else NOT_THERE


def _end_noticed(_: object) -> None:
    """End a mutant's process for a thread's error: pytest tells it behind the test, which may wait for that thread."""
    os._exit(1)


def _run(session: pytest.Session, items: Mapping[pytest.Item, float]) -> int:
    """Run items until one fails. A test that takes too long of the processor ends the process."""
    order = [*items, None]
    for item, following in itertools.pairwise(order):
        signal.setitimer(signal.ITIMER_PROF, SLACK_S + SLOWER * items[item])
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return 1
    return NOT_NOTICED


def _observed(session: pytest.Session, items: Mapping[str, pytest.Item], entries: Entries) -> Any:
    """Seconds of the processor by test, and the tests that enter a function, when nothing is wrong."""
    seconds: dict[str, float] = {}
    entering: defaultdict[str, list[str]] = defaultdict(list)
    threading.settrace(entries.note)
    for test, item in items.items():
        entries.forget()
        began = time.process_time()
        sys.settrace(entries.note)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        sys.settrace(None)
        if session.testsfailed:
            raise RuntimeError(f"without a mutant, {test} fails")
        seconds[test] = time.process_time() - began
        for function in entries.noted():
            entering[function].append(test)
    return seconds, entering


class Entries:
    """Notes which of some functions are entered: names of a file and an outermost function.

    One for all tests: a thread of trio's goes on to the next test, and keeps the trace function it began with. The
    notes are in memory that forks share: many a test tries in a child what it cannot do to itself.
    """

    def __init__(self, functions: Collection[str]) -> None:
        self._index = {function: index for index, function in enumerate(sorted(functions))}
        self._notes = mmap.mmap(-1, len(functions))
        self._seen: dict[int, CodeType] = {}

    def forget(self) -> None:
        """Begin anew."""
        self._notes[:] = bytes(len(self._notes))
        self._seen.clear()

    def noted(self) -> set[str]:
        """Return what was entered."""
        return {function for function, index in self._index.items() if self._notes[index]}

    def note(self, frame: Any, event: str, _: object) -> None:
        """Be told by `sys.settrace`."""
        code = frame.f_code
        if event == "call" and id(code) not in self._seen:
            self._seen[id(code)] = code
            file = code.co_filename.removeprefix(f"{ROOT}{os.sep}")
            index = self._index.get(f"{file} {code.co_qualname.partition('.<locals>')[0]}")
            if index is not None:
                self._notes[index] = 1


def _place(code: CodeType) -> tuple[Any, ...]:
    return code.co_filename, code.co_qualname, code.co_firstlineno, code.co_freevars


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _functions_by_place() -> dict[tuple[Any, ...], list[FunctionType]]:
    found: defaultdict[tuple[Any, ...], list[FunctionType]] = defaultdict(list)
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename.startswith(f"{ROOT}{os.sep}"):
            found[_place(thing.__code__)].append(thing)
    return found


def _few_examples() -> None:
    import hypothesis  # noqa: PLC0415  pytest warns of a plugin that is imported before it

    few = hypothesis.settings(
        hypothesis.settings.get_profile("unhurried"),
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],  # nobody looks at what is found: no shrinking
    )
    hypothesis.settings.register_profile("few", few)
    hypothesis.settings.load_profile("few")


# --- processes


def _forked(work: Callable[[], int]) -> int:
    """Run *work* in a fork, with what it starts; return its status, negative where a signal ended it."""
    pid = os.fork()
    if not pid:
        status = 70
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            status = work()
        except BaseException:  # noqa: BLE001  the status tells
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    deadline = time.monotonic() + MUTANT_S
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.005)
    _end_group(pid)
    return os.waitstatus_to_exitcode(ended[1])


def _end_group(group: int) -> None:
    """What the tests of a mutant left running."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _forked_for(work: Callable[[], Any]) -> Any:
    """Return what *work* returns in a fork, as JSON carries it."""
    file = os.memfd_create("told")

    def tell() -> int:
        os.pwrite(file, json.dumps(work()).encode(), 0)
        return 0

    if (status := _forked(tell)) != 0:
        raise RuntimeError(f"without a mutant, the tests end with {status}")
    return json.loads(os.pread(file, os.fstat(file).st_size, 0))


class _OnTheWayIn(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module with a fault in it."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        self._name = mutant.file.removesuffix(".py").replace("/", ".")

    def find_spec(self, name: str, path: object, target: object = None) -> Any:
        file = str(ROOT / self._mutant.file)
        return importlib.util.spec_from_file_location(name, file, loader=self) if name == self._name else None

    def get_code(self, _: str) -> CodeType:
        return code_of(ROOT, self._mutant)

    def get_data(self, path: str) -> bytes:
        return Path(path).read_bytes()

    def get_filename(self, _: str) -> str:
        return str(ROOT / self._mutant.file)


def _noticed_at_load(mutant: Mutant) -> bool:
    command = [sys.executable, "-m", "tests.mutation", "--one", mutant.file, mutant.name]
    try:
        done = subprocess.run(command, cwd=ROOT, timeout=MUTANT_S, capture_output=True, check=False)
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != NOT_NOTICED


def _run_one(file: str, name: str) -> int:
    (mutant,) = (mutant for mutant in mutants_of(ROOT, file) if mutant.name == name)
    sys.meta_path.insert(0, _OnTheWayIn(mutant))
    return _pytest(_tests_of(file), _Few())


class _Few:
    def pytest_collection(self) -> None:
        _few_examples()


def _pytest(files: Sequence[str], plugin: object) -> int:
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    return int(pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-m", QUICK, *files], [plugin]))


# --- what is mutated


def _tests_of(file: str) -> tuple[str, ...]:
    patterns = next(patterns for pattern, patterns in TESTS.items() if fnmatch.fnmatch(file, pattern))
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    chosen = [t for t in tests if any(fnmatch.fnmatch(t.name, f"test_{pattern}.py") for pattern in patterns)]
    return tuple(str(test.relative_to(ROOT)) for test in chosen)


def all_modules(root: Path = ROOT) -> list[str]:
    """Every module that WHOLE names."""
    return [str(path.relative_to(root)) for pattern in WHOLE for path in sorted(root.glob(pattern))]


def argued() -> frozenset[str]:
    """The names of mutants that no test can tell: lines at the margin; the reason follows, indented."""
    lines = ARGUED.read_text().splitlines()
    return frozenset(line for line in lines if line and not line.startswith((" ", "#")))


def drawn(mutants: list[Mutant], count: int) -> list[Mutant]:
    """A sample that only the sources decide about."""
    seed = hashlib.sha256("".join(mutant.name for mutant in mutants).encode()).digest()
    chosen = {mutant.name for mutant in random.Random(seed).sample(mutants, min(count, len(mutants)))}  # noqa: S311
    return [mutant for mutant in mutants if mutant.name in chosen]


def survivors_of(mutants: Sequence[Mutant]) -> int:
    """Try them; print and count those that no test notices."""
    groups: defaultdict[tuple[str, ...], list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        groups[_tests_of(mutant.file)].append(mutant)
    said = os.fdopen(os.dup(1), "w", buffering=1)  # pytest takes the first for itself
    count = os.memfd_create("count")

    def report(mutant: Mutant) -> None:
        os.write(count, b"x")
        print(f"line {mutant.line}: survives\n{mutant.name}", file=said)

    for files, group in groups.items():
        if (process := os.fork()) == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            try:
                os._exit(_pytest(files, _Group(group, report)))
            finally:
                os._exit(70)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status not in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
            raise SystemExit(f"the tests of {group[0].file} end with {status} before anything is mutated")
    return os.fstat(count).st_size


def main() -> int:
    if sys.argv[1:2] == ["--one"]:
        return _run_one(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="so many mutants instead of all")
    parser.add_argument("--argued-too", action="store_true", help="try those that are argued away as well")
    parser.add_argument("modules", nargs="*", help="files of TESTS, instead of all of WHOLE")
    options = parser.parse_args()
    known = frozenset() if options.argued_too else argued()
    every = [mutant for module in options.modules or all_modules() for mutant in mutants_of(ROOT, module)]
    wanted = [mutant for mutant in every if mutant.name not in known]
    mutants = drawn(wanted, options.sample) if options.sample else wanted
    survivors = survivors_of(mutants)
    print(f"{survivors} of {len(mutants)} mutants survive; {len(every) - len(wanted)} of {len(every)} are argued")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
