"""What a measured copy of the packages runs first, in every process: `start` notes the branches that are taken.

The broker's side is measured by coverage.py. The child side has no site packages, writes no file, and is mostly killed:
there a trace function marks each step from line to line in a byte of its own, in a file that was mapped before the
walls. The mapping is shared by all forks and outlives every end; the walls see memory, and no system call.
The production code knows nothing of this: `tests/branches.py` makes the copy, and appends HOOK to each package in it.

On the child side this module is loaded without site packages: it imports the standard library alone, and little of it.
"""

from __future__ import annotations

import _thread
import atexit
import marshal
import mmap
import os
import sys
from opcode import opmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Buffer, Iterator, Mapping, MutableSequence
    from types import CodeType, FrameType
    from typing import Any

    Places = dict[str, dict[int, tuple[int, list[int]]]]
    """By file and first line of a code object: its first byte, and the lines in it. 0 is outside."""

HOOK = "\n\nfrom tests.measured import start\n\nstart()\n"
PACKAGES = ("broker", "config", "policy", "sandbox", "transfers")
CHILD = "sandbox"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA = os.path.join(os.path.dirname(ROOT), "data")
PLACES, MARKS = "child.places", "child.marks"
CO_GENERATOR = 0x20
RESUME = bytes([opmap["RESUME"]])


def start() -> None:
    """Measure this process from here on, once."""
    if os.path.isdir(DATA) and not _started:
        _started.append(True)
        (_start_child if sys.flags.no_site else _start_broker)()


_started: list[bool] = []  # whichever package a process imports first


def _start_broker() -> None:
    """Have coverage.py measure the packages until the process ends by itself."""
    import coverage  # noqa: PLC0415  the child side has none

    code = [os.path.join(ROOT, package, "*") for package in PACKAGES]
    measuring = coverage.Coverage(
        data_file=os.path.join(DATA, ".coverage"),
        data_suffix=True,
        branch=True,
        include=code,
        config_file=False,
        messages=False,
        check_preimported=False,
    )
    pid = os.getpid()

    def save() -> None:
        if os.getpid() == pid:  # a fork has this handler too
            measuring.stop()
            if os.access(DATA, os.W_OK):  # not behind walls, where a test runs our code as a program
                measuring.save()

    measuring.start()
    atexit.register(save)


def _start_child() -> None:
    """Mark every step of the child side, in this process and its forks, until they end in whatever way."""
    try:
        with open(os.path.join(DATA, PLACES), "rb") as file:
            places = marshal.load(file)  # noqa: S302  we wrote it
        fd = os.open(os.path.join(DATA, MARKS), os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # behind walls
        return
    marks = mmap.mmap(fd, 0)
    os.close(fd)
    trace = Tracer(marks, places).enter
    start_plain = _thread.start_new_thread

    def start_traced(function: Any, arguments: tuple[Any, ...]) -> int:
        return start_plain(lambda: (sys.settrace(trace), function(*arguments)), ())

    _thread.start_new_thread = start_traced
    sys.settrace(trace)


class Tracer:
    """Marks the steps of the code that *places* knows: from line to line, in from outside, and out of it."""

    def __init__(self, marks: MutableSequence[int], places: Places) -> None:
        self._marks = marks
        self._places = {
            os.path.join(ROOT, file): {
                first: (base, len(lines), {line: index for index, line in enumerate(lines)})
                for first, (base, lines) in codes.items()
            }
            for file, codes in places.items()
        }

    def enter(self, frame: FrameType, event: str, _: object) -> Any:
        """Return what traces the lines of *frame*; None where they are nobody's concern."""
        code = frame.f_code
        codes = self._places.get(code.co_filename)
        place = codes and codes.get(code.co_firstlineno)
        if event != "call" or not place:
            return None
        base, size, index_of = place
        marks = self._marks
        last = 0 if _begins(frame) else index_of.get(frame.f_lineno, 0)

        def step(frame: FrameType, event: str, _: object) -> Any:
            nonlocal last
            if event == "line":
                now = index_of.get(frame.f_lineno, 0)
                marks[base + last * size + now] = 1
                last = now
            elif event == "return" and not _comes_back(frame):
                marks[base + last * size] = 1
            return step

        return step


def _begins(frame: FrameType) -> bool:
    """Tell whether a call is one, and not a generator that goes on."""
    return not frame.f_code.co_flags & CO_GENERATOR or frame.f_code.co_code[frame.f_lasti + 1] == 0


def _comes_back(frame: FrameType) -> bool:
    """Tell whether a return is the yield of a generator: where it goes on stands RESUME."""
    if not frame.f_code.co_flags & CO_GENERATOR:
        return False
    return frame.f_code.co_code[frame.f_lasti + 2 : frame.f_lasti + 3] == RESUME


def prepare(tree: str, data: str) -> None:
    """Have the packages in *tree* measured, and make the folder beside it that every process of theirs writes to."""
    for package in PACKAGES:
        with open(os.path.join(tree, package, "__init__.py"), "a", encoding="utf-8") as file:
            file.write(HOOK)
    os.mkdir(data)
    os.chmod(data, 0o777)  # noqa: S103  a test may run our code as another user
    places, size = places_in(tree, CHILD)
    for name, content in ((PLACES, marshal.dumps(places)), (MARKS, bytes(size))):
        with open(os.path.join(data, name), "wb") as made:
            made.write(content)
        os.chmod(made.name, 0o666)  # noqa: S103  as above


def places_in(root: str, package: str) -> tuple[Places, int]:
    """Give each step that the code of a package can take a byte; return them, and how many there are."""
    places: Places = {}
    size = 0
    for file in _modules(root, package):
        with open(os.path.join(root, file), "rb") as source:
            lines: dict[int, set[int]] = {}
            for code in _codes(compile(source.read(), file, "exec", dont_inherit=True)):
                lines.setdefault(code.co_firstlineno, set()).update(line for _, _, line in code.co_lines() if line)
        places[file] = {}
        for first, found in lines.items():
            places[file][first] = size, [0, *sorted(found)]
            size += (len(found) + 1) ** 2
    return places, size


def _modules(root: str, package: str) -> list[str]:
    """Return the modules of a package, from *root* and at any depth."""
    found = os.walk(os.path.join(root, package))
    paths = [os.path.join(folder, name) for folder, _, names in found for name in names if name.endswith(".py")]
    return sorted(os.path.relpath(path, root) for path in paths)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, type(code)):
            yield from _codes(constant)


def steps(marks: Buffer, places: Places) -> Mapping[str, list[tuple[int, int]]]:
    """Return the steps that were marked in each file, as coverage.py writes arcs: -N is outside of what begins at N."""
    marked = bytes(marks)
    found: dict[str, list[tuple[int, int]]] = {}
    for file, codes in places.items():
        for first, (base, lines) in codes.items():
            size = len(lines)
            for index in range(size * size):
                if marked[base + index]:
                    source, target = lines[index // size] or -first, lines[index % size] or -first
                    found.setdefault(file, []).append((source, target))
    return found
