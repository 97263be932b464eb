"""No entry point executes or obeys what lies in the folder that it is started in, whatever it is called there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import attrs
import pytest
import trio
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters

from tests.support.live import broker_in, call, connect, live_folder, new_session, ok, write_config

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
OURS = frozenset({"config", "policy", "sandbox", "transfers"})
TAKEN_BY_PYTHON = frozenset(
    {"types", "warnings", "importlib", "contextlib", "functools", "collections", "operator", "reprlib", "keyword"}
)
"""What `python -m anything` imports before the first line of ours, from the current folder first (3.11 to 3.14)."""
DECOY = 'open({marks!r} + "/" + __name__.replace("/", "_"), "w").close()\n'
POLICY = "policy:\n  allowed_commands:\n    decoy: {executable: /bin/sh}\n"
TIMEOUT_S = 60


@attrs.frozen
class Decoys:
    """A folder in which every name that the broker could import is a file that leaves its mark when it is executed."""

    folder: Path
    marks: Path

    def executed(self) -> set[str]:
        """Whose marks are there; they are gone then."""
        names = {mark.name for mark in self.marks.iterdir()}
        for mark in self.marks.iterdir():
            mark.unlink()
        return names

    def keep(self, spared: frozenset[str]) -> None:
        """Lay them out, but for those *spared*."""
        for name in {*sys.stdlib_module_names, *packages_distributions(), *OURS, "usercustomize", "sitecustomize"}:
            path = self.folder / f"{name}.py"
            path.unlink(missing_ok=True)
            if name not in spared and name != "broker":
                path.write_text(DECOY.format(marks=str(self.marks)))


@pytest.fixture
def base() -> Iterator[Path]:
    with live_folder() as base:
        write_config(base)
        yield base


@pytest.fixture
def decoys(base: Path) -> Decoys:
    folder, marks = base / "hostile", base / "marks"
    (folder / "config").mkdir(parents=True)
    marks.mkdir()
    marks.chmod(0o777)
    (folder / "config" / "policy.yaml").write_text(POLICY)
    (folder / "config" / "__init__.py").write_text(DECOY.format(marks=str(marks)))
    (folder / "pyproject.toml").write_text('[project]\nname = "remote-mcp-exec-gateway"\n')
    found = Decoys(folder, marks)
    found.keep(frozenset())
    return found


def script(name: str) -> str:
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"{name} is not installed beside {sys.executable}")
    return str(path)


def start(decoys: Decoys, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=decoys.folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )


def test_the_decoys_are_executed_by_a_python_that_looks_in_the_current_folder(decoys: Decoys) -> None:
    (decoys.folder / "plain.py").write_text("import policy, yaml, config, logging\n")  # not -c: it needs linecache
    start(decoys, sys.executable, "plain.py")
    assert {"policy", "yaml", "config", "logging"} <= decoys.executed()
    (decoys.folder / "innocent.py").write_text("import policy, trio, attr\n")
    decoys.keep(TAKEN_BY_PYTHON)
    start(decoys, sys.executable, "-m", "innocent")
    assert {"policy", "trio", "attr"} <= decoys.executed()


@pytest.mark.parametrize("how", ["oc-broker", "-m"])
@pytest.mark.parametrize("words", ["check", "explain -- ls", "doctor"])
def test_no_subcommand_executes_what_lies_in_the_current_folder(decoys: Decoys, how: str, words: str) -> None:
    if how == "-m":
        decoys.keep(TAKEN_BY_PYTHON)
    command = [script(how)] if how == "oc-broker" else [sys.executable, how, "broker"]
    subcommand, *rest = words.split()
    done = start(decoys, *command, subcommand, "--config-dir", str(decoys.folder.parent / "config"), *rest)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
    assert decoys.executed() == set()


@pytest.mark.parametrize("how", ["oc-broker", "-m"])
def test_check_names_the_files_that_hold_and_they_are_not_those_of_the_current_folder(decoys: Decoys, how: str) -> None:
    decoys.keep(TAKEN_BY_PYTHON)
    command = [script(how)] if how == "oc-broker" else [sys.executable, "-m", "broker"]
    named = start(decoys, *command, "check", "--config-dir", "config")
    assert f"ok: {decoys.folder}/config/policy.yaml; 1 commands allowed" in named.stdout, named.stderr
    unnamed = start(decoys, *command, "check")
    assert unnamed.stdout.startswith("ok: /")
    assert str(decoys.folder) not in unnamed.stdout + unnamed.stderr


async def test_a_broker_started_as_a_module_takes_nothing_from_the_current_folder(base: Path, decoys: Decoys) -> None:
    decoys.keep(TAKEN_BY_PYTHON)
    with broker_in(base, cwd=decoys.folder) as broker:
        async with connect(broker) as client:
            await _work(client)
        assert any(f"{base}/config/policy.yaml" in line for line in broker.printed.lines)  # the log says what holds
    assert decoys.executed() == set()


async def test_a_broker_that_a_client_starts_in_a_hostile_folder_takes_nothing_from_there(
    base: Path, decoys: Decoys
) -> None:
    server = StdioServerParameters(
        command=script("remote-mcp-exec-gateway"), args=["--config-dir", str(base / "config")], cwd=decoys.folder
    )
    with trio.fail_after(TIMEOUT_S):
        async with Client(server) as client:
            await _work(client)
    assert decoys.executed() == set()


async def _work(client: Client) -> None:
    """Let everything be started that a broker starts."""
    session = await new_session(client)
    assert (await ok(client, "execute_command", session_id=session, argv=["echo", "hello"]))["stdout"] == "hello\n"
    await ok(client, "write_file", session_id=session, path="a.txt", content="text")
    await ok(client, "read_file", session_id=session, path="a.txt")
    await call(client, "search_files", session_id=session, path=".", pattern="a*")
    await ok(client, "kill_session", session_id=session)


def test_programs_of_the_starters_path_are_not_run_by_the_broker(decoys: Decoys) -> None:
    programs = decoys.folder / "bin"
    programs.mkdir()
    for name in ("gcc", "cc", "ld", "ldconfig", "objdump", "uname", "file", "git"):
        (programs / name).write_text(f"#!/bin/sh\n: > {decoys.marks}/{name}\n")
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    look_up = "import ctypes.util; ctypes.util.find_library('no-such-library')"
    start(decoys, sys.executable, "-I", "-c", look_up, PATH=path)
    assert decoys.executed() & {"gcc", "ld"}
    ours = f"import sys; sys.argv[1:] = ['check']; from broker.__main__ import main; main(); {look_up}"
    done = start(decoys, sys.executable, "-P", "-c", ours, PATH=path, PYTHONPATH=str(ROOT))
    assert done.stdout.startswith("ok: "), done.stderr
    assert decoys.executed() == set()
