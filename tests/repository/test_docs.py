"""The documents say what is true: every tool, setting and error code, and both commands."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import attrs
import pytest

from broker.contract.errors import ErrorCode
from broker.contract.table import TOOLS
from config.keys import Key, all_keys

pytestmark = pytest.mark.once  # it reads files only

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TOOL_ROWS = (ROOT / "docs" / "tools.md").read_text()
ERRORS = (ROOT / "docs" / "errors.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
ANY_NAME = "<name>"


def commands() -> list[str]:
    return re.findall(r"```sh\n(.+)\n```", README)


def test_the_readme_can_be_read_in_one_go() -> None:
    assert README.count("\n") <= 200


def test_what_is_made_from_the_tool_table_is_current() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_tools.py"))["documents"]()
    assert made == {path: path.read_text() for path in (ROOT / "README.md", ROOT / "docs" / "tools.md")}


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_every_tool_stands_in_the_readme_and_in_the_table_with_its_arguments_and_results(tool: object) -> None:
    assert f"| `{tool.name}` |" in README  # type: ignore[attr-defined]
    row = next(line for line in TOOL_ROWS.splitlines() if line.startswith(f"| `{tool.name}` |"))  # type: ignore[attr-defined]
    _, _, arguments, results, _ = row.split("|")
    for field in attrs.fields(tool.request):  # type: ignore[attr-defined]
        assert f"`{field.name}" in arguments
    for field in attrs.fields(tool.result):  # type: ignore[attr-defined]
        assert field.name == "success" or f"`{field.name}`" in results


@pytest.mark.parametrize("code", ErrorCode, ids=lambda code: code.code)
def test_every_error_code_is_documented(code: ErrorCode) -> None:
    assert f"| {code.code} | {code.name}" in ERRORS


@pytest.mark.parametrize("key", all_keys(), ids=lambda key: key.name)
def test_every_setting_stands_in_the_table(key: Key) -> None:
    assert f"| `{key.name}` |" in SETTINGS


def test_no_setting_is_documented_that_does_not_exist() -> None:
    documented = set(re.findall(r"^\| `([a-z_.<>]+)` \|", SETTINGS, re.MULTILINE))
    assert documented == {key.name for key in all_keys()}


def test_the_table_of_settings_says_what_the_shipped_files_say() -> None:
    for key in all_keys():
        row = next(line for line in SETTINGS.splitlines() if line.startswith(f"| `{key.name}` |"))
        assert key.type in row
        assert key.doc.replace("|", "\\|") in row


def test_the_two_commands_are_one_line_each_and_ci_runs_the_second() -> None:
    run, check = commands()
    assert run.endswith("-m broker")
    assert check in (ROOT / ".ci" / "run").read_text().splitlines()


def test_every_test_file_of_the_security_model_exists() -> None:
    named = set(re.findall(r"`(test_[a-z_]+\.py)`", README))
    assert named
    assert named - {path.name for path in (ROOT / "tests").rglob("test_*.py")} == set()


def test_every_linked_document_exists() -> None:
    for target in re.findall(r"\]\((docs/[^)#]+)\)", README):
        assert (ROOT / target).is_file(), target
