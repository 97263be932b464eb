"""The whole check of this repository: `nox` runs it all, CI runs nothing else.

The matrix of Pythons has one home, the classifiers of pyproject.toml; of those, the ones installed here are tested.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
PACKAGES = ["broker", "config", "policy", "sandbox", "transfers"]
CODE = [*PACKAGES, "tests", "bench", "docs", "noxfile.py"]
SLOW = "conformance or soak or guest"


def _open_pyenv_shims(minors: list[str]) -> None:
    """Pyenv's shims answer only for versions that PYENV_VERSION names: name every installed one of the matrix."""
    if (pyenv := shutil.which("pyenv")) is None:
        return
    listed = subprocess.run([pyenv, "versions", "--bare"], capture_output=True, text=True, check=False).stdout.split()
    wanted = [version for version in listed if version.rpartition(".")[0] in minors]
    if wanted:
        os.environ["PYENV_VERSION"] = ":".join([*wanted, "system"])


def installed_pythons() -> list[str]:
    """The minor versions of the matrix that answer on this machine."""
    minors = nox.project.python_versions(PROJECT)
    _open_pyenv_shims(minors)
    return [minor for minor in minors if _answers(f"python{minor}")]


def _answers(python: str) -> bool:
    found = shutil.which(python)
    return found is not None and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0


# Named, because collecting everything is slow in a guest.
GUEST_TESTS = ["tests/test_walls_cgroup_guest.py", "tests/test_whole_cgroup_guest.py", "tests/test_escape_guest.py"]
# As many tests at once as there are cores. More than four would share the session user's limit of processes.
AT_ONCE = ["-n", "logical", "--maxprocesses", "4"]
GUEST_S = 600  # for the tests of one guest; emulated on two idle cores they take about 200
PYTHONS = installed_pythons()

nox.needs_version = ">=2025.5.1"
nox.options.error_on_external_run = True
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests", "conformance", "soak", "guest", "wheel"]


def install(session: nox.Session, *groups: str) -> None:
    """This project and the named dependency groups, into the session's own environment."""
    session.install("-q", ".", *nox.project.dependency_groups(PROJECT, *groups))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Pure, real and hostile tests on every installed Python of the matrix; what is marked `once` on the oldest."""
    install(session, "test")
    by_module = [*AT_ONCE, "--dist", "loadscope"]  # a module's tests may share a broker
    elsewhere = SLOW if session.python == PYTHONS[0] else f"{SLOW} or once"
    session.run("python", "-m", "pytest", "-q", *by_module, "-m", f"not ({elsewhere})", *session.posargs)


@nox.session
def conformance(session: nox.Session) -> None:
    """The official MCP conformance suite against our HTTP layer, both protocol revisions."""
    install(session, "test", "conformance")
    session.run("python", "-m", "pytest", "-q", "-m", "conformance", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Ten thousand commands and a gigabyte of output leave everything where it was."""
    install(session, "test")
    long = ["-o", "faulthandler_timeout=420"]  # these tests are long by design; each has a bound of its own
    session.run("python", "-m", "pytest", "-q", *AT_ONCE, *long, "-m", "soak", *session.posargs)


@nox.session
def guest(session: nox.Session) -> None:
    """The tests that need a kernel of their own: in a guest, as root and as a user with a delegated cgroup."""
    install(session, "test")
    found = session.run("python", "-m", "tests.guest.fetch", silent=True, success_codes=[0, 77])
    if isinstance(found, str) and found.startswith("no guest"):
        session.skip(found.strip())
    session.run("python", "-m", "compileall", "-q", *PACKAGES, "tests")  # what is compiled inside is thrown away
    tests = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "guest", *(session.posargs or GUEST_TESTS)]
    for who in ([], ["--user"]):
        session.run("python", "-m", "tests.guest", *who, "--verbose", "--timeout", f"{GUEST_S}", "--", *tests)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff (rules and format) and flake8-async."""
    session.install("-q", *nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)
    files = [str(file) for package in PACKAGES for file in sorted(Path(package).glob("*.py"))]
    # ASYNC128 does not see a task_status that is handed on; ASYNC9xx want a checkpoint in every function, also where
    # nothing may block (they are off by default, and naming any rule to disable would turn them on).
    startable = "--startable-in-context-manager=serve_http,run,_live,_supervise"
    session.run("flake8-async", "--disable=ASYNC128,ASYNC9", startable, *files)


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict."""
    install(session, "types", "test")
    session.run("mypy", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it alone, and smoke-test the installed program from an empty folder."""
    built = Path(session.create_tmp()) / "dist"
    shutil.rmtree(built, ignore_errors=True)
    session.install("-q", "build")
    session.run("python", "-m", "build", "--outdir", str(built), ".", silent=True)
    (package,) = built.glob("*.whl")
    alone = Path(session.create_tmp()).resolve() / "alone"
    shutil.rmtree(alone, ignore_errors=True)
    session.run("python", "-m", "venv", str(alone / "env"))
    python = str(alone / "env" / "bin" / "python")
    session.run(python, "-m", "pip", "install", "-q", str(package), external=True)
    empty = alone / "empty"
    empty.mkdir()
    with session.chdir(empty):
        session.run(python, str(ROOT / "tests" / "smoke_installed.py"), external=True)
