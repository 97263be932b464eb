"""The harness of the guest tests, as far as it needs no guest: streams, images, scripts, the choice of a kernel."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.guest import fetch, inside, ports, unpack

MARK = b"\x1eguest-1e\x1e"
# Bytes that come close to the mark as often as they do not.
NEAR = st.lists(st.sampled_from([MARK, MARK[:1], MARK[:5], MARK[-3:], b"x", b""]), max_size=8).map(b"".join)


@given(
    output=NEAR.filter(lambda data: MARK not in data + MARK[:-1]),
    after=NEAR,
    sizes=st.lists(st.integers(1, 7), max_size=40),
)
def test_output_passes_whole_up_to_the_mark_however_it_is_cut(output: bytes, after: bytes, sizes: list[int]) -> None:
    passing = ports.Marked(mark=MARK)
    rest, seen = output + MARK + after, b""
    for size in [*sizes, len(rest)]:
        seen += passing.feed(rest[:size])
        rest = rest[size:]
    assert (seen, passing.ended) == (output, True)


def test_output_that_cannot_be_the_mark_is_not_held_back() -> None:
    assert ports.Marked(mark=MARK).feed(b"a line\n") == b"a line\n"


def test_an_initramfs_is_what_cpio_reads(tmp_path: Path) -> None:
    cpio = [found, "cpio"] if (found := shutil.which("busybox")) else [shutil.which("cpio")]
    if cpio[0] is None:
        pytest.skip("neither busybox nor cpio is installed")
    packed = unpack.cpio({"init": b"#!/bin/sh\n", "bin/odd": b"12345"}, ("bin",))
    subprocess.run([str(word) for word in (*cpio, "-i")], input=packed, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "init").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "bin" / "odd").read_bytes() == b"12345"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755


def test_what_is_no_kernel_is_refused_by_name() -> None:
    with pytest.raises(unpack.UnknownKernel, match="not a bzImage"):
        unpack.vmlinux(bytes(4096))


@pytest.mark.parametrize("as_user", [False, True])
def test_the_scripts_of_pid_1_are_shell_whatever_the_names(*, as_user: bool) -> None:
    odd = Path('/tmp/it\'s $(odd); "name"')
    job = inside.Job(
        command=("printf", "%s", "a 'b' $c"),
        working_dir=odd,
        as_user=as_user,
        shared=(odd,),
        writable=(odd,),
        sized=(inside.Sized(path=odd, size_mib=1),),
    )
    for script in (inside.STAGE_ONE, inside.stage_two(job, "mark")):
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_kernels_are_ordered_by_their_numbers() -> None:
    releases = ["6.12.9+deb12-amd64", "6.1.0-56-amd64", "6.12.117+deb12-amd64"]
    assert sorted(releases, key=fetch.version_key) == [releases[1], releases[0], releases[2]]
