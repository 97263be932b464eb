"""What large bodies and answers cost the broker: a bounded sum of memory, given back, and small calls go on."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.front import Raw, modern_call
from tests.support.live import LiveBroker, call, connect, new_session, ok, running_broker

pytestmark = [pytest.mark.long, pytest.mark.once]

MIB = 1024 * 1024
ROOM_BYTES = 32 * MIB
SERVER = {"max_bodies_bytes": ROOM_BYTES, "max_answers_bytes": ROOM_BYTES}
CHUNK_BYTES = 8 * MIB
MANY = 32
SLACK_BYTES = 64 * MIB
EMOJI = "\U0001f600"


@pytest.fixture
def broker() -> Iterator[LiveBroker]:
    with running_broker(SERVER) as running:
        yield running


def memory(broker: LiveBroker, field: str) -> int:
    status = Path(f"/proc/{broker.process.pid}/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) * 1024


def forget_peak(broker: LiveBroker) -> None:
    Path(f"/proc/{broker.process.pid}/clear_refs").write_text("5", encoding="ascii")


def resident(broker: LiveBroker) -> int:
    rollup = Path(f"/proc/{broker.process.pid}/smaps_rollup").read_text(encoding="ascii")
    return int(next(line for line in rollup.splitlines() if line.startswith("Rss")).split()[1]) * 1024


async def until_given_back(broker: LiveBroker, idle: int) -> None:
    """What stays is little; the broker gives back when it has been quiet for a moment."""
    while resident(broker) > idle + SLACK_BYTES // 2:
        await trio.sleep(0.1)


@asynccontextmanager
async def dialled(broker: LiveBroker) -> AsyncIterator[Raw]:
    async with await trio.open_tcp_stream(broker.host, broker.port) as stream:
        yield Raw(stream, f"{broker.host}:{broker.port}")


async def small_calls_until(broker: LiveBroker, done: trio.Event, session_id: str) -> int:
    """Read a small file again and again; each must be answered."""
    count = 0
    async with connect(broker) as client:
        while not done.is_set():
            await ok(client, "read_file", session_id=session_id, path="small")
            count += 1
    return count


@pytest.mark.bounded(150)
async def test_many_large_bodies_take_a_bounded_sum_and_give_it_back(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        await ok(client, "write_file", session_id=session_id, path="small", content="x")
    data = base64.b64encode(os.urandom(CHUNK_BYTES)).decode()
    bodies = [
        modern_call("write_file", {"session_id": session_id, "path": f"f{i % 4}", "content": data}) for i in range(2)
    ]
    idle, statuses, done, served = resident(broker), list[int](), trio.Event(), list[int]()
    forget_peak(broker)

    async def upload(index: int) -> None:
        body, headers = bodies[index % 2]
        async with dialled(broker) as conn:
            heard = await conn.ask("POST", "/mcp", body, **headers)
        statuses.append(heard.status)
        assert heard.status == 200 or int(heard.headers[b"retry-after"]) > 0

    async with trio.open_nursery() as around:

        async def small() -> None:
            served.append(await small_calls_until(broker, done, session_id))

        around.start_soon(small)
        async with trio.open_nursery() as nursery:
            for index in range(MANY):
                nursery.start_soon(upload, index)
        done.set()
    assert statuses.count(200) > MANY // 4
    assert set(statuses) <= {200, 503}
    assert served[0] > 0
    assert memory(broker, "VmHWM") - idle < 2 * ROOM_BYTES
    await until_given_back(broker, idle)


def hole_filled(tool: str, arguments: dict[str, Any], content: str, meta: dict[str, Any] | None = None) -> bytes:
    """A call whose argument "@@" is *content*, unescaped."""
    message = json.loads(modern_call(tool, arguments)[0])
    message["params"]["_meta"] |= meta or {}
    return json.dumps(message).replace('"@@"', f'"{content}"').encode()


ONE_EMOJI = "x" * CHUNK_BYTES + EMOJI
WRITE = {"path": "f", "content": "@@"}
RUN = {"argv": ["cat"], "stdin_input": "@@"}
HOSTILE: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "ASCII": ("write_file", WRITE, "x" * CHUNK_BYTES, {}),
    "one emoji": ("write_file", WRITE, ONE_EMOJI, {}),
    "all emoji": ("write_file", WRITE, EMOJI * (CHUNK_BYTES // 4), {}),
    "escaped emoji": ("write_file", WRITE, "\\ud83d\\ude00" * (CHUNK_BYTES // 12), {}),
    "escaped ASCII": ("write_file", WRITE, "\\u0041" * (CHUNK_BYTES // 6), {}),
    "one emoji beside small values": ("write_file", WRITE, ONE_EMOJI, {f"k{i}": i for i in range(20_000)}),
    "emoji beside small values": ("write_file", WRITE, ONE_EMOJI, {f"k{i}": EMOJI for i in range(9000)}),
    "no long string": ("execute_command", {"argv": ["echo", *["x" * 1000] * (CHUNK_BYTES // 1004), "@@"]}, EMOJI, {}),
    "much beside": ("execute_command", {"argv": ["echo", *["x" * 100_000] * 14, "@@"]}, EMOJI, {}),
    "small values": ("execute_command", {"argv": ["echo", *["x" * 90] * 9000, "@@"]}, EMOJI, {}),
    "two long strings": (
        "edit_file",
        {"path": "f", "old_text": "x" * (CHUNK_BYTES // 2), "new_text": "@@"},
        ONE_EMOJI,
        {},
    ),
    "an edit": ("edit_file", {"path": "small0", "old_text": "x", "new_text": "@@"}, ONE_EMOJI, {}),
    "an upload": ("upload_file", {"path": "u", "chunk_data": "@@"}, "QUJD" * (CHUNK_BYTES // 4), {}),
    "input of a command": ("execute_command", RUN, ONE_EMOJI, {}),
    "a path": ("read_file", {"path": "@@"}, ONE_EMOJI, {}),
}


SENT = 12


@pytest.mark.bounded(150)
@pytest.mark.parametrize(("kind", "chunked"), [*((kind, False) for kind in HOSTILE), ("one emoji", True)])
async def test_no_body_takes_more_than_twice_its_room(broker: LiveBroker, kind: str, *, chunked: bool) -> None:
    tool, arguments, content, meta = HOSTILE[kind]
    async with connect(broker) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        await ok(client, "write_file", session_id=session_id, path="small", content="x")
    for i in range(SENT):
        (broker.workspace / f"small{i}").write_text("x")
        (broker.workspace / f"small{i}").chmod(0o666)
    bare = hole_filled(tool, {"session_id": session_id, **arguments}, content, meta)
    headers = modern_call(tool, {})[1] | ({"transfer-encoding": "chunked"} if chunked else {})
    idle, statuses = resident(broker), list[int]()
    forget_peak(broker)

    async def send(index: int) -> None:
        body = bare.replace(b'"small0"', b'"small%d"' % index, 1)  # each its own: what an edit reads is not counted
        async with dialled(broker) as conn:
            if chunked:
                await conn.send_head("POST", "/mcp", headers)
                await conn.send_body(body)
                statuses.append((await conn.heard()).status)
            else:
                statuses.append((await conn.ask("POST", "/mcp", body, **headers)).status)

    async with trio.open_nursery() as nursery:
        for index in range(SENT):
            nursery.start_soon(send, index)
    assert set(statuses) <= ({400} if kind == "no long string" else {200, 503})
    assert memory(broker, "VmHWM") - idle < 2 * ROOM_BYTES
    await until_given_back(broker, idle)


@pytest.mark.bounded(150)
@pytest.mark.parametrize(
    ("tool", "content"),
    [
        ("download_file", b"x"),
        ("read_file", b"0123456789abcde\n"),
        ("read_file", EMOJI.encode()),
        ("read_file", b"\xff"),
    ],
    ids=["download", "text", "emoji", "binary"],
)
async def test_answers_that_nobody_reads_take_a_bounded_sum_and_keep_nobody_out(
    broker: LiveBroker, tool: str, content: bytes
) -> None:
    (broker.workspace / "large").write_bytes(content * (CHUNK_BYTES // len(content)))
    (broker.workspace / "small").write_bytes(b"x")
    for name in ("large", "small"):
        (broker.workspace / name).chmod(0o666)
    idle = 0
    async with connect(broker) as client, AsyncExitStack() as stack:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        await ok(client, "read_file", session_id=session_id, path="small")
        idle = resident(broker)
        forget_peak(broker)
        arguments: dict[str, Any] = {"session_id": session_id, "path": "large"}
        if tool == "download_file":
            arguments["chunk_size"] = CHUNK_BYTES
        body, headers = modern_call(tool, arguments)
        for _ in range(20):
            conn = await stack.enter_async_context(dialled(broker))
            await conn.send_head("POST", "/mcp", {**headers, "content-length": str(len(body))})
            await conn.send_body(body)
        # Somebody who reads gets an answer of the same kind, though all the room was taken by others.
        while (answer := await call(client, tool, **arguments)).is_error:
            assert answer.error == ("SYS_002", "SYSTEM_BUSY")
            assert answer["retryable"]
            await ok(client, "read_file", session_id=session_id, path="small")
        await ok(client, "read_file", session_id=session_id, path="small")
        assert memory(broker, "VmHWM") - idle < 2 * ROOM_BYTES


@pytest.mark.bounded(90)
async def test_input_that_a_command_has_not_read_is_counted_when_its_call_is_over(broker: LiveBroker) -> None:
    """Else commands in the background, which cost nothing else, hold as many bodies as there may be commands."""
    async with connect(broker) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        asked = {"session_id": session_id, "background": True, "stdin_input": "@@", "argv": ["sleep", "100"]}
        body, headers = hole_filled("execute_command", asked, "x" * (12 * MIB)), modern_call("execute_command", {})[1]
        heard = []
        for _ in range(3):
            async with dialled(broker) as conn:
                heard.append(await conn.ask("POST", "/mcp", body, **headers))
        assert [answer.status for answer in heard] == [200, 200, 503]
        command_id = json.loads(heard[0].body)["result"]["structuredContent"]["command_id"]
        await ok(client, "signal_command", session_id=session_id, command_id=command_id, signal="SIGKILL")
        async with dialled(broker) as conn:
            assert (await conn.ask("POST", "/mcp", body, **headers)).status == 200


@pytest.mark.bounded(60)
async def test_bodies_that_trickle_in_keep_no_others_out(broker: LiveBroker) -> None:
    """Two declare and send nearly all, and hold all the room: the slowest has to go."""
    async with connect(broker) as client, AsyncExitStack() as stack:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        slow = [await stack.enter_async_context(dialled(broker)) for _ in range(2)]
        for conn in slow:
            _, headers = modern_call("echo", {})
            await conn.send_head("POST", "/mcp", {**headers, "content-length": str(16 * MIB)})
            await conn.send_body(b'"' * (15 * MIB), end=False)
        await ok(client, "write_file", session_id=session_id, path="f", content="x" * (8 * MIB))
        heard = await slow[0].heard()
        assert heard.status == 503
        assert int(heard.headers[b"retry-after"]) > 0
        assert json.loads(heard.body)["error"]["code"] == -32000
