"""The whole check of this repository: `nox` is the quick part, `nox -t rest` what it leaves out, `nox -t full` both.

Everything is installed from the hashes in requirements/ (`nox -s lock` writes them), but for the session `newest`.
The matrix of Pythons has one home, the classifiers of pyproject.toml; of those, the ones installed here are tested.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
PACKAGES = ["broker", "config", "policy", "sandbox", "transfers"]
CODE = [*PACKAGES, "tests", "bench", "docs", "noxfile.py"]
WAITING = re.compile(r"\b(async|await|trio)\b")
# Which marks run where. What has a session of its own is in none of these.
APART = "conformance or soak or guest or histories or failing"
QUICK = f"not ({APART} or long)"
LONG = f"long and not ({APART})"
ELSEWHERE = f"not ({APART} or once)"


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
GUEST_TESTS = [
    *("tests/sandbox/cgroup/test_walls_cgroup_guest.py", "tests/live/test_whole_cgroup_guest.py"),
    *("tests/hostile/test_escape_guest.py", "tests/soak/test_histories_guest.py", "tests/live/test_live_memory.py"),
]
# As many tests at once as there are cores. More than four would share the session user's limit of processes.
AT_ONCE = ["-n", "logical", "--maxprocesses", "4"]
PYTEST = [*AT_ONCE, "--dist", "loadscope"]  # a module's tests may share a broker
GUEST_S = 1200  # for the tests of one guest; emulated on two cores, two at a time, they take about 500
CORES = os.cpu_count() or 1
PYTHONS = installed_pythons()
OTHERS = [minor for minor in PYTHONS if minor != "{}.{}".format(*sys.version_info)]

nox.needs_version = ">=2025.5.1"
nox.options.error_on_external_run = True
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]


def install(session: nox.Session, *locks: str) -> None:
    """The locked packages and this project, into the session's own environment."""
    for lock in ("check", *locks):
        session.install("-q", "-r", f"requirements/{lock}.txt")
    session.install("-q", "--no-deps", "--no-build-isolation", ".")


def run_here(session: nox.Session, module: str, *arguments: str) -> None:
    """Run a module in the environment that runs nox: the README's command has installed all of it there."""
    session.run(sys.executable, "-m", module, *arguments, external=True)


def waiting(root: Path) -> list[str]:
    """The files where something waits: in the others flake8-async finds nothing, and takes a minute to."""
    every = [file for package in PACKAGES for file in sorted((root / package).rglob("*.py"))]
    return [str(file.relative_to(root)) for file in every if WAITING.search(file.read_text())]


@nox.session(venv_backend="none", tags=["full"])
def lint(session: nox.Session) -> None:
    """Ruff (rules and format) and flake8-async."""
    run_here(session, "ruff", "check", *CODE)
    run_here(session, "ruff", "format", "--check", *CODE)
    files = waiting(ROOT)
    # ASYNC128 does not see a task_status that is handed on; ASYNC9xx want a checkpoint in every function, also where
    # nothing may block (they are off by default, and naming any rule to disable would turn them on).
    startable = "--startable-in-context-manager=serve_http,run,_live,_supervise"
    check = [sys.executable, "-m", "flake8_async", "--disable=ASYNC128,ASYNC9", startable]
    # A second a file, one after the other in one process: each core takes its share.
    shares = [share for first in range(CORES) if (share := files[first::CORES])]
    running = [subprocess.Popen([*check, *share]) for share in shares]
    ended = [process.wait() for process in running]
    if any(ended):
        session.error("flake8-async found what it names above")


@nox.session(venv_backend="none", tags=["full"])
def types(session: nox.Session) -> None:
    """Mypy, strict."""
    run_here(session, "mypy", *session.posargs)


@nox.session(venv_backend="none", tags=["full"])
def tests(session: nox.Session) -> None:
    """Pure, real and hostile tests on the Python that runs nox, but for the long ones."""
    run_here(session, "pytest", *PYTEST, "-m", QUICK, *session.posargs)


@nox.session(venv_backend="none", tags=["full", "rest"])
def long(session: nox.Session) -> None:
    """The long tests and corpora that `tests` leaves out, on the same Python."""
    run_here(session, "pytest", *PYTEST, "-m", LONG, *session.posargs)


@nox.session(python=OTHERS, tags=["full", "rest"])
def elsewhere(session: nox.Session) -> None:
    """What the Python makes a difference to, on every other one of the matrix that is installed here."""
    install(session)
    session.run("python", "-m", "pytest", *PYTEST, "-m", ELSEWHERE, *session.posargs)


@nox.session
def newest(session: nox.Session) -> None:
    """The tests of `tests` on the newest releases that pyproject.toml allows, instead of the locked ones."""
    session.install(
        "-q", "--upgrade", "--upgrade-strategy", "eager", ".", *nox.project.dependency_groups(PROJECT, "dev")
    )
    session.run("python", "-m", "pytest", *PYTEST, "-m", QUICK, *session.posargs)


@nox.session
def lock(session: nox.Session) -> None:
    """Write requirements/ anew for all Pythons of the matrix; `-- --upgrade` moves to the newest releases."""
    session.install("-q", "uv")
    write = ["uv", "pip", "compile", "-q", "--universal", "--python-version", nox.project.python_versions(PROJECT)[0]]
    write += ["--generate-hashes", "--no-emit-index-url", "--no-annotate", "--custom-compile-command", "nox -s lock"]
    check = "requirements/check.txt"
    session.run(*write, "pyproject.toml", "--group", "dev", "-o", check, *session.posargs)
    session.run(*write, "pyproject.toml", "--group", "build", "-c", check, "-o", "requirements/run.txt")
    for group in ("conformance", "coverage", "fuzz"):
        session.run(*write, "--group", group, "-c", check, "-o", f"requirements/{group}.txt", *session.posargs)


@nox.session(tags=["full", "rest"])
def conformance(session: nox.Session) -> None:
    """The official MCP conformance suite against our HTTP layer, both protocol revisions."""
    install(session, "conformance")
    session.run("python", "-m", "pytest", "-m", "conformance", *session.posargs)


@nox.session(venv_backend="none", tags=["full", "rest"])
def soak(session: nox.Session) -> None:
    """Ten thousand commands and a gigabyte of output leave everything where it was."""
    bound = ["-o", "faulthandler_timeout=420"]  # these tests are long by design; each has a bound of its own
    run_here(session, "pytest", *AT_ONCE, *bound, "-m", "soak", *session.posargs)


@nox.session(venv_backend="none", tags=["full", "rest"])
def histories(session: nox.Session) -> None:
    """Clients at work on the same things while the broker is struck; HISTORIES_SEED=N repeats one that failed."""
    bound = ["-o", "faulthandler_timeout=420"]  # a storm has a bound of its own
    run_here(session, "pytest", *bound, "-m", "histories", *session.posargs)


@nox.session(tags=["full", "rest"])
def fuzz(session: nox.Session) -> None:
    """Coverage-guided fuzzing of all that parses a stranger's bytes, for two minutes; `-- --seconds 600` is longer."""
    if platform.machine() != "x86_64" or sys.version_info >= (3, 14):
        session.skip("atheris has wheels for x86_64 and Python 3.11 to 3.13 alone")
    install(session, "fuzz")
    session.run("python", "-m", "tests.fuzz", *session.posargs)


@nox.session(venv_backend="none", tags=["full", "rest"])
def failing(session: nox.Session) -> None:
    """System calls of the broker and its sessions fail, one after the other; FAILING_CALLS=all: every one."""
    bound = ["-o", "faulthandler_timeout=5400"]
    run_here(session, "pytest", *AT_ONCE, *bound, "-m", "failing", *session.posargs, "tests/soak/test_failing_calls.py")


@nox.session(venv_backend="none", tags=["full", "rest"])
def mutation(session: nox.Session) -> None:
    """A sample of the mutants of the modules in WHOLE, drawn anew for each state of them: a survivor is a finding."""
    run_here(session, "tests.mutation", *(session.posargs or ["--sample", "100"]))


@nox.session(tags=["full", "rest"])
def coverage(session: nox.Session) -> None:
    """Branch coverage by package, on both sides of the walls, of the tests that tests/branches.py chooses."""
    session.install("-q", "-r", "requirements/check.txt", "-r", "requirements/coverage.txt")  # not us: a copy runs
    measured = Path(session.bin).parent / "measured"
    session.run("python", "-m", "tests.branches", str(measured), *session.posargs)


@nox.session(tags=["full", "rest"])
def guest(session: nox.Session) -> None:
    """The tests that need a kernel of their own: in a guest, as root and as a user with a delegated cgroup."""
    install(session)
    found = session.run("python", "-m", "tests.guest.fetch", silent=True, success_codes=[0, 77])
    if isinstance(found, str) and found.startswith("no guest"):
        session.skip(found.strip())
    session.run("python", "-m", "compileall", "-q", *PACKAGES, "tests")  # what is compiled inside is thrown away
    patient = ["-p", "no:cacheprovider", "-o", f"faulthandler_timeout={GUEST_S}"]
    tests = ["python", "-m", "pytest", *patient, "-m", "guest", *(session.posargs or GUEST_TESTS)]
    boot = [f"{session.bin}/python", "-m", "tests.guest", "--verbose", "--timeout", f"{GUEST_S}"]
    # One guest keeps one core busy. What the second says is shown when it has ended.
    environment = {**os.environ, "PATH": f"{session.bin}{os.pathsep}{os.environ['PATH']}"}  # in the guest as well
    with tempfile.TemporaryFile() as said:
        user = [*boot, "--user", "--", *tests]
        other = subprocess.Popen(user, env=environment, stdout=said, stderr=subprocess.STDOUT)
        statuses = subprocess.run([*boot, "--", *tests], env=environment, check=False).returncode, other.wait()
        said.seek(0)
        session.log("%s", said.read().decode(errors="replace"))
    if any(statuses):
        session.error("root's guest ended with {}, a plain user's with {}".format(*statuses))


@nox.session(tags=["full", "rest"])
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it alone, and smoke-test the installed program from an empty folder."""
    built = Path(session.create_tmp()) / "dist"
    shutil.rmtree(built, ignore_errors=True)
    session.install("-q", "-r", "requirements/check.txt")
    session.run("python", "-m", "build", "--no-isolation", "--outdir", str(built), ".", silent=True)
    (package,) = built.glob("*.whl")
    alone = Path(session.create_tmp()).resolve() / "alone"
    shutil.rmtree(alone, ignore_errors=True)
    session.run("python", "-m", "venv", str(alone / "env"))
    python = str(alone / "env" / "bin" / "python")
    session.run(python, "-m", "pip", "install", "-q", "-r", "requirements/run.txt", external=True)
    session.run(python, "-m", "pip", "install", "-q", "--no-deps", str(package), external=True)
    empty = alone / "empty"
    empty.mkdir()
    with session.chdir(empty):
        session.run(python, str(ROOT / "tests" / "smoke_installed.py"), external=True)
