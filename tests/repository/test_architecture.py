"""What the design says about the shape of the code, held by the code itself; each rule is shown to bite."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.repository.house import files_in, imports_of, module_name

ROOT = Path(__file__).parents[2]
SOURCES = {name: path.read_text() for name, path in files_in(ROOT).items()}
MAX_LINES = 600
MAX_FUNCTION_LINES = 50

CONFIG_FILLS = {"policy.rules", "policy.command", "policy.grammar", "transfers.settings", "sandbox.plan.plan"}
PROTOCOL_PACKAGES = {"mcp", "mcp_types", "starlette", "hypercorn", "sse_starlette"}
PROTOCOL_MODULES = {
    *("broker.http.connections", "broker.endpoint.adapter", "broker.endpoint.http"),
    *("broker.endpoint.outputs", "broker.endpoint.stdio"),
}
CHILD_ENTRIES = (
    "sandbox.inside.init.main",
    "sandbox.inside.opener.main",
    "sandbox.inside.sniffer",
)  # the last loads python-magic by name, later
YOUNGER_ARGUMENTS = {
    *((name, "filter") for name in ("extractall", "extract", "unpack_archive")),  # 3.11.4
    *((name, "strict") for name in ("parseaddr", "getaddresses")),  # 3.11.10
}
YOUNGER_NAMES = {
    *("data_filter", "tar_filter", "fully_trusted_filter"),  # tarfile, 3.11.4
    *("FilterError", "OutsideDestinationError", "AbsolutePathError", "LinkOutsideDestinationError"),  # tarfile, 3.11.4
    *("SetReparseDeferralEnabled", "GetReparseDeferralEnabled"),  # pyexpat, 3.11.9
}
BROAD_CATCHES = {
    ("broker.session.session", "_perform"),  # hands an error to the caller it belongs to
    ("broker.session.supervisor", "_supervise"),  # the wall between sessions
    ("broker.http.connections", "serve"),  # the wall between connections: one bad header must not end the server
    ("broker.endpoint.adapter", "on_call_tool"),  # the border to the wire
}
MUTABLE = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)


def packages_of(source: str) -> set[str]:
    return {name.partition(".")[0] for name in imports_of(source, SOURCES)}


# --- the rules: each yields what is wrong with a module


def fills_more_than_it_may(module: str, source: str) -> Iterator[str]:
    """`config` imports only what it fills and the proof of its examples."""
    if module.startswith("config."):
        foreign = {name for name in imports_of(source, SOURCES) if name.startswith(("policy", "transfers", "sandbox"))}
        yield from foreign - CONFIG_FILLS


def another_event_loop(_: str, source: str) -> Iterator[str]:
    """Trio is the only one."""
    yield from packages_of(source) & {"asyncio", "anyio", "uvicorn"}


def impurity(module: str, source: str) -> Iterator[str]:
    """`policy` is pure."""
    if module.partition(".")[0] == "policy":
        used = packages_of(source)
        yield from used - set(sys.stdlib_module_names) - {"policy", "attrs"}
        yield from used & {"os", "pathlib", "socket", "subprocess", "time", "random"}


def protocol_elsewhere(module: str, source: str) -> Iterator[str]:
    """Few modules know the SDK and its kin."""
    if module not in PROTOCOL_MODULES:
        yield from packages_of(source) & PROTOCOL_PACKAGES


def size(_: str, source: str) -> Iterator[str]:
    """A room has one idea, and a function one screen."""
    if source.count("\n") > MAX_LINES:
        yield "the module"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body and body[-1].end_lineno else 0
            if lines > MAX_FUNCTION_LINES:
                yield node.name


def silence(_: str, source: str) -> Iterator[str]:
    """A module says what it is."""
    if not ast.get_docstring(ast.parse(source)):
        yield "no docstring"


def mutable_state(_: str, source: str) -> Iterator[str]:
    """What is at module level is wrapped in a tuple, frozenset or MappingProxyType."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, MUTABLE):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if not isinstance(target, ast.Name) or target.id != "__all__":
                yield ast.unparse(target)


def open_ends(_: str, source: str) -> Iterator[str]:
    """Nothing is left for later."""
    yield from (word for word in ("TO" + "DO", "FIX" + "ME", "XX" + "X") if word in source)


def thread_elsewhere(module: str, source: str) -> Iterator[str]:
    """Elsewhere it would be a RuntimeError that nobody expects (`sandbox/threads.py`)."""
    if not module.endswith(".threads"):
        yield from re.findall(r"\bto_thread\.|trio\.socket\.getaddrinfo|trio\.(?:open_file|Path)\b", source)


Rule = Callable[[str, str], Iterator[str]]
RULES: tuple[Rule, ...] = (
    *(fills_more_than_it_may, another_event_loop, impurity, protocol_elsewhere, size),
    *(silence, mutable_state, open_ends, thread_elsewhere),
)
OFFENDERS: tuple[tuple[Rule, str, str], ...] = (
    (fills_more_than_it_may, "config.deep.x", "from policy.path import PathRules"),
    (another_event_loop, "sandbox.deep.x", "def f():\n    import asyncio.events"),
    (impurity, "policy.deep.x", "import os.path"),
    (impurity, "policy.deep.x", "import yaml"),
    (protocol_elsewhere, "broker.endpoint.deep.x", "from mcp.types import Tool"),
    (size, "sandbox.deep.x", "#\n" * (MAX_LINES + 1)),
    (size, "broker.x", "class C:\n    async def f(self):\n" + "        pass\n" * (MAX_FUNCTION_LINES + 1)),
    (silence, "sandbox.deep.x", "import os"),
    (mutable_state, "broker.deep.x", "known: dict[str, str] = {}"),
    (mutable_state, "broker.deep.x", "a.b = []"),
    (open_ends, "policy.deep.x", "# TO" + "DO"),
    (thread_elsewhere, "broker.deep.x", "await trio.to_thread.run_sync(f)"),
    (thread_elsewhere, "broker.deep.x", "await trio.open_file(name)"),
)


@pytest.mark.once
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_module_keeps_the_rules(rule: Rule) -> None:
    found = {module: list(rule(module, source)) for module, source in SOURCES.items()}
    assert not {module: wrong for module, wrong in found.items() if wrong}, rule.__doc__


@pytest.mark.once
@pytest.mark.parametrize(("rule", "module", "source"), OFFENDERS)
def test_whatever_breaks_a_rule_is_found(rule: Rule, module: str, source: str) -> None:
    assert list(rule(module, source))


@pytest.mark.once
def test_each_rule_has_its_offender() -> None:
    assert {rule for rule, _, _ in OFFENDERS} == set(RULES)
    assert set(SOURCES) >= PROTOCOL_MODULES | {name for name, _ in BROAD_CATCHES} | {*CHILD_ENTRIES}


# --- rules about all of them together


def broad_catches(module: str, source: str) -> Iterator[tuple[str, str]]:
    """Yield the functions that catch whatever comes, but for those that clean up and let everything go on."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
            ):
                assert node.type is not None, f"{module}: bare except"
                if isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None:
                    continue
                assert ast.unparse(node.type) == "Exception", f"{module}: BaseException is never caught"
                yield module, function.name


@pytest.mark.once
def test_four_broad_catches_in_the_whole_tree() -> None:
    assert {found for module, source in SOURCES.items() for found in broad_catches(module, source)} == BROAD_CATCHES


@pytest.mark.once
def test_a_broad_catch_is_found_and_a_broader_one_refused() -> None:
    catching = "def f():\n    try:\n        g()\n    except {}:\n        {}"
    assert list(broad_catches("broker.deep.x", catching.format("Exception", "pass"))) == [("broker.deep.x", "f")]
    assert not list(broad_catches("broker.deep.x", catching.format("BaseException", "raise")))
    assert not list(broad_catches("broker.deep.x", catching.format("OSError", "pass")))
    for broader in ("BaseException", ""):
        with pytest.raises(AssertionError):
            list(broad_catches("broker.deep.x", catching.format(broader, "pass")))


def loaded_by(module: str, root: Path) -> set[str]:
    """Ask a real interpreter what it has loaded when it has imported *module*."""
    probe = f"import sys; sys.path.insert(0, {str(root)!r}); import {module}; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-I", "-S", "-c", probe], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in said.stdout.split()}


def heavy(loaded: set[str]) -> set[str]:
    """Return what no child may have loaded: `typing` is half a megabyte of each session."""
    return (loaded - set(sys.stdlib_module_names) - {"__main__", "sandbox"}) | (loaded & {"typing"})


def test_the_child_side_is_stdlib_only() -> None:
    """What runs inside the walls must start fast and hold nothing."""
    for module in CHILD_ENTRIES:
        assert heavy(loaded_by(module, ROOT)) == set()


def test_what_a_child_loads_beside_the_stdlib_is_found_in_any_room(tmp_path: Path) -> None:
    (tmp_path / "sandbox" / "deep").mkdir(parents=True)
    (tmp_path / "other.py").touch()
    (tmp_path / "sandbox" / "deep" / "x.py").write_text("import os, other, typing")
    assert heavy(loaded_by("sandbox.deep.x", tmp_path)) == {"other", "typing"}


@pytest.mark.once
def test_nothing_that_came_with_a_later_patch_release_than_the_oldest_is_used() -> None:
    """README admits 3.11, so 3.11.0, and Debian 12 has 3.11.2: those that run these tests may not tell."""
    control = 'archive.extractall("d", filter="data"); tarfile.data_filter; shutil.unpack_archive(a, b, filter="tar")'
    assert len(list(younger_than_the_oldest(control))) == 3
    written = [path for name in ("tests", "bench", "docs") for path in (ROOT / name).rglob("*.py")]
    others = {module_name(str(path.relative_to(ROOT))): path.read_text() for path in (*written, ROOT / "noxfile.py")}
    found = {name: list(younger_than_the_oldest(source)) for name, source in {**SOURCES, **others}.items()}
    assert not {name: uses for name, uses in found.items() if uses}


def younger_than_the_oldest(source: str) -> Iterator[str]:
    """Yield the uses of what 3.11.1 or a later release of 3.11 brought."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield from (f"{called}({word.arg}=)" for word in node.keywords if (called, word.arg) in YOUNGER_ARGUMENTS)
        elif isinstance(node, ast.Attribute) and node.attr in YOUNGER_NAMES:
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.name in YOUNGER_NAMES)
