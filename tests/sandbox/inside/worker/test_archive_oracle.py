"""Any tree, packed by us or by others, is the same tree when it is unpacked by others or by us."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sandbox.inside.worker.test_archive_pack import extract_with_tar
from tests.sandbox.inside.worker.test_archive_unpack import GNU_FORMATS, PYTHON_FORMATS, gnu_tar, python_tar
from tests.support.archiving import Tree, extract_all, pack_here, plant, tree_of, unpack_here

SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
BYTES = st.binary(min_size=1, max_size=12) | st.integers(90, 255).map(lambda count: b"n" * count)
NAMES = (
    (BYTES | st.text(min_size=1, max_size=60).map(lambda text: text.encode("utf-8", "surrogateescape")))
    .map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"-")[:255])
    .filter(lambda name: name not in {b".", b".."})
    .map(os.fsdecode)
)
CONTENT = st.binary(max_size=20) | st.integers(500, 3000).map(lambda size: b"x" * size)
TREES = st.recursive(CONTENT, lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=12).filter(
    lambda tree: isinstance(tree, dict)
)


def in_folder(folder: str, tree: Tree) -> tuple[Path, Path]:
    base = Path(folder)
    return base, plant(base / "source", tree)


@SETTINGS
@given(tree=TREES, gzip=st.booleans())
def test_there_and_back(tree: Tree, *, gzip: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base, source = in_folder(folder, tree)
        for path in source.rglob("*"):
            os.utime(path, (5, 5))
        data, _ = pack_here(source, gzip=gzip)
        unpack_here(data, base / "out", gzip=gzip)
        assert tree_of(base / "out") == tree
        assert all(path.stat().st_mtime == 5 for path in (base / "out").rglob("*"))
        assert pack_here(base / "out", gzip=gzip)[0] == data


@SETTINGS
@given(tree=TREES, locale=st.sampled_from(["C", "C.UTF-8"]))
def test_gnu_tar_unpacks_what_we_pack(tree: Tree, locale: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base, source = in_folder(folder, tree)
        said = extract_with_tar(pack_here(source)[0], base / "out", locale)
        assert (said.returncode, said.stderr) == (0, b"")
        assert tree_of(base / "out") == tree


@SETTINGS
@given(tree=TREES)
def test_pythons_tarfile_unpacks_what_we_pack(tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base, source = in_folder(folder, tree)
        (base / "out").mkdir()
        with tarfile.open(fileobj=io.BytesIO(pack_here(source)[0])) as archive:
            extract_all(archive, base / "out")
        assert tree_of(base / "out") == tree


@SETTINGS
@given(tree=TREES, form=st.sampled_from(sorted({*GNU_FORMATS} - {"v7", "ustar"})))
def test_we_unpack_what_gnu_tar_packs(tree: Tree, form: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base, source = in_folder(folder, tree)
        unpack_here(gnu_tar(source, f"--format={form}"), base / "out")
        assert tree_of(base / "out") == tree


@SETTINGS
@given(tree=TREES, form=st.sampled_from(["gnu", "pax"]))
def test_we_unpack_what_python_packs(tree: Tree, form: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base, source = in_folder(folder, tree)
        unpack_here(python_tar(source, PYTHON_FORMATS[form]), base / "out")
        assert tree_of(base / "out") == tree


def test_busybox_and_gzip_read_what_we_pack(tmp_path: Path) -> None:
    source = plant(tmp_path / "source", {"d": {"ü" * 70: b"x", "n" * 200: b"y"}, "e": {}})
    data, _ = pack_here(source, gzip=True)
    (tmp_path / "out").mkdir()
    command = ["busybox", "tar", "xzf", "-"]
    try:
        subprocess.run(command, input=data, cwd=tmp_path / "out", check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no busybox here")
    assert tree_of(tmp_path / "out") == tree_of(source)
