"""The wheel holds all of the packages, at whatever depth, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.repository.house import PACKAGES

ROOT = Path(__file__).parents[2]
KINDS = ("*.py", "*.yaml", "py.typed")


@pytest.mark.once
def test_the_wheel_holds_every_folder_of_the_packages_and_no_other(tmp_path: Path) -> None:
    """With the real build, of a house to which rooms were added."""
    tree = tmp_path / "tree"
    found = [path for package in PACKAGES for kind in KINDS for path in (ROOT / package).rglob(kind)]
    files = {str(path.relative_to(ROOT)) for path in found}
    rooms = {"sandbox/inside/__init__.py", "sandbox/inside/init/__init__.py", "sandbox/inside/init/a.py"}
    rooms |= {"sandbox/inside/init/rules.yaml"}
    for name in (*files, *rooms, "pyproject.toml", "README.md", "LICENSE", "tests/x.py", "bench/__init__.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes() if (ROOT / name).is_file() else b"")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=tree, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as content:
        assert {name for name in content.namelist() if ".dist-info/" not in name} == files | rooms
