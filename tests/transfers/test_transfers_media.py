"""Media types: by content where somebody can tell, by name where not, and it says which."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from sandbox.sniffing import UNASKED, open_sniffing
from transfers.media import HEAD_BYTES, KNOWN_HEADS, MediaType, MediaTypes
from transfers.refusals import SourceUnreadable

PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489")


@asynccontextmanager
async def media_types(module_name: str = "magic") -> AsyncIterator[MediaTypes]:
    """As a broker has them; skips where there is no libmagic."""
    async with open_sniffing(say=lambda _: None, module_name=module_name) as sniffing:
        while sniffing.report == UNASKED:
            await sniffing.look(b"x")
        if module_name == "magic" and not sniffing.report.startswith("libmagic "):
            pytest.skip(sniffing.report)
        yield MediaTypes(look=sniffing.look, limiter=trio.CapacityLimiter(1))


async def test_content_decides_over_the_name() -> None:
    async with media_types() as types:
        assert await types.of_bytes(PNG, "notes.txt") == MediaType(mime_type="image/png", found_by="libmagic")


async def test_what_was_seen_lately_is_known_without_a_look_and_only_that() -> None:
    async with open_sniffing(say=lambda _: None) as sniffing:
        looks = 0

        async def look(head: bytes) -> str | None:
            nonlocal looks
            looks += 1
            return await sniffing.look(head)

        types = MediaTypes(look=look, limiter=trio.CapacityLimiter(1))
        heads = [PNG + str(number).encode().ljust(HEAD_BYTES) for number in range(KNOWN_HEADS + 1)]
        for head in heads:
            if (await types.of_bytes(head, "x")).found_by == "name":
                pytest.skip(sniffing.report)
        assert looks == len(heads)
        for head in (heads[1], heads[-1], heads[1]):
            assert (await types.of_bytes(head, "y")).mime_type == "image/png"
        assert looks == len(heads)
        await types.of_bytes(heads[0], "y")
        assert looks == len(heads) + 1


async def test_who_is_cancelled_gets_no_answer_although_it_is_known() -> None:
    async with media_types() as types:
        await types.of_bytes(PNG, "x")
        with trio.CancelScope() as scope:
            scope.cancel()
            await types.of_bytes(PNG, "x")
        assert scope.cancelled_caught


async def test_no_more_than_the_beginning_is_looked_at() -> None:
    async with media_types() as types:
        assert (await types.of_bytes(PNG.ljust(10 * HEAD_BYTES * HEAD_BYTES), "x")).mime_type == "image/png"


async def test_descriptor_is_looked_at_from_its_beginning_and_stays_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(PNG)
    fd = os.open(tmp_path / "x", os.O_RDONLY)
    try:
        os.lseek(fd, 5, os.SEEK_SET)
        async with media_types() as types:
            assert (await types.of_descriptor(fd, "x")).mime_type == "image/png"
        assert os.lseek(fd, 0, os.SEEK_CUR) == 5
    finally:
        os.close(fd)


async def test_what_cannot_be_read_is_said_of_its_path(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)  # pread says EISDIR, as it says EIO of a disk that fails
    try:
        async with media_types() as types:
            with pytest.raises(SourceUnreadable, match="directory") as caught:
                await types.of_descriptor(fd, "/some/folder")
    finally:
        os.close(fd)
    assert caught.value.path == "/some/folder"


async def test_empty_file_has_only_its_name() -> None:
    async with media_types() as types:
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
    async with media_types("no_such_magic") as types:
        assert await types.of_bytes(PNG, name) == MediaType(mime_type=mime_type, found_by="name")
