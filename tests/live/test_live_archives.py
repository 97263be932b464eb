"""Directories over a URL, the whole way: curl, tar, HTTP, the door, a worker inside the walls."""

from __future__ import annotations

import gzip
import http.client
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.sandbox.inside.worker.test_archive_hostile import HOSTILE
from tests.support.archiving import Tree, extract_all, plant, tree_of
from tests.support.live import (
    LiveBroker,
    broker_in,
    call,
    connect,
    live_folder,
    new_session,
    ok,
    running_broker,
    write_config,
)
from tests.support.live_plain_user import plain_user
from tests.support.live_urls import Desk, ask, at_desk, digest, needs_curl, put_head, put_some, shell
from tests.support.tarbytes import END, archive_of, header

pytestmark = [
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),
    pytest.mark.long,
    pytest.mark.once,
]  # the legacy client's, not ours
MIB = 1024 * 1024
ODD_NAME = 'it\'s a $(rm -rf x) "dir" [1-3] {a,b} é'
TREE: Tree = {"d": {"f": b"x" * 3000, "e": {}}, "ü" * 60: b"y", "large": bytes(range(256)) * 4096}


@pytest.fixture(scope="module")
def broker() -> Iterator[LiveBroker]:
    with running_broker({"transfers": {"idle_s": 30}}) as running:
        yield running


@needs_curl
@pytest.mark.parametrize("archive", ["tar", "tar.gz"])
@pytest.mark.parametrize("name", ["plain", ODD_NAME, "-o"])
async def test_the_curl_lines_work_when_they_are_pasted(
    broker: LiveBroker, tmp_path: Path, name: str, archive: str
) -> None:
    plant(tmp_path / name, TREE)
    async with at_desk(broker) as desk:
        up = await desk.open("upload", name, archive=archive)
        status, said = await shell(up["curl"], tmp_path)
        assert status == 0, said
        assert tree_of(broker.workspace / name) == TREE
        seen = await desk.stat(up)
        assert (seen["state"], seen["archive_entries"], seen["left_out_count"]) == ("complete", 5, 0)
        (broker.workspace / name / "link").symlink_to("/etc")
        down = await desk.open("download", name, archive=archive)
        assert down["size_bytes"] is None
        status, said = await shell(down["curl"], tmp_path)
        assert status == 0, said
        data = (tmp_path / f"{name}.{archive}").read_bytes()
        seen = await desk.stat(down)
        assert (seen["state"], seen["sha256"], seen["bytes_done"]) == ("complete", digest(data), len(data))
        assert seen["left_out"] == [{"path": "link", "reason": "it is a symlink"}]
        with tarfile.open(fileobj=io.BytesIO(data)) as opened:
            extract_all(opened, tmp_path / "out")
        assert tree_of(tmp_path / "out") == TREE


async def test_an_archive_that_is_refused_is_told_why_and_may_be_sent_again(broker: LiveBroker) -> None:
    good = archive_of(TREE)
    async with at_desk(broker) as desk:
        up = await desk.open("upload", "new", archive="tar")
        for data, status, code, why in (
            (header(b"l", b"2", linkname=b"/etc") + END, 400, "INVALID_ARGUMENTS", "'l' is a symbolic link"),
            (header(b"../f") + END, 400, "INVALID_ARGUMENTS", "leads out"),
            (good[:-5120].rstrip(b"\0")[:4096], 400, "INVALID_ARGUMENTS", "missing"),
            (gzip.compress(good), 400, "INVALID_ARGUMENTS", "tar.gz"),
            (archive_of({"a": b"x", ".ssh": {}}), 403, "POLICY_PATH_VIOLATION", "'.ssh'"),
            (header(b"f", size=b"\x80" + (1 << 50).to_bytes(11, "big")) + END, 413, "FILE_TOO_LARGE", "max_write_size"),
            (b"", 400, "INVALID_ARGUMENTS", "missing"),
        ):
            said = await ask("PUT", up["url"], data)
            assert (said.status, said.code) == (status, code), why
            assert why in said.json["error_message"]
            assert not os.listdir(broker.workspace)
            seen = await desk.stat(up)
            assert (seen["state"], seen["bytes_done"]) == ("open", 0)
            assert why in seen["error"]
        said = await ask("PUT", up["url"], good)
        assert (said.status, said.json["sha256"]) == (200, digest(good))
        assert tree_of(broker.workspace) == {"new": TREE}
        assert (await ask("PUT", up["url"], good)).status == 410


@pytest.mark.parametrize("name", ["absolute", "parent in the middle", "symbolic link", "hard link", "FIFO"])
async def test_hostile_archives_leave_nothing(broker: LiveBroker, name: str) -> None:
    data, _ = HOSTILE[name]
    async with at_desk(broker) as desk:
        up = await desk.open("upload", "new", archive="tar")
        assert (await ask("PUT", up["url"], header(b"before") + data + END)).status == 400
        assert not os.listdir(broker.workspace)


@needs_curl
async def test_curl_hears_of_a_refusal_in_the_middle_of_a_large_body(broker: LiveBroker, tmp_path: Path) -> None:
    plant(tmp_path / "d", {"z": bytes(8 * MIB)})
    (tmp_path / "d/link").symlink_to("/etc")
    async with at_desk(broker) as desk:
        up = await desk.open("upload", "d", archive="tar")
        status, said = await shell(up["curl"], tmp_path)
        assert status == 22
        assert b"'./link' is a symbolic link" in said
        assert not os.listdir(broker.workspace)


async def test_an_upload_that_was_cut_goes_on_where_it_was(broker: LiveBroker) -> None:
    data = archive_of(TREE)
    async with at_desk(broker) as desk:
        up = await desk.open("upload", "new", archive="tar", size_bytes=len(data), sha256=digest(data))
        for start, stop in ((0, 1000), (1000, 700_000)):
            await put_some(
                up["url"], data[start:stop], len(data) - start, content_range=_range(start, len(data), len(data))
            )
            await desk.until_cut_at(up, stop)
            assert not [name for name in os.listdir(broker.workspace) if not name.startswith(".remote-broker")]
        said = await ask("PUT", up["url"], data[700_000:], content_range=_range(700_000, len(data), len(data)))
        assert (said.status, said.json["sha256"]) == (200, digest(data))
        assert tree_of(broker.workspace) == {"new": TREE}


def _range(start: int, stop: int, total: int) -> str:
    return f"bytes {start}-{stop - 1}/{total}"


async def test_what_is_not_as_declared_never_gets_its_name(broker: LiveBroker) -> None:
    data = archive_of(TREE)
    async with at_desk(broker) as desk:
        up = await desk.open("upload", "new", archive="tar", sha256="0" * 64)
        said = await ask("PUT", up["url"], data)
        assert (said.status, said.code) == (422, "TRANSFER_MISMATCH")
        assert (await desk.stat(up))["state"] == "failed"
        up = await desk.open("upload", "new", archive="tar", size_bytes=len(data) + 1)
        assert (await ask("PUT", up["url"], data)).status == 422
        assert (await desk.stat(up))["next_offset"] in {0, len(data)}
        await ok(desk.client, "cancel_transfer", session_id=desk.session_id, transfer_id=up["transfer_id"])
        assert not os.listdir(broker.workspace)


async def test_the_policy_decides_when_a_transfer_is_opened(broker: LiveBroker) -> None:
    async with at_desk(broker) as desk:
        plant(broker.workspace, {"full": {"f": b""}, "file": b"", ".ssh": {"key": b""}})
        for direction, path, code in (
            ("download", "/etc", "POLICY_002"),
            ("download", ".ssh", "POLICY_002"),
            ("download", "file", "FILE_002"),
            ("download", "missing", "FILE_001"),
            ("upload", "/etc/new", "POLICY_002"),
            ("upload", ".ssh/new", "POLICY_002"),
            ("upload", "file", "FILE_006"),
            ("upload", ".", "POLICY_002"),
            ("upload", "missing/new", "FILE_001"),
        ):
            answer = await call(
                desk.client,
                "open_transfer",
                session_id=desk.session_id,
                direction=direction,
                path=path,
                archive="tar",
            )
            assert answer.error[0] == code, (direction, path)
        up = await desk.open("upload", "full", archive="tar")
        assert (await ask("PUT", up["url"], archive_of({"g": b""}))).code == "FILE_ACCESS_DENIED"
        assert tree_of(broker.workspace / "full") == {"f": b""}


async def test_a_file_that_changes_underneath_breaks_the_connection(broker: LiveBroker) -> None:
    async with at_desk(broker) as desk:
        plant(broker.workspace, {"d": {"a": b"x", "large": b"x"}})
        os.truncate(broker.workspace / "d/large", 64 * MIB)
        down = await desk.open("download", "d", archive="tar")
        connection, path = _connection(down["url"])
        connection.request("GET", path)
        answer = await trio.to_thread.run_sync(connection.getresponse)
        assert answer.status == 200
        assert len(await trio.to_thread.run_sync(answer.read, 1000)) == 1000
        with (broker.workspace / "d/large").open("ab") as file:
            file.write(b"more")
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            await trio.to_thread.run_sync(answer.read)
        answer.close()
        connection.close()
        seen = await desk.until(down, "failed")
        assert "changed" in seen["error"]


def _connection(url: str) -> tuple[http.client.HTTPConnection, str]:
    host, _, path = url.removeprefix("http://").partition("/")
    return http.client.HTTPConnection(host), f"/{path}"


async def test_a_killed_session_ends_archives_both_ways_and_leaves_nothing(broker: LiveBroker) -> None:
    data = archive_of(TREE)
    async with at_desk(broker) as desk:
        plant(broker.workspace, {"d": {"large": b"x"}})
        os.truncate(broker.workspace / "d/large", 64 * MIB)
        up = await desk.open("upload", "new", archive="tar")
        down = await desk.open("download", "d", archive="tar")
        connection, path = _connection(down["url"])
        connection.request("GET", path)
        answer = await trio.to_thread.run_sync(connection.getresponse)
        sending, up_path = _connection(up["url"])
        await trio.to_thread.run_sync(sending.connect)
        sending.sock.sendall(put_head(up["url"], len(data)) + data[:700_000])
        assert up_path
        await desk.until(up, "active")
        await ok(desk.client, "kill_session", session_id=desk.session_id, force=True)
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            await trio.to_thread.run_sync(answer.read)
        told = http.client.HTTPResponse(sending.sock)
        await trio.to_thread.run_sync(told.begin)
        assert told.status == 410
        told.close()
        answer.close()
        connection.close()
        sending.close()
        assert sorted(os.listdir(broker.workspace)) == ["d"]


@pytest.mark.long
async def test_a_plain_users_broker_moves_directories_as_well() -> None:
    with live_folder() as base:
        write_config(base)
        plain = plain_user(base)
        with broker_in(base, python=plain.python, environment=plain.environment) as broker:
            async with connect(broker) as client:
                mine = await new_session(client, working_dir=str(broker.workspace))
                desk = Desk(broker=broker, client=client, session_id=mine)
                up = await desk.open("upload", "new", archive="tar")
                assert (await ask("PUT", up["url"], archive_of(TREE))).status == 200
                down = await ask("GET", (await desk.open("download", "new", archive="tar"))["url"])
        with tarfile.open(fileobj=io.BytesIO(down.body)) as opened:
            assert len(opened.getnames()) == 5
