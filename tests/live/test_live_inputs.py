"""Wrong types, huge values, odd bytes: each gets an answer that says what is wrong, and the broker goes on."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from tests.support.live import ERAS, LiveBroker, call, connect, new_session, ok, run, running_broker

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")  # the legacy client's, not ours

MIB = 1024 * 1024

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("execute_command", {"argv": "ls -l"}, "argv"),
    ("execute_command", {"argv": []}, "argv"),
    ("execute_command", {"argv": [1]}, "argv"),
    ("execute_command", {"argv": ["ls"] * 1001}, "argv"),
    ("execute_command", {"argv": ["echo", "x" * 131_072]}, "argv"),
    ("execute_command", {"argv": ["ls"], "timeout_seconds": "30"}, "timeout_seconds"),
    ("execute_command", {"argv": ["ls"], "timeout_seconds": 0}, "timeout_seconds"),
    ("execute_command", {"argv": ["ls"], "timeout_seconds": -1}, "timeout_seconds"),
    ("execute_command", {"argv": ["ls"], "timeout_seconds": True}, "timeout_seconds"),
    ("execute_command", {"argv": ["ls"], "confirm": "yes"}, "confirm"),
    ("execute_command", {"argv": ["ls"], "confirn": True}, "confirm"),
    ("execute_command", {}, "argv"),
    ("read_file", {"path": 5}, "path"),
    ("read_file", {"path": ""}, "path"),
    ("read_file", {"path": "x", "offset": -1}, "offset"),
    ("read_file", {"path": "x", "limit": 0}, "limit"),
    ("read_file", {"path": "x", "limit": 1.5}, "limit"),
    ("read_file", {"path": "x" * 5000}, "path"),
    ("write_file", {"path": "x", "content": "y", "mode": "replace"}, "mode"),
    ("write_file", {"path": "x", "content": None}, "content"),
    ("upload_file", {"path": "x", "chunk_data": "not base64!"}, "chunk_data"),
    ("upload_file", {"path": "x", "chunk_data": "eA"}, "chunk_data"),
    ("upload_file", {"path": "x", "chunk_data": "eA==", "chunk_offset": "0"}, "chunk_offset"),
    ("download_file", {"path": "x", "chunk_size": 0}, "chunk_size"),
    ("download_file", {"path": "x", "chunk_size": -1}, "chunk_size"),
    ("kill_process", {"pid": "1"}, "pid"),
    ("kill_process", {"pid": 0}, "pid"),
    ("kill_process", {"pid": -1}, "pid"),
    ("kill_process", {"pid": 2, "signal": 999}, "signal"),
]


@pytest.fixture(scope="module")
def broker() -> Iterator[LiveBroker]:
    with running_broker() as running:
        yield running


@pytest.mark.parametrize(("tool", "arguments", "named"), WRONG, ids=lambda value: str(value)[:40])
async def test_a_wrong_argument_is_named(broker: LiveBroker, tool: str, arguments: dict[str, Any], named: str) -> None:
    async with connect(broker) as client:
        session_id = await new_session(client)
        answer = await call(client, tool, session_id=session_id, **arguments)
        assert answer.error == ("ARG_001", "INVALID_ARGUMENTS"), answer.data
        assert named in answer["error_message"]
        await ok(client, "kill_session", session_id=session_id)


@pytest.mark.parametrize("era", ERAS)
async def test_every_fault_is_reported_at_once(broker: LiveBroker, era: str) -> None:
    async with connect(broker, era) as client:
        answer = await call(client, "execute_command", session_id=5, argv="ls", timeout_seconds="x", colour="red")
        assert answer.error[0] == "ARG_001"
        for named in ("session_id", "argv", "timeout_seconds", "colour"):
            assert named in answer["error_message"], answer.data


async def test_a_body_too_large_is_refused_before_it_is_sent(broker: LiveBroker) -> None:
    async with await trio.open_tcp_stream(broker.host, broker.port) as stream:
        head = f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: {21 * MIB}\r\n\r\n"
        await stream.send_all(head.encode() + b"x")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 413")
    assert broker.healthy()


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"jsonrpc":"2.0"}', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 5000, b"1e999"]
)
def test_a_body_that_is_no_message_is_refused(broker: LiveBroker, body: bytes) -> None:
    headers = {"Content_Type": "application/json", "Accept": "application/json, text/event-stream"}
    for more in ({}, {"MCP_Protocol_Version": "2026-07-28"}):
        status, _answer = broker.request("POST", "/mcp", body, **headers, **more)
        assert 400 <= status < 500
    assert broker.healthy()


async def test_output_that_is_no_text_arrives_as_text(broker: LiveBroker) -> None:
    (broker.workspace / "odd").write_bytes(b"\xff\x00\xed\xa0\x80end\x1b[31m\xe2\x80\xae")
    async with connect(broker) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        shown = await run(client, session_id, "cat", "odd")
        assert "end" in shown["stdout"]
        json.dumps(shown.data, ensure_ascii=False).encode()
        binary = await ok(client, "read_file", session_id=session_id, path="odd")
        assert binary["is_binary"] is True
        assert base64.b64decode(binary["content"]) == (broker.workspace / "odd").read_bytes()


async def test_names_that_are_no_text_are_listed(broker: LiveBroker) -> None:
    folder = broker.workspace / "names"
    folder.mkdir()
    for name in (b"caf\xe9", b"new\nline", b"-rf", "žluť".encode()):
        (folder / os.fsdecode(name)).touch()
    async with connect(broker) as client:
        session_id = await new_session(client)
        listed = await ok(client, "list_directory", session_id=session_id, path=str(folder))
        assert {each["name"] for each in listed["entries"]} == {"caf\\xe9", "new\nline", "-rf", "žluť"}


async def test_a_large_input_and_a_large_output_pass(broker: LiveBroker) -> None:
    text = "0123456789abcdef" * 65_536  # 1 MiB, which one page carries whole
    async with connect(broker) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        echoed = await run(client, session_id, "cat", stdin_input=text)
        assert (echoed["stdout_omitted_bytes"], echoed["stdout_truncated"]) == (len(text) - 16_384, True)
        named = {"session_id": session_id, "command_id": echoed["command_id"]}
        assert (await ok(client, "read_output", max_bytes=len(text), **named))["data"] == text
        await ok(client, "write_file", session_id=session_id, path="large", content=text)
        read = await ok(client, "read_file", session_id=session_id, path="large")
        assert read["content"] == text


async def test_a_range_never_splits_a_character(broker: LiveBroker) -> None:
    text = "aé€😀" * 50
    (broker.workspace / "chars").write_text(text, encoding="utf-8")
    async with connect(broker) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        collected = ""
        offset: int | None = 0
        while offset is not None:
            part = await ok(client, "read_file", session_id=session_id, path="chars", offset=offset, limit=7)
            assert part["is_binary"] is False
            collected, offset = collected + part["content"], part["next_offset"]
        assert collected == text


async def test_argv_with_newlines_and_unicode_arrives_unchanged(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        session_id = await new_session(client)
        for word in ("a\nb", "\t", "ž\u202e😀", "", "--", "a" * 16_000):
            assert (await run(client, session_id, "echo", word, ""))["stdout"] == f"{word} \n"
        long = await run(client, session_id, "echo", "a" * 131_000, "")
        page = await ok(client, "read_output", session_id=session_id, command_id=long["command_id"], max_bytes=200_000)
        assert page["data"] == "a" * 131_000 + " \n"


async def test_device_files_fifos_and_sockets_are_refused_at_once(broker: LiveBroker) -> None:
    fifo = broker.workspace / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    async with connect(broker) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        for tool, more in (
            ("read_file", {}),
            ("download_file", {}),
            ("write_file", {"content": "x", "mode": "append"}),
        ):
            assert (await call(client, tool, session_id=session_id, path="fifo", **more)).is_error, tool
