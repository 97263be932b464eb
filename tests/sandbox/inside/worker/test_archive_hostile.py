"""Archives that were made to do harm, or are broken: refused with a reason, and nothing of them is left."""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.inside.unfinished import hidden
from sandbox.inside.worker.tar import METADATA_BYTES
from sandbox.inside.worker.walk import MAX_DEPTH
from sandbox.kernel.files import Refused
from tests.support.archiving import Tree, extract_all, refused, tree_of, unpack_here
from tests.support.tarbytes import END, MODE, archive_of, content, header, long_name, pax, record, summed

FILE = header()
HOSTILE = {
    "absolute": (header(b"/etc/passwd"), "is no path beneath"),
    "absolute by prefix": (header(b"passwd", prefix=b"/etc"), "is no path beneath"),
    "absolute in a record": (pax(record(b"path", b"/etc/passwd")) + FILE, "is no path beneath"),
    "absolute long name": (long_name(b"/etc/passwd\0") + FILE, "is no path beneath"),
    "parent": (header(b"../f"), "leads out"),
    "parent in the middle": (header(b"a/../../f"), "leads out"),
    "parent that stays": (header(b"a/../f"), "leads out"),
    "parent at the end": (header(b"a/..", b"5"), "leads out"),
    "parent alone": (header(b"..", b"5"), "leads out"),
    "parent by prefix": (header(b"f", prefix=b".."), "leads out"),
    "parent in a record": (pax(record(b"path", b"a/../../f")) + FILE, "leads out"),
    "file that is the top": (header(b"."), "leads out"),
    "file that is the top, longer": (header(b"./."), "directory's name"),
    "no name": (header(b""), "is no path beneath"),
    "no name in a record": (pax(record(b"path", b"")) + FILE, "empty or said twice"),
    "long name without a name": (long_name(b"\0") + FILE, "long name that is empty"),
    "NUL in a record's name": (pax(record(b"path", b"a\0b")) + FILE, "NUL"),
    "NUL in a long name": (long_name(b"a\0b\0") + FILE, "NUL"),
    "file with a slash at its end": (header(b"a/"), "directory's name"),
    "component too long": (long_name(b"n" * 256 + b"\0") + FILE, "too long"),
    "path too long": (long_name(b"n/" * 2100 + b"f\0") + FILE, "too long"),
    "too deep": (long_name(b"n/" * MAX_DEPTH + b"f\0") + FILE, "too long"),
    "a part's name": (header(hidden.hidden_name().encode()), "kept for writes"),
    "hard link": (header(b"l", b"1", linkname=b"/etc/passwd"), "'l' is a hard link"),
    "symbolic link": (header(b"l", b"2", linkname=b"/etc"), "'l' is a symbolic link"),
    "symbolic link within": (header(b"l", b"2", linkname=b"f"), "'l' is a symbolic link"),
    "character device": (header(b"l", b"3"), "'l' is a character device"),
    "block device": (header(b"l", b"4"), "'l' is a block device"),
    "FIFO": (header(b"l", b"6"), "'l' is a FIFO"),
    "contiguous": (header(b"l", b"7"), "'l' is a contiguous file"),
    "long link": (header(b"././@LongLink", b"K", 5) + content(b"/etc\0"), "is a link"),
    "sparse, old GNU": (header(b"l", b"S"), "'l' is a sparse file"),
    "sparse, PAX 0.1": (pax(record(b"GNU.sparse.map", b"0,1")) + FILE, "sparse"),
    "sparse, PAX 1.0": (pax(record(b"GNU.sparse.major", b"1")) + FILE, "sparse"),
    "sparse, star": (pax(record(b"SCHILY.realsize", b"9")) + FILE, "sparse"),
    "multiple volumes": (header(b"l", b"M"), "another volume"),
    "label": (header(b"l", b"V"), "volume's label"),
    "dump": (header(b"l", b"D"), "incremental dump"),
    "unknown type": (header(b"l", b"Z"), "unknown type"),
    "old link": (header(b"l", b"1", magic=bytes(8), linkname=b"/etc/passwd"), "'l' is a hard link"),
    "no magic": (header(magic=b"vstar\x0000"), "unknown kind"),
    "checksum": (header()[:-1] + b"x", "checksum is wrong"),
    "garbage": (b"x" * 512, "checksum is no number"),
    "size that is no number": (header(size=b"0000000x000\0"), "size is no number"),
    "negative size, octal": (header(size=b"-0000000001\0"), "size is no number"),
    "negative size, binary": (header(size=b"\xff" * 12), "negative size"),
    "size with another high bit": (header(size=b"\xc0" + bytes(11)), "size is no number"),
    "size beyond everything": (header(size=b"\x80" + b"\xff" * 11), "max_write_size"),
    "size beyond the cap": (header(size=b"\x80" + (1 << 41).to_bytes(11, "big")), "max_write_size"),
    "negative size in a record": (pax(record(b"size", b"-1")) + FILE, "size is said to be"),
    "size in a record that is none": (pax(record(b"size", b"0x10")) + FILE, "size is said to be"),
    "huge size in a record": (pax(record(b"size", b"9" * 18)) + FILE, "max_write_size"),
    "endless size in a record": (pax(record(b"size", b"9" * 5000)) + FILE, "size is said to be"),
    "size that is said twice": (pax(record(b"size", b"0") + record(b"size", b"1")) + FILE, "said twice"),
    "name that is said twice": (pax(record(b"path", b"a") + record(b"path", b"b")) + FILE, "said twice"),
    "name in record and long name": (long_name(b"a\0") + pax(record(b"path", b"b")) + FILE, "two names"),
    "two long names": (long_name(b"a\0") + long_name(b"b\0") + FILE, "two extended headers"),
    "two extended headers": (pax(record(b"path", b"a")) + pax(record(b"mtime", b"1")) + FILE, "two extended headers"),
    "name for all": (pax(record(b"path", b"a"), b"g") + FILE, "all entries one name"),
    "size for all": (pax(record(b"size", b"5"), b"g") + FILE, "all entries one name"),
    "sparse for all": (pax(record(b"GNU.sparse.size", b"5"), b"g") + FILE, "sparse"),
    "extended header without an entry": (pax(record(b"path", b"a")), "checksum is wrong"),
    "extended header before one for all": (
        pax(record(b"path", b"a")) + pax(record(b"comment", b"c"), b"g") + FILE,
        "without its entry",
    ),
    "huge extended header": (header(b"P", b"x", METADATA_BYTES + 1), "extended header of 1048577 bytes"),
    "huge long name": (header(b"L", b"L", 1 << 30), "extended header of"),
    "empty extended header": (header(b"P", b"x"), "extended header of 0 bytes"),
    "record without its end": (pax(b"12 path=abcd") + FILE, "extended header that is none"),
    "record that goes on": (pax(b"99 path=a\n") + FILE, "extended header that is none"),
    "record of no length": (pax(b"0 path=a\n") + FILE, "extended header that is none"),
    "record without a length": (pax(b"path=a\n") + FILE, "extended header that is none"),
    "record without a key": (pax(b"5 =a\n") + FILE, "extended header that is none"),
    "record without a value": (pax(b"7 path\n") + FILE, "extended header that is none"),
    "time that is no number": (pax(record(b"mtime", b"now")) + FILE, "time is said to be"),
    "time beyond all calendars": (pax(record(b"mtime", b"9" * 18)) + FILE, "time is said to be"),
    "time beyond all calendars, binary": (header(mtime=b"\x80" + b"\xff" * 11), "time that no calendar has"),
    "directory with content": (header(b"d", b"5", 5) + content(b"hello"), "directory with content"),
    "the same file twice": (FILE + FILE, "is in it twice"),
    "a file, then a directory": (header(b"a") + header(b"a", b"5"), "file and a directory"),
    "a directory, then a file": (header(b"a", b"5") + header(b"a"), "file and a directory"),
    "a file as a parent": (header(b"a") + header(b"a/b"), "file and a directory"),
    "a file as a parent, later": (header(b"a/b") + header(b"a"), "file and a directory"),
}
"""Headers, and what is said of them."""


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_by_name_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    data, why = HOSTILE[name]
    innocent = header(b"before") + header(b"d/e/before")
    refusal = refused(innocent + data + END, tmp_path / "out", max_file_bytes=1 << 40)
    assert refusal.kind in {"archive", "too_large"}
    assert re.search(why, refusal.why)
    assert len(refusal.why) < 700
    refused(data + END, tmp_path / "out")


def test_the_control_is_taken(tmp_path: Path) -> None:
    """What the hostile ones are made of is no reason to refuse them."""
    said = record(b"path", b"p/f") + record(b"size", b"3") + record(b"mtime", b"-1.5") + record(b"comment", b"")
    data = (
        header(b"before")
        + pax(record(b"comment", b"all"), b"g")
        + pax(said)
        + header(b"other", content_bytes=9)
        + content(b"abc")
        + long_name(b"l/" * 20 + b"f\0")
        + header(b"other")
        + header(b"v7", b"\0", magic=bytes(8))
        + header(b"v7d/", b"\0", magic=bytes(8))
        + header(b"binary", size=b"\x80" + (3).to_bytes(11, "big"), mtime=b"\xff" * 12)
        + content(b"xyz")
        + header(b"d//./", b"5")
        + header(b"./", b"5")
    )
    unpack_here(data + END + bytes(5120), tmp_path / "out")
    deep: Tree = {"f": b""}
    for _ in range(20):
        deep = {"l": deep}
    expected = {"before": b"", "p": {"f": b"abc"}, **deep, "v7": b"", "v7d": {}, "binary": b"xyz", "d": {}}
    assert tree_of(tmp_path / "out") == expected
    assert (tmp_path / "out/p/f").stat().st_mtime == -1.5
    assert (tmp_path / "out/binary").stat().st_mtime == -1


@pytest.mark.parametrize("what", ["absolute", "parent", "through a link"])
def test_the_same_archive_hits_whoever_unpacks_it_naively(tmp_path: Path, what: str) -> None:
    """The control of all this: the attacks are real."""
    victims = {
        "absolute": (header(os.fsencode(tmp_path / "victim"), content_bytes=4) + content(b"evil"), "victim"),
        "parent": (header(b"../victim", content_bytes=4) + content(b"evil"), "victim"),
        "through a link": (
            header(b"l", b"2", linkname=b"..") + header(b"l/victim", content_bytes=4) + content(b"evil"),
            "victim",
        ),
    }
    data, victim = victims[what]
    data += END
    for naive in (extract_with_tarfile, extract_with_gnu_tar):
        (tmp_path / "folder").mkdir()
        naive(data, tmp_path / "folder")
        assert (tmp_path / victim).read_bytes() == b"evil", naive
        (tmp_path / victim).unlink()
        shutil.rmtree(tmp_path / "folder")
    refused(data, tmp_path / "folder")
    assert not os.listdir(tmp_path)


def extract_with_tarfile(data: bytes, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        extract_all(archive, folder, guarded=False)


def extract_with_gnu_tar(data: bytes, folder: Path) -> None:
    """Two runs, as somebody would who unpacks one archive over another: one alone makes its links last."""
    for _ in range(2):
        command = ["tar", "--extract", "--absolute-names", "--keep-directory-symlink", "--file=-"]
        subprocess.run(command, input=data, cwd=folder, capture_output=True, check=False)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = archive_of({"d": {"f": b"x" * 700}, "ü" * 60: b"y"})
    end = len(data.rstrip(b"\0"))
    whole = end + (-end % 512) + 1024
    for at in range(0, whole, 512):
        for length in {max(0, at - 1), at, at + 1}:
            if length < whole:
                assert refused(data[:length], tmp_path / "out").kind == "archive", length
    unpack_here(data[:whole], tmp_path / "out")


def test_what_follows_the_end_is_refused_unless_it_is_padding(tmp_path: Path) -> None:
    one, two = archive_of({"a": b""}), archive_of({"b": b""})
    for data in (one + two, one + b"x", one + bytes(5000) + b"x"):
        assert "something follows" in refused(data, tmp_path / "out").why
    assert "something follows" in refused(FILE + bytes(512) + FILE + END, tmp_path / "out").why
    unpack_here(one + bytes(100_000), tmp_path / "out")


def test_gzip_that_is_damaged_cut_or_not_said_is_refused(tmp_path: Path) -> None:
    plain = archive_of({"f": bytes(range(256)) * 40})
    data = gzip.compress(plain)
    for length in (0, 1, 10, 20, len(data) // 2, len(data) - 8, len(data) - 1):
        assert "missing" in refused(data[:length], tmp_path / "out", gzip=True).why
    wrong_sum = data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]
    assert "damaged" in refused(wrong_sum, tmp_path / "out", gzip=True).why
    assert "no gzip stream" in refused(plain, tmp_path / "out", gzip=True).why
    assert "follows its gzip" in refused(data + data, tmp_path / "out", gzip=True).why
    assert "say so" in refused(data, tmp_path / "out").why
    unpack_here(data, tmp_path / "out", gzip=True)


SEED = archive_of({"d": {"f": b"x" * 700}, "ü" * 60: b"y", "n" * 120: b"z" * 10}, mtime=1.5)
CHANGES = st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4)
DIGITS = st.lists(
    st.tuples(
        st.integers(0, len(SEED) // 512 - 1),
        st.sampled_from([0, 100, 124, 136, 156, 157, 257, 345]),
        st.sampled_from([b"/", b"..", b"0", b"1", b"2", b"5", b"x", b"g", b"L", b"S", b"\x80", b"\xff", b"\0", b"777"]),
    ),
    min_size=1,
    max_size=5,
)


def changed(changes: list[tuple[int, bytes]]) -> bytes:
    """The seed with bytes replaced, its headers' checksums made right again."""
    data = bytearray(SEED)
    for at, new in changes:
        data[at : at + len(new)] = new[: len(data) - at]
    for at in range(0, len(SEED), 512):
        if SEED[at + 257 : at + 262] == b"ustar" and bytes(data[at : at + 512]) != SEED[at : at + 512]:
            data[at + MODE.start : at + MODE.stop] = SEED[at + MODE.start : at + MODE.stop]  # tar would obey it
            data[at : at + 512] = summed(bytes(data[at : at + 512]))
    return bytes(data)


def is_taken(data: bytes, target: Path) -> bool:
    try:
        unpack_here(data, target, max_bytes=1 << 20, max_file_bytes=1 << 20)
    except Refused as refusal:
        if refusal.kind not in {"archive", "too_large"}:
            raise
        return False
    return True


@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=CHANGES | DIGITS.map(lambda many: [(512 * block + at, new) for block, at, new in many]))
def test_a_changed_archive_is_refused_or_is_what_gnu_tar_makes_of_it(changes: list[tuple[int, bytes]]) -> None:
    data = changed(changes)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        if not is_taken(data, base / "out"):
            assert not os.listdir(base)
            return
        assert os.listdir(base) == ["out"]
        (base / "tar").mkdir()
        command = ["tar", "--extract", "--file=-"]
        subprocess.run(command, input=data, cwd=base / "tar", capture_output=True, check=False, env={"LC_ALL": "C"})
        assert tree_of(base / "out") == tree_of(base / "tar")


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=3000), packed=st.booleans())
def test_garbage_is_refused(data: bytes, *, packed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if data.strip(b"\0"):
            refused(data, Path(folder) / "out", gzip=packed)
