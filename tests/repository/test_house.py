"""The rules of the house: who may enter whom, and how files are named and filled; each rule is shown to bite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.repository.house import (
    MAX_FILES,
    MAY_ENTER,
    PACKAGES,
    circles,
    crowded,
    files_in,
    formless,
    graph_of,
    homeless,
    homonyms,
    misplaced_tests,
    rooms_without_tests,
    trespasses,
    unnamed,
    without_init,
)

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
FILES = files_in(ROOT)
SOURCES = {name: path.read_text() for name, path in FILES.items()}
GRAPH = graph_of(SOURCES)
PATHS = [str(path.relative_to(ROOT)) for path in FILES.values()]
ROOMS_WITHOUT_TESTS = {"sandbox/inside/opener"}  # its tests speak with it as `sandbox/files` does
FORMLESS = {"sandbox.wire"}  # it carries the messages of all, whatever is in them


def planted(module: str, line: str) -> set[tuple[str, str]]:
    """Return who trespasses in a house of one more module that says *line*."""
    return trespasses(graph_of(dict.fromkeys(MAY_ENTER, "") | {module: line}))


# --- who may enter whom


def test_every_module_stands_in_a_room() -> None:
    assert homeless(GRAPH) == set()
    assert homeless(graph_of({"sandbox.attic.old": "", "sandbox.wire": "", "broker": ""})) == {"sandbox.attic.old"}


def test_nobody_enters_a_room_that_is_closed_to_him() -> None:
    assert trespasses(GRAPH) == set()


@pytest.mark.parametrize(
    ("module", "line"),
    [
        # 1: between packages
        ("policy.x", "import transfers.settings"),
        ("transfers.x", "from sandbox import threads"),
        ("sandbox.plan.x", "from config import load"),
        ("config.x", "from sandbox.commands.run import run_command"),
        ("config.x", "from transfers.store import Store"),
        ("config.x", "import broker.app"),
        # 2: the wall
        ("sandbox.commands.x", "from sandbox.inside.keeper.forked import NO_ROOM"),
        ("sandbox.files.x", "def f():\n    import sandbox.inside.opener.main"),
        ("broker.tools.x", "from sandbox.inside.worker.globs import compile_globs"),
        ("sandbox.inside.init.x", "from sandbox.init.launcher import Launcher"),
        ("sandbox.inside.worker.x", "from sandbox import threads"),
        ("sandbox.kernel.x", "from sandbox.machine.facts import facts"),
        ("sandbox.wire", "from sandbox.errors import SandboxError"),
        ("sandbox.inside.opener.x", "import attrs"),
        ("sandbox.kernel.deep.x", "import trio"),
        ("sandbox.paths", "import psutil"),
        # 3: the order on both sides of it
        ("sandbox.machine.x", "if TYPE_CHECKING:\n    from sandbox.plan.plan import Plan"),
        ("sandbox.plan.x", "from sandbox.cgroup.usage import GroupLimits"),
        ("sandbox.cgroup.x", "import sandbox.init.spare"),
        ("sandbox.init.x", "from sandbox.commands.values import ExecPlan"),
        ("sandbox.files.x", "from sandbox.init.spare import Spare"),
        ("sandbox.inside.unfinished.x", "from sandbox.inside.worker.walk import OPEN_DIRECTORY"),
        ("sandbox.inside.worker.x", "from sandbox.inside.opener.names import look"),
        ("sandbox.inside.opener.x", "from sandbox.inside.init.birth import be_born"),
        ("sandbox.inside.keeper.x", "from sandbox.inside.worker.job import Job"),
        # 4: the order in the broker
        ("broker.contract.x", "from broker.session.session import SessionClosed"),
        ("broker.audit.x", "from broker.session.urls import Urls"),
        ("broker.session.x", "from broker.audit.redact import shown"),
        ("broker.session.x", "from broker.scope import Host"),
        ("broker.scope", "from broker.decisions import decide"),
        ("broker.decisions", "from broker.tools.rules import Rules"),
        ("broker.gateway", "from broker.wiring import wire"),
        ("broker.endpoint.x", "from broker.gateway import Gateway"),
        ("broker.wiring", "import broker.app"),
        ("broker.app", "import broker.__main__"),
        ("broker.doctor.x", "from broker.app import serve"),
        # 5: who knows the protocol, and what the doors know
        *((room, "import mcp") for room in ("broker.tools.x", "broker.app", "sandbox.files.x", "policy.x")),
        ("broker.gateway", "from starlette.types import Scope"),
        ("broker.wiring", "def f():\n    import hypercorn.trio"),
        ("broker.http.x", "from broker.tools.rules import Rules"),
        ("broker.http.x", "from broker.gateway import Gateway"),
        ("broker.http.x", "from broker import decisions"),
        ("broker.http.x", "from config.load import Config"),
        ("sandbox.commands.x", "from config.settings import OutputSettings"),
        ("config.settings", "from config.load import load_config"),
        ("broker.http.x", "from policy.path import PathRules"),
        ("broker.http.x", "from sandbox.errors import SandboxError"),
        ("broker.tools.x", "from broker.http.transfer_app import TRANSFERS_PATH"),
        ("broker.tools.x", "from broker.endpoint.tasks import Tasks"),
        ("broker.tools.x", "from broker.audit.audit import Audit"),
        ("broker.contract.x", "from sandbox.errors import SandboxError"),
        # a module that stands in no room enters none
        ("broker.attic", "import broker.contract"),
    ],
)
def test_whoever_enters_a_closed_room_is_found(module: str, line: str) -> None:
    assert {name for name, _ in planted(module, line)} == {module}


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("config.x", "from sandbox.plan.plan import SandboxSettings\nfrom transfers.settings import Settings"),
        ("sandbox.inside.init.x", "import os, sandbox.wire, sandbox.kernel.seccomp, sandbox.inside.keeper.keeper"),
        ("sandbox.inside.worker.deep.x", "from sandbox.inside.unfinished import parts"),
        ("sandbox.commands.x", "import trio, sandbox.wire, sandbox.kernel.files, sandbox.init.keeper"),
        ("broker.http.x", "import hypercorn, mcp.server, broker.contract.errors, broker.records"),
        ("broker.session.x", "from config.settings import OutputSettings"),
        ("broker.doctor.x", "import broker.wiring, policy.path, sandbox.init.launcher, config"),
        ("broker.trusted.x", "import broker, sandbox"),
        ("broker.http.x", "from sandbox.threads import run_in_thread"),
    ],
)
def test_whoever_enters_an_open_room_is_not(module: str, line: str) -> None:
    assert planted(module, line) == set()


def test_the_rooms_themselves_are_in_an_order() -> None:
    assert circles(MAY_ENTER) == set()
    assert {room for rooms in MAY_ENTER.values() for room in rooms} <= set(MAY_ENTER)


def test_a_relative_import_is_no_way_around() -> None:
    with pytest.raises(ValueError, match="relative"):
        graph_of({"broker.x": "from . import app"})


# --- circles, crowds, names


def test_there_is_no_circle() -> None:
    assert circles(GRAPH) == set()


def test_a_circle_is_found_wherever_in_the_files_it_is_closed() -> None:
    sources = {
        "broker.a": "from broker import b",
        "broker.b": "def f():\n    import broker.deep.c",
        "broker.deep.c": "if TYPE_CHECKING:\n    from broker.a import A",
        "broker.d": "import broker.a",
    }
    assert circles(graph_of(sources)) == {frozenset({"broker.a", "broker.b", "broker.deep.c"})}
    assert circles(graph_of(sources | {"broker.deep.c": ""})) == set()


def test_no_folder_is_crowded() -> None:
    assert crowded(PATHS) == {}


def test_a_crowded_folder_is_found_at_any_depth() -> None:
    files = [f"sandbox/inside/worker/f{number}.py" for number in range(MAX_FILES)]
    files.append("sandbox/inside/worker/__init__.py")
    assert crowded(files) == {}
    assert crowded([*files, "sandbox/inside/worker/more.py"]) == {"sandbox/inside/worker": MAX_FILES + 1}


def test_a_public_class_has_its_name_alone() -> None:
    assert homonyms(SOURCES) == {}


def test_a_class_of_the_same_name_is_found_in_another_room() -> None:
    sources = {
        "sandbox.init.a": "class Slot: pass\nclass _Own: pass",
        "sandbox.b": "class Slot: pass\nclass _Own: pass",
        "broker.c": "class Slot: pass",
    }
    assert homonyms(sources) == {"sandbox.Slot": frozenset({"sandbox.init.a", "sandbox.b"})}


# --- docstrings


def test_a_public_docstring_begins_with_a_noun_or_a_verb() -> None:
    assert {name for name, source in SOURCES.items() if unnamed(source)} == set()


@pytest.mark.parametrize("word", ["Who", "What", "Whoever", "Whatever"])
def test_a_docstring_that_begins_with_a_question_is_found_at_any_depth(word: str) -> None:
    asked, told = f'"""{word} asks."""', f'"""Callers, {word} they are. Whose is no question."""'
    assert unnamed(asked) == {""}
    assert unnamed(f"class A:\n    async def b(self):\n        {asked}\n\n    def c(self):\n        {told}") == {"A.b"}
    assert unnamed(f"def a():\n    {asked}\n\n    def _own():\n        {asked}") == {"a"}
    assert unnamed(f"class _A:\n    {asked}") == unnamed(told) == set()


# --- what crosses the border between two processes


def test_no_message_is_without_a_type() -> None:
    assert formless(SOURCES) == FORMLESS


@pytest.mark.parametrize(
    "source",
    [
        "def hear(message: dict[str, Any]) -> None: ...",
        "async def ask() -> tuple[Mapping[str, Any], list[int]] | None: ...",
        "class C:\n    said: list[typing.MutableMapping[str, Any]]",
        "if TYPE_CHECKING:\n    Told = dict[str, Any]",
        "def hear(message: wire.Message) -> None: ...",
        "from sandbox.wire import Message",
    ],
)
def test_a_message_without_a_type_is_found_on_either_side(source: str) -> None:
    for module in ("sandbox.init.deep.x", "sandbox.inside.keeper.x", "sandbox.sniffing"):
        assert formless({module: source}) == {module}
    assert formless({"sandbox.plan.x": source, "sandbox.initial": source}) == set()


def test_a_message_with_a_type_is_not() -> None:
    source = "def f(order: Ready, limits: dict[str, int], body: Mapping[str, object]) -> Callable[[C, Any], None]: ..."
    assert formless({"sandbox.init.x": source}) == set()


# --- sub-folders are seen


def test_no_module_is_overlooked_for_its_depth(tmp_path: Path) -> None:
    deep = [*(f"{package}/x.py" for package in PACKAGES), "sandbox/inside/init/main.py", "broker/http/__init__.py"]
    for name in deep:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = files_in(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in found.values()} == set(deep)
    assert {"sandbox.inside.init.main", "broker.http"} <= set(found)


def test_every_folder_of_modules_is_a_package() -> None:
    assert without_init(PATHS) == set()
    assert without_init(["broker/__init__.py", "broker/http/asgi.py", "broker/app.py"]) == {"broker/http"}


# --- the tests have rooms too


def test_a_test_lies_in_the_folder_of_its_room() -> None:
    tests = [str(path.relative_to(ROOT / "tests")) for path in (ROOT / "tests").rglob("test_*.py")]
    assert misplaced_tests(tests) == set()
    there = [
        "sandbox/kernel/test_a.py",
        "live/test_b.py",
        "policy/test_c.py",
        "kernel/test_d.py",
        "sandbox/x/test_e.py",
        "test_f.py",
    ]
    assert misplaced_tests(there) == {"kernel/test_d.py", "sandbox/x/test_e.py", "test_f.py"}


def test_every_room_has_tests() -> None:
    tests = [str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")]
    assert rooms_without_tests([*PATHS, *tests]) == ROOMS_WITHOUT_TESTS
    assert rooms_without_tests(["broker/http/asgi.py", "broker/audit/audit.py", "tests/broker/audit/test_a.py"]) == {
        "broker/http"
    }


def test_the_packages_are_those_of_the_project() -> None:
    assert set(PACKAGES) == {path.parent.name for path in ROOT.glob("*/py.typed")}
