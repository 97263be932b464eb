"""Media types: by content where libmagic is, by name where it is not, and it says which."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from transfers.media import HEAD_BYTES, KNOWN_HEADS, MediaType, MediaTypes

PNG = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010806000000")


async def media_types(module_name: str = "magic", limiter: trio.CapacityLimiter | None = None) -> MediaTypes:
    types = MediaTypes(limiter=limiter or trio.CapacityLimiter(1), module_name=module_name)
    if module_name == "magic" and not (await types.report()).startswith("libmagic"):
        pytest.skip(await types.report())
    return types


async def test_content_decides_over_the_name() -> None:
    types = await media_types()
    assert await types.of_bytes(PNG, "notes.txt") == MediaType(mime_type="image/png", found_by="libmagic")


async def test_what_was_seen_lately_is_known_without_a_thread_and_only_that() -> None:
    limiter = trio.CapacityLimiter(1)
    types = await media_types(limiter=limiter)
    heads = [PNG + str(number).encode().ljust(HEAD_BYTES) for number in range(KNOWN_HEADS + 1)]
    for head in heads:
        assert (await types.of_bytes(head, "x")).mime_type == "image/png"
    async with limiter:  # no thread is to be had
        for head in (heads[1], heads[-1], heads[1]):
            assert (await types.of_bytes(head, "y")).mime_type == "image/png"
        for unknown in (heads[0], b""):
            with trio.move_on_after(0) as scope:
                await types.of_bytes(unknown, "y")
            assert scope.cancelled_caught


async def test_descriptor_is_looked_at_from_its_beginning_and_stays_where_it_was(tmp_path: Path) -> None:
    types = await media_types()
    (tmp_path / "x").write_bytes(PNG)
    fd = os.open(tmp_path / "x", os.O_RDONLY)
    try:
        os.lseek(fd, 5, os.SEEK_SET)
        assert (await types.of_descriptor(fd, "x")).mime_type == "image/png"
        assert os.lseek(fd, 0, os.SEEK_CUR) == 5
    finally:
        os.close(fd)


async def test_empty_file_has_only_its_name() -> None:
    types = await media_types()
    assert await types.of_bytes(b"", "x.json") == MediaType(mime_type="application/json", found_by="name")


@pytest.mark.parametrize(
    ("name", "mime_type"),
    [
        ("x.json", "application/json"),
        ("x.tar.gz", "application/gzip"),
        ("x.no-such-ending", "application/octet-stream"),
        ("", "application/octet-stream"),
        ("x\udcff.html", "text/html"),
    ],
)
async def test_without_the_library_the_name_decides_and_it_says_so(name: str, mime_type: str) -> None:
    types = await media_types("no_such_magic")
    assert await types.of_bytes(PNG, name) == MediaType(mime_type=mime_type, found_by="name")
    assert await types.report() == "types are guessed from names: No module named 'no_such_magic'"


async def test_another_package_called_magic_is_not_taken_for_the_library() -> None:
    types = await media_types("json")
    assert (await types.report()).startswith("types are guessed from names: ")


async def test_library_without_its_database_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    await media_types()
    monkeypatch.setenv("MAGIC", str(tmp_path / "missing"))
    types = MediaTypes(limiter=trio.CapacityLimiter(1))
    assert (await types.report()).startswith("types are guessed from names: libmagic: ")
    assert (await types.of_bytes(PNG, "x.txt")).mime_type == "text/plain"
