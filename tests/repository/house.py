"""The rooms of the house and who may enter whom: data, and pure checks of which module imports what.

A room is a folder, or a file that several rooms share. It may import itself and the rooms that MAY_ENTER names for
it. Imports under TYPE_CHECKING count: they say who has to know whom.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

PACKAGES = ("broker", "config", "policy", "sandbox", "transfers")
BESIDE_ROOMS = frozenset({"live", "hostile", "soak", "repository"})
"""Folders of tests that are of no single room: of the whole program, attacks, long runs, the repository itself.

Helpers that are no tests stand in `tests/support`, and what is run by its name beside the folders.
"""
Documented: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
QUESTION = re.compile(r"(?:Who|What)(?:ever)?\b")
MAX_FILES = 15
"""Of one folder of modules, `__init__.py` not counted; those of tests may have more: `tests/live` has."""

Graph = Mapping[str, frozenset[str]]
"""By module, every module that it imports, of ours and of others."""

# What both sides of the walls share.
SHARED = frozenset({"sandbox.kernel", "sandbox.wire", "sandbox.protocol", "sandbox.paths"})
# What knows no sandbox, though it lies there: the one way into a thread for all who may import `sandbox`, so that none
# forgets what happens where the kernel gives none, and the words for what a machine runs out of. `transfers` imports
# none of our packages and has the same thread for itself.
THREADS = frozenset({"sandbox.threads", "sandbox.shortage"})
# What every room outside the walls may use beside it.
EDGE = SHARED | THREADS | {"sandbox.errors", "sandbox.polled"}
# What stands between the start and the end of a session, seen from outside the walls.
MACHINE = EDGE | {"sandbox.machine"}
PLAN = MACHINE | {"sandbox.plan"}
CGROUP = PLAN | {"sandbox.cgroup"}
INIT = CGROUP | {"sandbox.init"}
OUTSIDE = INIT | {"sandbox.commands", "sandbox.files", "sandbox.sniffing"}
# What the rooms inside share, and those that are forked from one another.
INSIDE = SHARED | {"sandbox.inside.stages", "sandbox.inside.blocked_paths"}
UNFINISHED = INSIDE | {"sandbox.inside.unfinished"}
WORKER = UNFINISHED | {"sandbox.inside.worker"}
OPENER = WORKER | {"sandbox.inside.opener"}

TRANSFERS = frozenset({"transfers", "transfers.settings"})
# Frozen values, which any room outside the walls takes as they are; so nobody copies them.
SETTINGS = frozenset({"config.settings"})
CONFIG = SETTINGS | {"config", "config.checks", "config.faults"}
WORK = OUTSIDE | TRANSFERS | CONFIG | {"policy"}
# The rooms of the broker, from the ground up.
GROUND = SETTINGS | {"broker.contract", "broker.memory", "broker.calls", "broker.logs"}
SESSION = GROUND | {"broker.session"}
SCOPE = SESSION | {"broker.audit", "broker.failures", "broker.scope"}
DECIDED = SCOPE | {"broker.decisions", "broker.records", "broker.grants"}
FRONT = frozenset({"broker.access", "broker.http"})
ENTERED = DECIDED | FRONT | {"broker.tools"}
WIRED = ENTERED | {"broker.gateway", "broker.endpoint", "broker.trusted"}
BUILT = WIRED | {"broker.wiring"}
COMMAND_LINE = BUILT | {"broker.app", "broker.doctor", "broker.pulse"}

MAY_ENTER: Mapping[str, frozenset[str]] = {
    "policy": frozenset(),
    "transfers.settings": frozenset(),
    "transfers": frozenset({"transfers.settings"}),
    "config.faults": frozenset(),
    "config.checks": frozenset({"config.faults"}),
    "config.settings": frozenset({"config.checks", "sandbox.plan"}),
    "config": CONFIG - {"config"} | {"policy", "sandbox.plan", "transfers.settings"},
    # The kernel edge.
    "sandbox.paths": frozenset(),
    "sandbox.protocol": frozenset(),
    "sandbox.wire": frozenset({"sandbox.protocol"}),
    "sandbox.kernel": frozenset({"sandbox.paths"}),
    # Inside the walls; the folder around the rooms is none.
    "sandbox.inside": frozenset(),
    "sandbox.inside.stages": SHARED,
    "sandbox.inside.blocked_paths": SHARED | {"sandbox.inside.stages"},
    "sandbox.inside.sniffer": INSIDE,
    "sandbox.inside.unfinished": INSIDE,
    "sandbox.inside.worker": UNFINISHED,
    "sandbox.inside.opener": WORKER,
    "sandbox.inside.keeper": INSIDE,
    "sandbox.inside.init": OPENER | {"sandbox.inside.keeper"},
    # Outside the walls.
    "sandbox.threads": frozenset(),
    "sandbox.polled": frozenset(),
    "sandbox.shortage": frozenset(),
    "sandbox.errors": frozenset({"sandbox.shortage"}),
    "sandbox.machine": EDGE,
    "sandbox.plan": MACHINE,
    "sandbox.cgroup": PLAN,
    "sandbox.init": CGROUP,
    "sandbox.sniffing": INIT,
    "sandbox.commands": INIT,
    "sandbox.files": EDGE,
    # The broker.
    "broker.contract": frozenset(),
    "broker.memory": THREADS,
    "broker.calls": frozenset({"broker.contract", "broker.memory"}),
    "broker.logs": frozenset(),
    "broker.pulse": frozenset(),
    "broker.audit": GROUND,
    "broker.session": GROUND | OUTSIDE | TRANSFERS,
    "broker.access": GROUND | OUTSIDE | {"broker.audit"},
    "broker.trusted": WORK,
    "broker.failures": SESSION | WORK | {"broker.audit"},
    "broker.scope": SESSION | WORK | {"broker.audit"},
    "broker.grants": SCOPE | WORK,
    "broker.decisions": SCOPE | WORK,
    "broker.records": SCOPE | WORK,
    "broker.tools": (DECIDED | WORK) - {"broker.audit"},
    "broker.http": SESSION
    | TRANSFERS
    | THREADS
    | {"broker.access", "broker.audit", "broker.failures", "broker.records"},
    "broker.gateway": ENTERED | WORK,
    "broker.endpoint": SESSION | FRONT | {"broker.failures"},
    "broker.wiring": WIRED | WORK,
    "broker.app": BUILT | WORK | {"broker.pulse"},
    "broker.doctor": BUILT | WORK,
    "broker.commandline": COMMAND_LINE | WORK,
    "broker.__main__": COMMAND_LINE | WORK | {"broker.commandline"},
}
ONLY_IN: Mapping[str, frozenset[str]] = {
    name: frozenset({"broker.http", "broker.endpoint"})
    for name in ("mcp", "mcp_types", "starlette", "sse_starlette", "hypercorn")
}
"""By foreign package, the rooms that may know it."""
STDLIB_ONLY = ("sandbox.inside", *sorted(SHARED))
"""What runs inside the walls starts fast and holds nothing: rooms, and all that is in them."""


def files_in(root: Path) -> dict[str, Path]:
    """Return module name to file of all packages, at whatever depth."""
    files = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return {module_name(str(path.relative_to(root))): path for path in files}


def module_name(path: str) -> str:
    """Return the name by which the file at *path* is imported."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def graph_of(sources: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Return what each module imports, from module name to source text."""
    return {name: frozenset(imports_of(source, sources.keys())) for name, source in sources.items()}


def imports_of(source: str, modules: Container[str]) -> Iterator[str]:
    """Yield every module that *source* imports, wherever in the file; `from a import b` is a.b where that is one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError("relative import")
            for alias in node.names:
                as_module = f"{node.module}.{alias.name}"
                yield as_module if as_module in modules else node.module or ""


def room_of(module: str) -> str | None:
    """Return the innermost room that *module* is in; None where no room was made for it."""
    parts = module.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in MAY_ENTER), None)


def homeless(graph: Graph) -> set[str]:
    """Return the modules that stand in no room."""
    return {name for name in graph if name not in PACKAGES and room_of(name) is None}


def trespasses(graph: Graph) -> set[tuple[str, str]]:
    """Return who imports whom against MAY_ENTER, ONLY_IN and STDLIB_ONLY."""
    return {(name, other) for name, others in graph.items() for other in others if not _may(name, other)}


def _may(name: str, other: str) -> bool:
    package = other.partition(".")[0]
    own = room_of(name)
    if package not in PACKAGES:
        inside = any(f"{name}.".startswith(f"{room}.") for room in STDLIB_ONLY)
        return own in ONLY_IN.get(package, {own}) and not (inside and package not in sys.stdlib_module_names)
    if other in PACKAGES:  # `__init__.py` holds nothing; the broker asks where each of them is installed
        return name.partition(".")[0] in {other, "broker"}
    entered = room_of(other)
    return own is not None and (entered == own or entered in MAY_ENTER[own])


def circles(graph: Graph) -> set[frozenset[str]]:
    """Return the sets of modules that reach one another by imports."""
    reached = {name: _reached(graph, name) for name in graph}
    return {
        frozenset({name, *(other for other in reached[name] if name in reached.get(other, ()))})
        for name in graph
        if name in reached[name]
    }


def _reached(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    ahead = [start]
    while ahead:
        new = graph.get(ahead.pop(), frozenset()) - found
        found |= new
        ahead += new
    return found


BORDER = ("sandbox.wire", "sandbox.protocol", "sandbox.sniffing", "sandbox.init", "sandbox.commands", "sandbox.files")
"""Rooms outside the walls that speak with those inside, and what they share; inside, every room does."""


def formless(sources: Mapping[str, str]) -> set[str]:
    """Return the modules on either side of a process border that speak of messages without saying what is in them."""
    borders = tuple(f"{room}." for room in (*BORDER, "sandbox.inside"))
    return {
        name
        for name, source in sources.items()
        if f"{name}.".startswith(borders) and any(map(_says_anything, ast.walk(ast.parse(source))))
    }


def _says_anything(node: ast.AST) -> bool:
    """Tell whether *node* is a mapping of str to Any, or another name for one."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
        named = ast.unparse(node.value).rpartition(".")[2]
        return named in {"dict", "Mapping", "MutableMapping"} and ast.unparse(node.slice) in {"(str, Any)", "str, Any"}
    if isinstance(node, ast.ImportFrom):
        return node.module == "sandbox.wire" and any(alias.name == "Message" for alias in node.names)
    return isinstance(node, ast.Attribute) and ast.unparse(node) == "wire.Message"


def crowded(paths: Iterable[str]) -> dict[str, int]:
    """Return the folders with more than MAX_FILES modules, and how many each has."""
    counted = Counter(path.rpartition("/")[0] for path in paths if not path.endswith("/__init__.py"))
    return {folder: count for folder, count in counted.items() if count > MAX_FILES}


def homonyms(sources: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Return the public classes whose name a package has twice or more, as `package.Name`, and their modules."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for module, source in sources.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[f"{module.partition('.')[0]}.{node.name}"].add(module)
    return {name: frozenset(modules) for name, modules in found.items() if len(modules) > 1}


def unnamed(source: str) -> set[str]:
    """Return the public names in *source* (the module's is empty) whose docstring begins with a word of question.

    Such a docstring gives the condition before the subject: it should begin with a noun or a verb.
    """
    return {name for name, text in _docstrings(ast.parse(source), "") if QUESTION.match(text)}


def _docstrings(node: Documented, name: str) -> Iterator[tuple[str, str]]:
    yield name, ast.get_docstring(node) or ""
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield from _docstrings(child, f"{name}.{child.name}".lstrip("."))


def misplaced_tests(paths: Iterable[str]) -> set[str]:
    """Return the test files, relative to `tests/`, whose folder is neither a room nor named in BESIDE_ROOMS."""
    folders = {room.replace(".", "/") for room in MAY_ENTER} | {*PACKAGES} | BESIDE_ROOMS
    return {path for path in paths if path.rpartition("/")[0] not in folders}


def rooms_without_tests(paths: Iterable[str]) -> set[str]:
    """Return the rooms that are folders in the packages but not in `tests/`; *paths* are relative to the root."""
    there = {path.rpartition("/")[0] for path in paths}
    rooms = {room.replace(".", "/") for room in MAY_ENTER}
    return {
        room for room in rooms if room in there and not any(f"{each}/".startswith(f"tests/{room}/") for each in there)
    }


def without_init(paths: Iterable[str]) -> set[str]:
    """Return the folders that hold modules and are no package: setuptools would leave them out of the wheel."""
    there = set(paths)
    return {folder for path in there if f"{(folder := path.rpartition('/')[0])}/__init__.py" not in there}
