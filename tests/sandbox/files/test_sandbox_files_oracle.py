"""Any sequence of file operations, against what a dictionary says should have come of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.files.errors import NotFound
from sandbox.files.files import Files
from tests.support.door import Door, open_door

NAMES = st.sampled_from(["a", "b", "link to a", "dangling", "caf\udce9 \n"])
DATA = st.binary(max_size=50)
CHUNKS = st.lists(st.tuples(st.integers(0, 20), DATA), max_size=4)


@attrs.frozen
class Overwrite:
    name: str
    data: bytes


@attrs.frozen
class Append:
    name: str
    data: bytes


@attrs.frozen
class Upload:
    name: str
    chunks: list[tuple[int, bytes]]
    committed: bool


@attrs.frozen
class Remove:
    name: str


STEPS = st.one_of(
    st.builds(Overwrite, NAMES, DATA),
    st.builds(Append, NAMES, DATA),
    st.builds(Upload, NAMES, CHUNKS, st.booleans()),
    st.builds(Remove, NAMES),
)
LINKS = {"link to a": "a", "dangling": "beyond"}


def expected(model: dict[str, bytes], step: Overwrite | Append | Upload | Remove) -> None:
    name = LINKS.get(step.name, step.name)
    match step:
        case Overwrite(_, data):
            model[name] = data
        case Append(_, data):
            model[name] = model.get(name, b"") + data
        case Upload(_, chunks, committed):
            content = bytearray()
            for offset, data in chunks:
                if data:
                    content.extend(bytes(max(0, offset - len(content))))
                content[offset : offset + len(data)] = data
            if committed:
                model[name] = bytes(content)
        case Remove():
            model.pop(name, None)


async def perform(files: Files, folder: Path, step: Overwrite | Append | Upload | Remove) -> None:
    if isinstance(step, Remove):
        (folder / LINKS.get(step.name, step.name)).unlink(missing_ok=True)
        return
    with await files.place(f"{folder}/{step.name}") as place:
        match step:
            case Overwrite(_, data):
                await files.overwrite(place, data)
            case Append(_, data):
                await files.append(place, data)
            case Upload(_, chunks, committed):
                async with await files.part(place) as part:
                    for offset, data in chunks:
                        await part.write(offset, data)
                    if committed:
                        await part.commit()


async def check(door: Door, folder: Path, model: dict[str, bytes]) -> None:
    for name in ("a", "b", "beyond", "caf\udce9 \n"):
        try:
            with await door.files.resolve(f"{folder}/{name}", read=True) as found:
                assert await door.files.read(found, 0, 10_000) == model[name]
                assert found.facts.size_bytes == len(model[name])
        except NotFound:
            assert name not in model
    with await door.files.resolve(str(folder), read=True) as found:
        listing = await door.files.list_directory(found, limit=100, include_hidden=True)
    assert {entry.name for entry in listing.entries} == {*model, *LINKS}


@pytest.mark.long
@pytest.mark.once
def test_files_are_what_was_written() -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(steps=st.lists(STEPS, max_size=12), tmpfile=st.booleans())
    def run(steps: list[Overwrite | Append | Upload | Remove], *, tmpfile: bool) -> None:
        async def story() -> None:
            with tempfile.TemporaryDirectory() as name, trio.fail_after(20):
                folder, model = Path(name), {}
                for link, target in LINKS.items():
                    (folder / link).symlink_to(target)
                async with open_door(tmpfile=tmpfile) as door:
                    for step in steps:
                        await perform(door.files, folder, step)
                        expected(model, step)
                    await check(door, folder, model)
                assert {os.fsdecode(p.name) for p in folder.iterdir()} == {*model, *LINKS}

        trio.run(story)

    run()
