"""The lock: hashes for all, no place named, what pyproject.toml asks for within its bounds, one version of each.

That it is complete needs no test here: pip refuses to install with hashes what has none.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.once  # it reads files only

ROOT = Path(__file__).parents[2]
LOCKS = {path.stem: path.read_text() for path in sorted((ROOT / "requirements").glob("*.txt"))}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PIN = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+( ; .+)?")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def pins(lock: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Return each package's pin and hashes; whatever else the file holds is a fault."""
    found = {}
    lines = [line for line in LOCKS[lock].splitlines() if not line.startswith("#")]
    for entry in "\n".join(lines).replace("\\\n", "\0").splitlines():
        pin, *hashes = (part.strip() for part in entry.split("\0"))
        assert PIN.fullmatch(pin), pin
        assert hashes, f"{pin} has no hash"
        assert all(HASH.fullmatch(given) for given in hashes), entry
        requirement = Requirement(pin)
        assert canonicalize_name(requirement.name) not in found, pin
        found[canonicalize_name(requirement.name)] = requirement, hashes
    return found


def asked(group: str) -> list[Requirement]:
    """Return what a dependency group asks for, with the groups that it includes."""
    entries: list[Any] = PROJECT["dependency-groups"][group]
    found = [Requirement(entry) for entry in entries if isinstance(entry, str)]
    return found + [one for entry in entries if isinstance(entry, dict) for one in asked(entry["include-group"])]


def depended_on() -> list[Requirement]:
    return [Requirement(entry) for entry in PROJECT["project"]["dependencies"]]


def test_there_is_a_lock_to_run_one_to_check_and_one_for_each_tool_of_one_session() -> None:
    assert sorted(LOCKS) == ["check", "conformance", "coverage", "fuzz", "run"]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_is_a_pin_with_its_hashes_and_names_no_place(lock: str) -> None:
    assert pins(lock)
    assert "://" not in LOCKS[lock]


@pytest.mark.parametrize("text", ["attrs==26.1.0", "attrs>=26 \\\n  --hash=sha256:" + "0" * 64, "-r other.txt"])
def test_what_is_no_pin_with_hashes_is_a_fault(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOCKS, "made", text)
    with pytest.raises(AssertionError):
        pins("made")


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("run", [*depended_on(), *asked("build")]),
        ("check", [*depended_on(), *asked("dev")]),
        ("conformance", asked("conformance")),
        ("coverage", asked("coverage")),
        ("fuzz", asked("fuzz")),
    ],
)
def test_all_that_is_asked_for_is_locked_within_its_bounds(lock: str, wanted: list[Requirement]) -> None:
    locked = pins(lock)
    for requirement in wanted:
        pin, _ = locked[canonicalize_name(requirement.name)]
        (version,) = pin.specifier
        assert requirement.specifier.contains(version.version), f"{requirement}, but the lock has {pin}: nox -s lock"
        assert pin.marker is None, f"{requirement} holds everywhere, {pin} does not"


def test_every_group_is_locked() -> None:
    locked = {one.name for lock in ("dev", "conformance", "coverage", "fuzz") for one in asked(lock)}
    assert {one.name for group in PROJECT["dependency-groups"] for one in asked(group)} == locked


def test_what_builds_us_without_isolation_is_what_we_say_builds_us() -> None:
    assert asked("build") == [Requirement(entry) for entry in PROJECT["build-system"]["requires"]]


def test_a_package_has_one_version_and_the_same_files_in_all_locks() -> None:
    check = pins("check")
    for name, locked in pins("run").items():
        assert check[name] == locked
