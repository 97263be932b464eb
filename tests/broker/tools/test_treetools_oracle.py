"""Any sequence of edits, moves, copies and deletions, against a plain tree of dictionaries."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.broker.tools.test_treetools import Desk, open_desk

Tree: TypeAlias = dict[str, Any]
"""Name -> bytes of a file, or the Tree of a directory."""

NAMES = st.sampled_from(["a", "b", "c\\xff"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@attrs.frozen
class Step:
    tool: str
    arguments: dict[str, Any]


def step(tool: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.builds(Step, st.just(tool), st.fixed_dictionaries(fields))


STEPS = st.one_of(
    step("write_file", path=PATHS, content=st.sampled_from(["", "xx", "xyx"])),
    step("edit_file", path=PATHS, old_text=st.just("x"), new_text=st.just("yz"), expected_count=st.integers(1, 2)),
    step("make_directory", path=PATHS, parents=st.booleans()),
    step("move_path", source=PATHS, destination=PATHS, overwrite=st.booleans()),
    step("copy_path", source=PATHS, destination=PATHS, recursive=st.booleans(), overwrite=st.booleans()),
    step("delete_path", path=PATHS, recursive=st.booleans(), confirm=st.booleans()),
)


class Impossible(Exception):
    """The model says that this must fail."""


def parent_of(tree: Tree, path: str) -> tuple[Tree, str]:
    *folders, name = path.split("/")
    for folder in folders:
        below = tree.get(folder)
        if not isinstance(below, dict):
            raise Impossible
        tree = below
    return tree, name


def copied(content: Any) -> Any:
    return {name: copied(below) for name, below in content.items()} if isinstance(content, dict) else content


def expected(tree: Tree, step: Step) -> None:
    """Do to the model what the tool promises, or raise Impossible."""
    a = step.arguments
    match step.tool:
        case "write_file":
            parent, name = parent_of(tree, a["path"])
            require(not isinstance(parent.get(name), dict))
            parent[name] = a["content"].encode()
        case "edit_file":
            parent, name = parent_of(tree, a["path"])
            content = parent.get(name)
            require(isinstance(content, bytes) and content.count(b"x") == a["expected_count"])
            parent[name] = content.replace(b"x", b"yz")
        case "make_directory":
            make(tree, a["path"], parents=a["parents"])
        case "move_path" | "copy_path":
            transfer(tree, step)
        case "delete_path":
            parent, name = parent_of(tree, a["path"])
            require(not a["recursive"] or a["confirm"])
            require(name in parent and (a["recursive"] or not parent[name] or isinstance(parent[name], bytes)))
            del parent[name]


def make(tree: Tree, path: str, *, parents: bool) -> None:
    if parents:
        for name in path.split("/"):
            tree = tree.setdefault(name, {})
            require(isinstance(tree, dict))
        return
    parent, name = parent_of(tree, path)
    require(name not in parent)
    parent[name] = {}


def transfer(tree: Tree, step: Step) -> None:
    a = step.arguments
    source, name = parent_of(tree, a["source"])
    target, new_name = parent_of(tree, a["destination"])
    require(name in source)
    content = source[name]
    is_tree = isinstance(content, dict)
    require(not is_tree or step.tool == "move_path" or a["recursive"])
    require(not is_tree or not f"{a['destination']}/".startswith(f"{a['source']}/"))
    if new_name in target:
        require(a["overwrite"] and not is_tree and not isinstance(target[new_name], dict))
    if step.tool == "move_path":
        del source[name]
    target[new_name] = content if step.tool == "move_path" else copied(content)


def require(condition: object) -> None:
    if not condition:
        raise Impossible


def on_disk(folder: bytes) -> Tree:
    found: Tree = {}
    for entry in os.scandir(folder):
        name = entry.name.decode("utf-8", "backslashreplace")
        found[name] = on_disk(entry.path) if entry.is_dir() else Path(os.fsdecode(entry.path)).read_bytes()
    return found


async def story(desk: Desk, steps: list[Step]) -> None:
    model: Tree = {}
    for one in steps:
        before = copied(model)
        answer = await desk.whole.answer(one.tool, session_id=desk.sid, **one.arguments)
        try:
            expected(model, one)
        except Impossible:
            model = before
            assert answer.is_error, one
            assert answer.structured["error_name"] != "SYSTEM_INTERNAL_ERROR", one
        else:
            assert not answer.is_error, (one, answer.structured)
        assert on_disk(os.fsencode(desk.work)) == model, one


@pytest.mark.long
@pytest.mark.once
def test_the_tools_do_to_a_tree_what_a_model_does() -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(steps=st.lists(STEPS, min_size=4, max_size=14))
    def run(steps: list[Step]) -> None:
        async def one_session() -> None:
            with tempfile.TemporaryDirectory() as folder:
                async with open_desk(Path(folder)) as desk:
                    with trio.fail_after(60):
                        await story(desk, steps)

        trio.run(one_session)

    run()
