"""Transfers over a URL, by a running broker and real clients: whole, cut, resumed, refused, killed."""

from __future__ import annotations

import base64
import http.client
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from broker.calls import Call
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
from tests.support.live_urls import Desk, ask, at_desk, chance, dial, digest, needs_curl, put_head, put_some, shell
from tests.support.whole import open_whole

pytestmark = [
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),
    pytest.mark.long,
    pytest.mark.once,
]  # the legacy client's, not ours

MIB = 1024 * 1024
ODD_NAME = 'it\'s a $(rm -rf x) "name" [1-3] {a,b} é.bin'


@pytest.fixture(scope="module")
def broker() -> Iterator[LiveBroker]:
    with running_broker({"transfers": {"idle_s": 30}}) as running:
        yield running


@needs_curl
@pytest.mark.parametrize("name", ["plain.bin", ODD_NAME, "-o"])
async def test_the_curl_lines_work_when_they_are_pasted(broker: LiveBroker, tmp_path: Path, name: str) -> None:
    data = chance(1).randbytes(3 * MIB + 17)
    (tmp_path / name).write_bytes(data)
    async with at_desk(broker) as desk:
        up = await desk.open("upload", name, size_bytes=len(data), sha256=digest(data))
        assert (up["method"], up["size_bytes"]) == ("PUT", len(data))
        status, told = await shell(up["curl"], tmp_path)
        assert status == 0, told
        assert (broker.workspace / name).read_bytes() == data
        after = await desk.stat(up)
        assert (after["state"], after["sha256"], after["bytes_done"]) == ("complete", digest(data), len(data))
        (tmp_path / name).unlink()
        down = await desk.open("download", name)
        assert (down["method"], down["size_bytes"]) == ("GET", len(data))
        assert await shell(down["curl"], tmp_path) == (0, b"")
        assert (tmp_path / name).read_bytes() == data
        after = await desk.until(down, "complete")
        assert (after["sha256"], after["bytes_done"]) == (digest(data), len(data))


@pytest.mark.parametrize("size_bytes", [0, 1, MIB, MIB + 1, 4 * MIB])
async def test_every_size_goes_up_and_down_whole(broker: LiveBroker, size_bytes: int) -> None:
    data = chance(size_bytes).randbytes(size_bytes)
    async with at_desk(broker) as desk:
        up = await desk.open("upload", "f")
        said = await ask("PUT", up["url"], data)
        assert (said.status, said.json["sha256"], said.json["state"]) == (200, digest(data), "complete")
        down = await desk.open("download", "f")
        said = await ask("GET", down["url"])
        assert (said.status, said.body, said.is_cut) == (200, data, False)
        assert said.headers["x-content-type-options"] == "nosniff"
        assert said.headers["content-disposition"].startswith("attachment; ")
        assert (await desk.until(down, "complete"))["sha256"] == digest(data)


@pytest.mark.parametrize("seed", range(4))
async def test_an_upload_that_was_cut_anywhere_goes_on_where_it_was(broker: LiveBroker, seed: int) -> None:
    by_chance = chance(seed)
    data = by_chance.randbytes(3 * MIB)
    async with at_desk(broker) as desk:
        up = await desk.open("upload", "f", sha256=digest(data))
        offset = 0
        for _cut in range(3):
            upto = by_chance.randint(offset + 1, len(data) - 1)
            rest = {"Content_Range": f"bytes {offset}-{len(data) - 1}/{len(data)}"}
            await put_some(up["url"], data[offset:upto], len(data) - offset, **rest)
            await desk.until_cut_at(up, upto)
            told = await ask("HEAD", up["url"])
            assert (told.status, told.headers["upload-complete"]) == (200, "?0")
            offset = int(told.headers["upload-offset"])
            assert offset == upto
        assert not (broker.workspace / "f").exists()
        said = await ask("PATCH", up["url"], data[offset:], Upload_Offset=str(offset), Upload_Complete="?1")
        assert (said.status, said.json["sha256"]) == (200, digest(data))
        assert (broker.workspace / "f").read_bytes() == data
        told = await ask("HEAD", up["url"])  # for a client whose last answer was lost
        assert (told.headers["upload-complete"], told.headers["upload-offset"]) == ("?1", str(len(data)))


async def test_a_wrong_offset_is_told_the_right_one_and_changes_nothing(broker: LiveBroker) -> None:
    async with at_desk(broker) as desk:
        up = await desk.open("upload", "f", size_bytes=10)
        first = await ask("PATCH", up["url"], b"01234", Upload_Offset="0")
        assert (first.status, first.headers["upload-offset"], first.json["state"]) == (202, "5", "open")
        for offset in (0, 4, 6, 10**17):
            wrong = await ask("PATCH", up["url"], b"xxxxx", Upload_Offset=str(offset))
            assert (wrong.status, wrong.code, wrong.headers["upload-offset"]) == (409, "TRANSFER_OFFSET_MISMATCH", "5")
        fresh = await ask("PUT", up["url"], b"0123456789")  # begins at 0, where bytes are already
        assert (fresh.status, fresh.code) == (409, "TRANSFER_OFFSET_MISMATCH")
        last = await ask("PUT", up["url"], b"56789", Content_Range="bytes 5-9/10")
        assert (last.status, last.json["sha256"]) == (200, digest(b"0123456789"))


@needs_curl
async def test_curl_resumes_an_upload_and_a_download_itself(broker: LiveBroker, tmp_path: Path) -> None:
    data = chance(5).randbytes(2 * MIB)
    (tmp_path / "f").write_bytes(data)
    async with at_desk(broker) as desk:
        up = await desk.open("upload", "f")
        await put_some(up["url"], data[:700_000], len(data))
        await desk.until_cut_at(up, 700_000)
        status, told = await shell(f"curl -sS --fail-with-body -C 700000 -T f '{up['url']}'", tmp_path)
        assert status == 0, told
        assert (broker.workspace / "f").read_bytes() == data
        down = await desk.open("download", "f")
        (tmp_path / "f").write_bytes(data[:1_000_001])
        assert (await shell(f"curl -sS -f -C - -o f '{down['url']}'", tmp_path))[0] == 0
        assert (tmp_path / "f").read_bytes() == data
        assert (await desk.until(down, "open", "complete"))["state"] == "open"  # its beginning was never sent


@needs_curl
async def test_a_stream_of_unknown_size_goes_up(broker: LiveBroker, tmp_path: Path) -> None:
    async with at_desk(broker) as desk:
        up = await desk.open("upload", "f")
        status, told = await shell(
            f"head -c 1500000 /dev/zero | curl -sS --fail-with-body -T - '{up['url']}'", tmp_path
        )
        assert status == 0, told
        assert (broker.workspace / "f").read_bytes() == bytes(1_500_000)


async def test_a_download_that_was_cut_goes_on_with_a_range(broker: LiveBroker) -> None:
    data = chance(2).randbytes(40 * MIB)  # more than the sockets between us hold
    (broker.workspace / "f").write_bytes(data)
    async with at_desk(broker) as desk:
        down = await desk.open("download", "f")
        with dial(down["url"]) as line:
            line.sendall(
                f"GET {down['url'][down['url'].index('/transfers') :]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            )
            await trio.to_thread.run_sync(lambda: line.recv(100_000))
        await desk.until(down, "open")
        tag = (await ask("HEAD", down["url"])).headers["etag"]
        first = await ask("GET", down["url"], Range="bytes=0-999999", If_Range=tag)
        assert (first.status, first.body) == (206, data[:1_000_000])
        assert first.headers["content-range"] == f"bytes 0-999999/{len(data)}"
        rest = await ask("GET", down["url"], Range="bytes=1000000-", If_Range=tag)
        assert first.body + rest.body == data
        after = await desk.until(down, "complete")
        assert (after["sha256"], after["bytes_done"]) == (digest(data), len(data))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=5-", slice(5, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=3-99999", slice(3, None)),
        ("bytes=-99999", slice(0, None)),
        ("bytes=9-3", None),
        ("bytes=0-1,4-5", None),
        ("bytes=-", None),
        ("lines=1-2", None),
        ("bytes=1000-", 416),
        ("bytes=-0", 416),
    ],
)
async def test_a_range_gives_what_a_slice_gives(broker: LiveBroker, asked: str, expected: slice | int | None) -> None:
    data = bytes(range(250)) * 4
    (broker.workspace / "f").write_bytes(data)
    async with at_desk(broker) as desk:
        down = await desk.open("download", "f")
        other = await ask("GET", down["url"], Range="bytes=0-0", If_Range='"another"')
        assert (other.status, other.body) == (200, data)  # it was complete with this
        down = await desk.open("download", "f")
        said = await ask("GET", down["url"], Range=asked)
        if isinstance(expected, slice):
            assert (said.status, said.body) == (206, data[expected])
            assert said.headers["content-length"] == str(len(said.body))
        elif expected is None:
            assert (said.status, said.body) == (200, data)
        else:
            assert (said.status, said.headers["content-range"]) == (416, f"bytes */{len(data)}")


async def test_a_url_is_for_one_transfer(broker: LiveBroker) -> None:
    (broker.workspace / "f").write_bytes(b"content")
    async with at_desk(broker) as desk:
        down, up = await desk.open("download", "f"), await desk.open("upload", "g")
        for opened, method, body in ((down, "GET", None), (up, "PUT", b"new")):
            assert (await ask(method, opened["url"], body)).status == 200
            await desk.until(opened, "complete")
            again = await ask(method, opened["url"], body)
            assert (again.status, again.code) == (410, "TRANSFER_OVER")
        assert (await ask("HEAD", down["url"])).status == 410
        assert (broker.workspace / "g").read_bytes() == b"new"


async def test_a_token_that_is_none_is_told_nothing(broker: LiveBroker) -> None:
    (broker.workspace / "f").write_bytes(b"content")
    async with at_desk(broker) as desk:
        down = await desk.open("download", "f")
        url, token = down["url"], down["url"].rpartition("/")[2]
        assert len(base64.urlsafe_b64decode(token + "=")) == 32
        front = url.removesuffix(token)
        wrong = [token[:-1], token + "A", token.swapcase(), "", "x", f"{token}/", f"{token}%00", down["transfer_id"]]
        answers = {
            ((said := await ask(method, front + each)).status, said.body) for each in wrong for method in ("GET", "PUT")
        }
        assert len(answers) == 1
        assert next(iter(answers))[0] == 404
        mismatched = await ask("PUT", url, b"x")
        assert (mismatched.status, mismatched.headers["allow"]) == (405, "GET, HEAD")
        assert (await ask("GET", url)).body == b"content"
        ended = await desk.open("download", "f")
        await ok(desk.client, "kill_session", session_id=desk.session_id, force=True)
        gone = await ask("GET", ended["url"])
        assert (gone.status, gone.body) in answers


async def test_a_host_or_origin_that_is_not_allowed_gets_nothing(broker: LiveBroker) -> None:
    (broker.workspace / "f").write_bytes(b"content")
    async with at_desk(broker) as desk:
        down = await desk.open("download", "f")
        assert (await ask("GET", down["url"], Host="evil.example")).status == 421
        assert (await ask("GET", down["url"], Origin="https://evil.example")).status == 403
        assert (await ask("GET", down["url"])).body == b"content"


async def test_the_second_one_at_a_url_is_refused_while_the_first_is_at_work(broker: LiveBroker) -> None:
    async with at_desk(broker) as desk:
        up = await desk.open("upload", "f")
        with dial(up["url"]) as first:
            first.sendall(put_head(up["url"], 6) + b"abc")
            await desk.until(up, "active")
            second = await ask("PUT", up["url"], b"other!")
            assert (second.status, second.code, second.json["retryable"]) == (409, "TRANSFER_BUSY", True)
            first.sendall(b"def")
            assert b"200" in await trio.to_thread.run_sync(lambda: first.recv(65536))
        assert (broker.workspace / "f").read_bytes() == b"abcdef"


async def test_a_killed_session_ends_an_upload_and_leaves_the_destination(broker: LiveBroker) -> None:
    (broker.workspace / "f").write_bytes(b"old")
    (broker.workspace / "f").chmod(0o666)
    async with at_desk(broker) as desk:
        up = await desk.open("upload", "f")
        with dial(up["url"]) as line:
            line.sendall(put_head(up["url"], 4 * MIB) + bytes(2 * MIB))
            await desk.until(up, "active")
            await ok(desk.client, "kill_session", session_id=desk.session_id, force=True)
            told = http.client.HTTPResponse(line)
            await trio.to_thread.run_sync(told.begin)
            assert told.status == 410
            assert b"SESSION_CLOSED" in told.read()
        assert (broker.workspace / "f").read_bytes() == b"old"
        assert desk.leftovers() == []
        assert (await ask("HEAD", up["url"])).status == 404


async def test_a_killed_session_breaks_a_download_that_nobody_reads(broker: LiveBroker) -> None:
    with (broker.workspace / "f").open("wb") as sparse:
        sparse.truncate(1 << 32)
    async with at_desk(broker) as desk:
        down = await desk.open("download", "f")
        path = down["url"][down["url"].index("/transfers") :]
        with dial(down["url"]) as line:
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await trio.to_thread.run_sync(lambda: line.recv(1000, socket.MSG_PEEK))
            with trio.fail_after(15):  # less than the seconds a client may stall
                await ok(desk.client, "kill_session", session_id=desk.session_id, force=True)
            with pytest.raises(ConnectionResetError):
                await trio.to_thread.run_sync(lambda: [None for _ in iter(lambda: line.recv(MIB), b"")])


async def test_what_is_not_as_declared_never_reaches_the_destination(broker: LiveBroker) -> None:
    (broker.workspace / "f").write_bytes(b"old")
    (broker.workspace / "f").chmod(0o666)
    async with at_desk(broker) as desk:
        up = await desk.open("upload", "f", sha256=digest(b"meant"))
        said = await ask("PUT", up["url"], b"other")
        assert (said.status, said.code) == (422, "TRANSFER_MISMATCH")
        after = await desk.stat(up)
        assert after["state"] == "failed"
        assert digest(b"other") in after["error"]
        assert (await ask("PUT", up["url"], b"meant")).status == 410

        up = await desk.open("upload", "f", size_bytes=5)
        for body in (b"123456", b"1234"):
            said = await ask("PUT", up["url"], body)
            assert (said.status, said.code) == (422, "TRANSFER_MISMATCH")
        finish = await call(desk.client, "finish_transfer", session_id=desk.session_id, transfer_id=up["transfer_id"])
        assert finish.error[1] == "TRANSFER_MISMATCH"
        assert (broker.workspace / "f").read_bytes() == b"old"
        assert (await ask("PUT", up["url"], b"5", Content_Range="bytes 4-4/5")).status == 200
        assert (broker.workspace / "f").read_bytes() == b"12345"
        assert desk.leftovers() == []


async def test_an_upload_in_parts_can_be_finished_by_a_tool(broker: LiveBroker) -> None:
    async with at_desk(broker) as desk:
        up = await desk.open("upload", "f")
        for offset in (0, 3):
            part = await ask("PUT", up["url"], b"abc", Content_Range=f"bytes {offset}-{offset + 2}/*")
            assert (part.status, part.json["bytes_received"]) == (202, offset + 3)
        for _once_more in range(2):
            done = await ok(desk.client, "finish_transfer", session_id=desk.session_id, transfer_id=up["transfer_id"])
            assert (done["state"], done["sha256"]) == ("complete", digest(b"abcabc"))
        assert (broker.workspace / "f").read_bytes() == b"abcabc"
        down = await desk.open("download", "f")
        finish = await call(desk.client, "finish_transfer", session_id=desk.session_id, transfer_id=down["transfer_id"])
        assert finish.error[1] == "INVALID_ARGUMENTS"


async def test_cancelling_ends_the_request_under_way(broker: LiveBroker) -> None:
    async with at_desk(broker) as desk:
        up = await desk.open("upload", "f")
        with dial(up["url"]) as line:
            line.sendall(put_head(up["url"], MIB) + b"some")
            await desk.until(up, "active")
            gone = await ok(desk.client, "cancel_transfer", session_id=desk.session_id, transfer_id=up["transfer_id"])
            assert gone["state"] == "cancelled"
            told = http.client.HTTPResponse(line)
            await trio.to_thread.run_sync(told.begin)
            assert (told.status, b"TRANSFER_OVER" in told.read()) == (410, True)
        assert not (broker.workspace / "f").exists()
        assert desk.leftovers() == []


async def test_the_policy_decides_when_a_transfer_is_opened(broker: LiveBroker) -> None:
    (broker.base / "outside" / "secret").write_bytes(b"secret")
    (broker.workspace / "link").symlink_to(broker.base / "outside" / "secret")
    (broker.workspace / ".env").write_bytes(b"secret")
    (broker.workspace / "fine").write_bytes(b"fine")
    refused = [
        ("download", "/etc/passwd"),
        ("download", ".env"),
        ("download", "link"),
        ("upload", "link"),
        ("upload", ".env"),
        ("upload", "program.exe"),
        ("upload", f"{broker.base}/outside/new"),
        ("upload", f"{broker.base}/log/audit.log"),
    ]
    async with at_desk(broker) as desk:
        for direction, path in refused:
            answer = await call(
                desk.client, "open_transfer", session_id=desk.session_id, direction=direction, path=path
            )
            assert answer.error[1] == "POLICY_PATH_VIOLATION", path
        missing = {"session_id": desk.session_id, "direction": "download", "path": "missing"}
        assert (await call(desk.client, "open_transfer", **missing)).error[1] == "FILE_NOT_FOUND"
        await desk.open("download", "fine")  # the control


async def test_what_takes_the_path_afterwards_changes_nothing(broker: LiveBroker) -> None:
    """The URL stands for what was decided on, not for a name."""
    outside, swapped = broker.base / "outside", broker.workspace / "f"
    (outside / "secret").write_bytes(b"secret")
    (outside / "secret").chmod(0o666)
    swapped.write_bytes(b"decided on")
    async with at_desk(broker) as desk:
        down, up = await desk.open("download", "f"), await desk.open("upload", "g")
        swapped.unlink()
        for name in ("f", "g"):
            (broker.workspace / name).symlink_to(outside / "secret")
        assert (await ask("GET", down["url"])).body == b"decided on"
        written = await ask("PUT", up["url"], b"uploaded")
        assert (outside / "secret").read_bytes() == b"secret"
        assert written.status != 200 or not (broker.workspace / "g").is_symlink()


async def test_a_file_that_changes_underneath_breaks_the_stream(broker: LiveBroker) -> None:
    changing = broker.workspace / "f"
    with changing.open("wb") as sparse:
        sparse.truncate(256 * MIB)
    async with at_desk(broker) as desk:
        down = await desk.open("download", "f")
        path = down["url"][down["url"].index("/transfers") :]
        with dial(down["url"]) as line:
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await trio.to_thread.run_sync(lambda: line.recv(1000, socket.MSG_PEEK))
            with changing.open("ab") as more:
                more.write(b"changed")
            with pytest.raises(ConnectionResetError):
                await trio.to_thread.run_sync(lambda: [None for _ in iter(lambda: line.recv(MIB), b"")])
        after = await desk.until(down, "failed")
        assert "changed while it was downloaded" in after["error"]
        assert (await ask("GET", down["url"])).status == 410
        fresh = await desk.open("download", "f")
        changing.write_bytes(b"short")
        said = await ask("GET", fresh["url"])  # nothing went out yet, so it can be said in words
        assert (said.status, said.code) == (409, "FILE_CHANGED")


async def test_what_is_said_twice_differently_is_refused(broker: LiveBroker) -> None:
    async with at_desk(broker) as desk:
        up = await desk.open("upload", "f")
        for headers in (
            {"Content_Range": "bytes 0-5/6", "Upload_Offset": "1"},
            {"Content_Range": "bytes 0-9/10"},
            {"Content_Range": "bytes 5-0/6"},
            {"Content_Range": "chars 0-5/6"},
            {"Upload_Offset": "-1"},
            {"Upload_Complete": "yes"},
        ):
            said = await ask("PUT", up["url"], b"abcdef", **headers)
            assert (said.status, said.code) == (400, "INVALID_ARGUMENTS"), headers
        assert (await ask("PATCH", up["url"], b"abcdef")).status == 400
        assert (await ask("PUT", up["url"], b"abcdef")).status == 200


def recorded(broker: LiveBroker, transfer_id: str) -> list[dict[str, Any]]:
    """What the audit says of a transfer, without the calls that asked about it."""
    found = [r for r in broker.audit() if r.get("details", {}).get("transfer_id") == transfer_id]
    return [r for r in found if not r["event_type"].startswith("TOOL_")]


async def test_a_token_stands_in_no_log_and_every_move_in_the_audit(broker: LiveBroker) -> None:
    (broker.workspace / "f").write_bytes(b"content")
    async with at_desk(broker) as desk:
        down, up = await desk.open("download", "f"), await desk.open("upload", "g")
        await ask("GET", down["url"])
        await ask("GET", down["url"][:-1])
        await ask("PUT", up["url"], b"new", Content_Range="bytes 7-9/10")
        await ask("PUT", up["url"], b"new")
        await desk.until(down, "complete")
        moved = recorded(broker, down["transfer_id"])
        assert [r["event_type"] for r in moved] == ["TRANSFER_OPENED", "TRANSFER_STARTED", "FILE_DOWNLOAD"]
        assert (moved[-1]["bytes"], moved[-1]["sha256"]) == (7, digest(b"content"))
        moved = recorded(broker, up["transfer_id"])
        refused_first = ["TRANSFER_OPENED", "FILE_FAILED", "TRANSFER_STARTED", "FILE_UPLOAD"]
        assert [r["event_type"] for r in moved] == refused_first
        assert (moved[-1]["bytes"], moved[-1]["sha256"]) == (3, digest(b"new"))
        assert [r["details"] for r in broker.audit() if r["event_type"] == "TRANSFER_REFUSED"][-1] == {"method": "GET"}
        everything = "\n".join(path.read_text() for path in (broker.base / "log").iterdir())
        everything += "\n".join(broker.printed.lines)
        for opened in (down, up):
            assert opened["url"].rpartition("/")[2][:-1] not in everything


async def test_a_broker_that_stops_tells_who_is_uploading() -> None:
    with running_broker() as broker:
        async with connect(broker) as client:
            mine = await new_session(client, working_dir=str(broker.workspace))
            desk = Desk(broker=broker, client=client, session_id=mine)
            up = await desk.open("upload", "f")
            with dial(up["url"]) as line:
                line.sendall(put_head(up["url"], MIB) + b"some")
                await desk.until(up, "active")
                broker.process.send_signal(signal.SIGTERM)
                told = http.client.HTTPResponse(line)
                await trio.to_thread.run_sync(told.begin)
                assert (told.status, b"SESSION_CLOSED" in told.read()) == (410, True)
        assert await trio.to_thread.run_sync(broker.wait_ended) == 0
        assert list(broker.workspace.iterdir()) == []


def resident_kb(pid: int, name: str) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


@needs_curl
@pytest.mark.soak
@pytest.mark.bounded(180)
async def test_two_gigabytes_pass_and_the_memory_does_not_know(tmp_path: Path) -> None:
    with running_broker(policy={"file_limits": {"max_write_size": 1 << 32}}) as broker:
        with (broker.workspace / "f").open("wb") as sparse:
            sparse.truncate(1 << 31)
        async with connect(broker) as client:
            desk = Desk(
                broker=broker, client=client, session_id=await new_session(client, working_dir=str(broker.workspace))
            )
            small = await desk.open("upload", "small")
            await ask("PUT", small["url"], bytes(4 * MIB))  # what libraries load on the way is loaded
            assert (await ask("GET", (await desk.open("download", "small"))["url"])).status == 200
            before_kb = resident_kb(broker.process.pid, "VmRSS")
            down, up = await desk.open("download", "f"), await desk.open("upload", "g")
            status, told = await shell(
                f"curl -sS -f '{down['url']}' | head -c {1 << 31} | tail -c +{(1 << 31) - 256 * MIB + 1} "
                f"| curl -sS --fail-with-body -T - '{up['url']}'",
                tmp_path,
            )
            assert status == 0, told
            assert (await desk.until(down, "complete"))["bytes_done"] == 1 << 31
            assert (await desk.until(up, "complete"))["bytes_done"] == 256 * MIB
            grown_kb = resident_kb(broker.process.pid, "VmHWM") - before_kb
        assert grown_kb < 40 * 1024


async def test_a_full_disk_is_told_and_leaves_the_file_as_it_was() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk that is small enough")
    with live_folder() as base:
        write_config(base, policy={"file_limits": {"min_free_bytes": 0}})
        mount = f'mount -t tmpfs -o size=1m,mode=777 none "{base}/ws" && exec "$@"'
        with broker_in(base, python=("unshare", "--mount", "--", "sh", "-c", mount, "sh", sys.executable)) as broker:
            async with connect(broker) as client:
                mine = await new_session(client, working_dir=str(broker.workspace))
                desk = Desk(broker=broker, client=client, session_id=mine)
                await ok(client, "write_file", session_id=mine, path="f", content="as it was")
                up = await desk.open("upload", "f")
                said = await ask("PUT", up["url"], bytes(3 * MIB))
                assert (said.status, said.json["error_code"]) == (507, "FILE_004")
                assert (await desk.stat(up))["state"] == "open"  # it may go on when there is room
                assert (await ok(client, "read_file", session_id=mine, path="f"))["content"] == "as it was"
                assert (await ok(client, "list_directory", session_id=mine, include_hidden=True))["total_count"] == 1
                await ok(client, "cancel_transfer", session_id=mine, transfer_id=up["transfer_id"])
                again = await desk.open("upload", "f")
                assert (await ask("PUT", again["url"], bytes(100_000))).status == 200


async def test_without_http_there_is_no_url(tmp_path: Path) -> None:
    async with open_whole(tmp_path) as whole:
        session_id = (await whole.ok("create_session", working_dir=str(whole.work)))["session_id"]
        arguments = {"session_id": session_id, "direction": "upload", "path": "f"}
        asked = Call(tool="open_transfer", arguments=arguments, principal="me", client="", request_id="1")
        answer = await whole.gateway.handle(asked)
        assert answer.structured["error_name"] == "TRANSFER_UNAVAILABLE"


async def test_a_plain_users_broker_transfers_as_well() -> None:
    with live_folder() as base:
        write_config(base)
        plain = plain_user(base)
        with broker_in(base, python=plain.python, environment=plain.environment) as broker:
            async with connect(broker) as client:
                mine = await new_session(client, working_dir=str(broker.workspace))
                desk = Desk(broker=broker, client=client, session_id=mine)
                assert (await ask("PUT", (await desk.open("upload", "f"))["url"], b"content")).status == 200
                assert (await ask("GET", (await desk.open("download", "f"))["url"])).body == b"content"
