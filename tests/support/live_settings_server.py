"""One row for each key of server.yaml: what it changes, seen from outside.

Most rows ask two brokers, `usual` and `changed` (CHANGED_SERVER); a key that would disturb the others has brokers of
its own. The table must be complete: see test_live_settings.py.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import select
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from mcp.client.client import Client

from tests.support.front import modern_call
from tests.support.live import (
    Answer,
    BrokerFailed,
    LiveBroker,
    call,
    connect,
    free_port,
    new_session,
    ok,
    refused_start,
    run,
    running_broker,
)
from tests.support.live_trees import tree
from tests.support.live_urls import ask, dial, put_head

CHANGED_SERVER: Mapping[str, Any] = {
    "allowed_hosts": ["broker.example:*"],
    "allowed_origins": ["https://app.example"],
    "max_body_bytes": 70_000,
    "body_timeout_s": 0.3,
    "max_calls_in_flight": 2,
    "logging": {
        "level": "ERROR",
        "format": "text",
        "max_size_mb": 0.01,
        "backup_count": 2,
        "keep_days": 0,
        "audit_log": "elsewhere/trail.log",
        "error_log": "elsewhere/trouble.log",
    },
    "sessions": {"max_concurrent": 3, "cleanup_interval": 0.1, "max_concurrent_commands": 1},
    "timeouts": {
        "command_default": 0.5,
        "command_max": 5,
        "kill_grace": 1.0,
        "output_drain": 1.0,
        "upload_idle": 0.1,
    },
    "output": {"inline_bytes": 4096, "spill_bytes": 1024 * 1024},
    "transfers": {
        "max_open": 2,
        "max_chunk_bytes": 1024,
        "url_ttl_s": 0.2,
        "public_url": "https://broker.example/base/",
    },
}
SOON_S = 0.2
CHUNK = base64.b64encode(b"x" * 100).decode()


@attrs.frozen
class Brokers:
    """The two that rows compare."""

    usual: LiveBroker
    changed: LiveBroker


Row = Callable[[Brokers], Awaitable[None]]


def at_once(check: Callable[[Brokers], None]) -> Row:
    """A row that needs no client."""

    async def row(brokers: Brokers) -> None:
        await trio.lowlevel.checkpoint()
        check(brokers)

    return row


async def in_session(broker: LiveBroker, work: Callable[[Client, str], Awaitable[Answer]]) -> Answer:
    """What *work* answers in a session of its own, which is gone afterwards."""
    async with connect(broker) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        answer = await work(client, session_id)
        await call(client, "kill_session", session_id=session_id, force=True)
        return answer


async def in_both(brokers: Brokers, work: Callable[[Client, str], Awaitable[Answer]]) -> tuple[Answer, Answer]:
    """The answers of the usual and of the changed broker."""
    return await in_session(brokers.usual, work), await in_session(brokers.changed, work)


def host(_brokers: Brokers) -> None:
    at = ("127.0.0.2", free_port())
    with running_broker({"host": at[0], "port": at[1]}, at=at) as broker:
        assert broker.healthy()
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", at[1])):
            pass


def port(_brokers: Brokers) -> None:
    at = ("127.0.0.1", free_port())
    with running_broker({"port": at[1]}, at=at) as broker:
        assert broker.healthy()


def allowed_hosts(brokers: Brokers) -> None:
    for broker, status in ((brokers.usual, 421), (brokers.changed, 200)):
        assert broker.request("GET", "/healthz", Host="broker.example:1234")[0] == status


def allowed_origins(brokers: Brokers) -> None:
    for broker, status in ((brokers.usual, 403), (brokers.changed, 200)):
        assert broker.request("GET", "/healthz", Origin="https://app.example")[0] == status


def max_body_bytes(brokers: Brokers) -> None:
    assert brokers.usual.request("POST", "/mcp", b"x" * 80_000)[0] != 413
    assert brokers.changed.request("POST", "/mcp", b"x" * 80_000)[0] == 413


async def body_timeout_s(brokers: Brokers) -> None:
    """The usual broker (30 s) has not given up when the changed one has."""
    head = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n123"
    async with (
        await trio.open_tcp_stream("127.0.0.1", brokers.usual.port) as patient,
        await trio.open_tcp_stream("127.0.0.1", brokers.changed.port) as hasty,
    ):
        await patient.send_all(head)
        await hasty.send_all(head)
        assert (await hasty.receive_some()).startswith(b"HTTP/1.1 408")
        with trio.move_on_after(0):
            raise AssertionError(await patient.receive_some())


async def max_calls_in_flight(brokers: Brokers) -> None:
    body = json.dumps(
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "get_system_info"}}
    ).encode()
    headers = {"Content_Type": "application/json", "Accept": "application/json, text/event-stream"}
    for broker, refused in ((brokers.usual, False), (brokers.changed, True)):
        async with connect(broker) as client, trio.open_nursery() as nursery:
            sessions = [await new_session(client, working_dir=str(broker.workspace)) for _ in range(2)]
            async with tree("obeys SIGTERM", broker.workspace) as one, tree("obeys SIGTERM", broker.workspace) as two:
                for session_id, shaped in zip(sessions, (one, two), strict=True):
                    nursery.start_soon(partial(run, client, session_id, "sh", "-c", shaped.script, timeout_seconds=5))
                    await shaped.wait_up()
                ask = partial(broker.request, "POST", "/mcp", body, **headers)
                assert ((await trio.to_thread.run_sync(ask))[0] == 503) is refused
            nursery.cancel_scope.cancel()  # the client leaves, and its commands with it
        await kill_all(broker, sessions)


async def kill_all(broker: LiveBroker, sessions: list[str]) -> None:
    async with connect(broker) as client:
        for session_id in sessions:
            await call(client, "kill_session", session_id=session_id, force=True)


async def max_connections(brokers: Brokers) -> None:
    """Nine that say nothing: the first is closed where eight are the limit."""
    with running_broker({"max_connections": 8}) as changed:
        for broker, first_closed in ((brokers.usual, False), (changed, True)):
            async with AsyncExitStack() as stack:
                address = ("127.0.0.1", broker.port)
                silent = [await stack.enter_async_context(await trio.open_tcp_stream(*address)) for _ in range(9)]
                assert await trio.to_thread.run_sync(broker.healthy)
                with trio.move_on_after(0 if not first_closed else 10) as waited:
                    assert await silent[0].receive_some() == b""
                assert waited.cancelled_caught is not first_closed


async def max_bodies_bytes(brokers: Brokers) -> None:
    """A large body that is still coming in keeps another one waiting where there is no room for both."""
    size = 80 * 1024
    with running_broker(
        {"max_bodies_bytes": size + 1, "max_body_bytes": size, "transfers": {"max_chunk_bytes": 1024}}
    ) as changed:
        for broker, waits in ((brokers.usual, False), (changed, True)):
            head = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size
            async with await trio.open_tcp_stream("127.0.0.1", broker.port) as first:
                await first.send_all(head + b"x")
                async with await trio.open_tcp_stream("127.0.0.1", broker.port) as second:
                    await second.send_all(head + b"x" * size)
                    await second.receive_some()
                    assert is_readable(first) is waits, "the first had to give way"
                    assert not waits or (await first.receive_some()).startswith(b"HTTP/1.1 503")


def is_readable(stream: trio.SocketStream) -> bool:
    readable = select.poll()
    readable.register(stream.socket.fileno(), select.POLLIN)
    return bool(readable.poll(0))


async def max_answers_bytes(brokers: Brokers) -> None:
    """An answer that is not read is cut where somebody else's finds no room beside it."""
    size = 9 * 1024 * 1024
    with running_broker({"max_answers_bytes": 1024 * 1024}) as changed:
        for broker, cut in ((brokers.usual, False), (changed, True)):
            (broker.workspace / "large").write_bytes(b"x" * size)
            async with connect(broker) as client, await trio.open_tcp_stream("127.0.0.1", broker.port) as unread:
                session_id = await new_session(client, working_dir=str(broker.workspace))
                arguments = {"session_id": session_id, "path": "large"}
                body, headers = modern_call("read_file", arguments)
                named = {"host": "localhost", "content-length": str(len(body)), **headers}
                head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
                await unread.send_all(f"POST /mcp HTTP/1.1\r\n{head}\r\n".encode() + body)
                seen = len(await unread.receive_some())
                await ok(client, "read_file", **arguments, limit=200_000)
                with contextlib.suppress(trio.BrokenResourceError):
                    while seen < 2 * size and (more := await unread.receive_some()):
                        seen += len(more)
                assert (seen < 2 * size) is cut
                await call(client, "kill_session", session_id=session_id, force=True)


async def max_mcp_sessions(brokers: Brokers) -> None:
    """Of two that have greeted, the first has to go where one is the limit."""
    with running_broker({"max_mcp_sessions": 1}) as changed:
        for broker, status in ((brokers.usual, 200), (changed, 404)):
            first, _ = [await trio.to_thread.run_sync(greet, broker) for _ in range(2)]
            ping = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()
            ask = partial(broker.request, "POST", "/mcp", ping, **GREETING_HEADERS, Mcp_Session_Id=first)
            assert (await trio.to_thread.run_sync(ask))[0] == status


GREETING_HEADERS = {"Content_Type": "application/json", "Accept": "application/json, text/event-stream"}


def greet(broker: LiveBroker) -> str:
    """Open an MCP session of 2025; return its id."""
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "9"}}
    message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    connection = http.client.HTTPConnection(broker.host, broker.port, timeout=10)
    try:
        headers = {name.replace("_", "-"): value for name, value in GREETING_HEADERS.items()}
        connection.request("POST", "/mcp", json.dumps(message).encode(), headers)
        return connection.getresponse().headers["mcp-session-id"]
    finally:
        connection.close()


async def drain_s(_brokers: Brokers) -> None:
    """With no time to drain, sessions are not waited for, and the broker says so."""
    for seconds, waited in ((10, True), (0, False)):
        with running_broker({"drain_s": seconds}) as broker:
            async with connect(broker) as client, tree("setsid", broker.workspace) as shaped:
                session_id = await new_session(client, working_dir=str(broker.workspace))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(run, client, session_id, "sh", "-c", shaped.script)
                    await shaped.wait_up()
                    broker.process.terminate()
                    assert await trio.to_thread.run_sync(broker.wait_ended) == 0
                    nursery.cancel_scope.cancel()
        assert ("still ending after" not in "\n".join(broker.printed.lines)) is waited


def level(brokers: Brokers) -> None:
    assert "layer landlock" in "\n".join(brokers.usual.printed.lines)
    assert "layer landlock" not in "\n".join(brokers.changed.printed.lines)


def log_format(_brokers: Brokers) -> None:
    with running_broker({"logging": {"format": "json"}}) as broker:
        assert [line for line in broker.printed.lines if line.startswith("{") and json.loads(line)["message"]]
    with running_broker({"logging": {"format": "text"}}) as broker:
        assert not [line for line in broker.printed.lines if line.startswith("{")]


def audit_log(brokers: Brokers) -> None:
    assert (brokers.changed.base / "elsewhere" / "trail.log").exists()
    assert not (brokers.changed.base / "log" / "audit.log").exists()
    assert (brokers.usual.base / "log" / "audit.log").exists()


async def error_log(brokers: Brokers) -> None:
    await in_both(brokers, lambda client, session_id: run(client, session_id, "curl"))
    assert (brokers.changed.base / "elsewhere" / "trouble.log").stat().st_size > 0
    assert (brokers.usual.base / "log" / "audit-errors.log").stat().st_size > 0, "beside the audit log by default"


async def max_size_mb(brokers: Brokers) -> None:
    """50 calls are more than 0.01 MB of records."""

    async def fifty(client: Client, session_id: str) -> Answer:
        for _call in range(49):
            await run(client, session_id, "true")
        return await run(client, session_id, "true")

    await in_both(brokers, fifty)
    assert (brokers.changed.base / "elsewhere" / "trail.log.1").stat().st_size <= 10_486
    assert not (brokers.usual.base / "log" / "audit.log.1").exists()


async def backup_count(brokers: Brokers) -> None:
    await max_size_mb(brokers)
    await max_size_mb(brokers)
    kept = sorted(path.name for path in (brokers.changed.base / "elsewhere").glob("trail.log.*"))
    assert kept == ["trail.log.1", "trail.log.2"]


async def keep_days(brokers: Brokers) -> None:
    """The two settings are one: files beyond backup_count stay while they are young and there is room for them."""
    kept: dict[float, int] = {}
    for total_mb in (1024, 0.05):
        logging = {"max_size_mb": 0.01, "backup_count": 1, "keep_days": 1, "max_total_mb": total_mb}
        with running_broker({"logging": logging}) as broker:
            async with connect(broker) as client:
                session_id = await new_session(client)
                for _call in range(100):
                    await run(client, session_id, "true")
            kept[total_mb] = len(list((broker.base / "log").glob("audit.log.*")))
    assert kept[0.05] == 4
    assert kept[1024] > 4


async def max_session_age(brokers: Brokers) -> None:
    """The answer of create_session says it; that it is true is a test of its own in test_live_errors.py."""
    with running_broker({"sessions": {"max_session_age": 123}}) as broker:
        async with connect(broker) as client:
            assert (await ok(client, "create_session"))["idle_timeout_seconds"] == 123


async def max_concurrent(brokers: Brokers) -> None:
    for broker, refused in ((brokers.usual, False), (brokers.changed, True)):
        async with connect(broker) as client:
            sessions = [await new_session(client) for _ in range(3)]
            fourth = await call(client, "create_session")
            assert fourth.is_error is refused
            await kill_all(broker, [*sessions, fourth.data.get("session_id", "")])


async def cleanup_interval(_brokers: Brokers) -> None:
    """An upload that was given up is recorded as discarded when the sweep finds it."""
    timeouts = {"upload_idle": 0.05}
    often, seldom = {"cleanup_interval": 0.05}, {"cleanup_interval": 3600}
    with (
        running_broker({"timeouts": timeouts, "sessions": often}) as sweeping,
        running_broker({"timeouts": timeouts, "sessions": seldom}) as waiting,
    ):
        async with connect(sweeping) as client, connect(waiting) as other:
            await _begin_upload(waiting, other)
            await _begin_upload(sweeping, client)
            while not _discards(sweeping):
                await ok(client, "get_system_info")
            assert not _discards(waiting)
            assert _discards(sweeping)[0]["session_id"]


async def _begin_upload(broker: LiveBroker, client: Client) -> None:
    session_id = await new_session(client, working_dir=str(broker.workspace))
    await ok(client, "upload_file", session_id=session_id, path="f", chunk_data=CHUNK)


def _discards(broker: LiveBroker) -> list[dict[str, Any]]:
    return [record for record in broker.audit() if "was discarded" in record.get("error", "")]


async def max_concurrent_commands(brokers: Brokers) -> None:
    for broker, refused in ((brokers.usual, False), (brokers.changed, True)):
        async with connect(broker) as client, tree("obeys SIGTERM", broker.workspace) as shaped:
            session_id = await new_session(client, working_dir=str(broker.workspace))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(run, client, session_id, "sh", "-c", shaped.script, timeout_seconds=5))
                await shaped.wait_up()
                assert (await run(client, session_id, "true")).is_error is refused
                await ok(client, "kill_session", session_id=session_id, force=True)


async def command_default(brokers: Brokers) -> None:
    usual, changed = await in_both(brokers, lambda client, session_id: run(client, session_id, "sleep", "1"))
    assert usual["exit_code"] == 0
    assert changed.error[0] == "CMD_002"


async def command_max(brokers: Brokers) -> None:
    usual, changed = await in_both(
        brokers, lambda client, session_id: run(client, session_id, "true", timeout_seconds=6)
    )
    assert usual["exit_code"] == 0
    assert changed.error[0] == "POLICY_003"


async def kill_grace(brokers: Brokers) -> None:
    stubborn = "trap '' TERM; sleep 1000"
    usual, changed = await in_both(
        brokers, lambda client, session_id: run(client, session_id, "sh", "-c", stubborn, timeout_seconds=0.2)
    )
    assert changed["duration_ms"] >= 1150
    assert usual["duration_ms"] < 1150


async def output_drain(brokers: Brokers) -> None:
    late = "echo a; (sleep 0.4; echo b) &"
    usual, changed = await in_both(brokers, lambda client, session_id: run(client, session_id, "sh", "-c", late))
    assert (usual["stdout"], changed["stdout"]) == ("a\n", "a\nb\n")


async def upload_idle(brokers: Brokers) -> None:
    """An upload is given up 0.1 s after its last chunk; by default it waits ten minutes."""

    async def resume_later(client: Client, session_id: str) -> Answer:
        begun = await ok(client, "upload_file", session_id=session_id, path="f", chunk_data=CHUNK)
        await run(client, session_id, "sleep", str(SOON_S))
        rest = {"transfer_id": begun["transfer_id"], "chunk_offset": 100, "is_last": True}
        return await call(client, "upload_file", session_id=session_id, path="f", chunk_data=CHUNK, **rest)

    usual, changed = await in_both(brokers, resume_later)
    assert usual["is_complete"] is True
    assert changed.error[0] == "TRANSFER_001"


async def inline_bytes(brokers: Brokers) -> None:
    usual, changed = await in_both(brokers, lambda client, session_id: run(client, session_id, "echo", "x" * 5000))
    assert (len(usual["stdout"]), usual["stdout_truncated"]) == (5001, False)
    assert (changed["stdout_omitted_bytes"], changed["stdout_truncated"]) == (905, True)


async def spill_bytes(brokers: Brokers) -> None:
    usual, changed = await in_both(
        brokers, lambda client, session_id: run(client, session_id, "head", "-c", "1100000", "/dev/zero")
    )
    assert usual["dropped_bytes"] == 0
    assert 1_100_000 - changed["dropped_bytes"] == pytest.approx(1024 * 1024, abs=1000)


async def max_open(brokers: Brokers) -> None:
    async def three(client: Client, session_id: str) -> Answer:
        for name in ("a", "b"):
            await ok(client, "upload_file", session_id=session_id, path=name, chunk_data=CHUNK)
        return await call(client, "upload_file", session_id=session_id, path="c", chunk_data=CHUNK)

    # The changed broker also gives uploads up after 0.1 s: a third within that time is one too many.
    with running_broker({"transfers": {"max_open": 2}}) as broker:
        assert (await in_session(broker, three)).error[0] == "POLICY_003"
    assert not (await in_session(brokers.usual, three)).is_error


async def open_upload(client: Client, session_id: str) -> Answer:
    return await ok(client, "open_transfer", session_id=session_id, direction="upload", path="f")


async def url_ttl_s(brokers: Brokers) -> None:
    async def expired(client: Client, session_id: str) -> Answer:
        up = await open_upload(client, session_id)
        named = {"session_id": session_id, "transfer_id": up["transfer_id"]}
        while (answer := await ok(client, "stat_transfer", **named))["state"] == "open":
            await trio.lowlevel.checkpoint()
        return answer

    assert (await in_session(brokers.changed, expired))["state"] == "expired"
    with trio.move_on_after(SOON_S) as waited:
        await in_session(brokers.usual, expired)
    assert waited.cancelled_caught


async def transfer_idle_s(_: Brokers) -> None:
    """Its own broker: where URLs expire soon as well, nobody could tell which it was."""

    async def stalled(client: Client, session_id: str) -> Answer:
        up = await open_upload(client, session_id)
        with dial(up["url"]) as line:
            line.sendall(put_head(up["url"], 9) + b"some")
            told = b""
            while b"TRANSFER_STALLED" not in told:  # head and body may come apart
                more = await trio.to_thread.run_sync(line.recv, 65536)
                assert more, told
                told += more
        assert told.startswith(b"HTTP/1.1 408")
        return up

    with running_broker({"transfers": {"idle_s": 0.2}}) as broker:
        await in_session(broker, stalled)


async def max_streams(_: Brokers) -> None:
    """One request moves bytes, and the next one is one too many."""

    async def two(client: Client, session_id: str) -> Answer:
        first, second = await open_upload(client, session_id), await open_upload(client, session_id)
        named = {"session_id": session_id, "transfer_id": first["transfer_id"]}
        with dial(first["url"]) as line:
            line.sendall(put_head(first["url"], 9) + b"some")
            while (await ok(client, "stat_transfer", **named))["state"] == "open":
                await trio.lowlevel.checkpoint()
            refused = await ask("PUT", second["url"], b"x")
            assert (refused.status, refused.code) == (503, "POLICY_RESOURCE_EXCEEDED")
            line.sendall(b"other")
            await trio.to_thread.run_sync(lambda: line.recv(65536))
        while (said := await ask("PUT", second["url"], b"x")).status == 503:
            await trio.lowlevel.checkpoint()
        assert said.status == 200
        return second

    with running_broker({"transfers": {"max_streams": 1}}) as broker:
        await in_session(broker, two)


async def public_url(brokers: Brokers) -> None:
    usual, changed = await in_both(brokers, open_upload)
    assert usual["url"].startswith(f"http://127.0.0.1:{brokers.usual.port}/transfers/")
    assert changed["url"].startswith("https://broker.example/base/transfers/")


async def max_chunk_bytes(brokers: Brokers) -> None:
    two_kb = base64.b64encode(b"x" * 2048).decode()
    usual, changed = await in_both(
        brokers,
        lambda client, session_id: call(
            client, "upload_file", session_id=session_id, path="f", chunk_data=two_kb, is_last=True
        ),
    )
    assert usual["is_complete"] is True
    assert changed.is_error


async def unprivileged_user(_brokers: Brokers) -> None:
    if os.geteuid() != 0:
        pytest.skip("only a broker of root can run sessions as another user")
    sandbox = {"unprivileged_user": "nobody"}
    with running_broker({"sandbox": sandbox}) as broker:
        written = await in_session(
            broker, lambda client, session_id: ok(client, "write_file", session_id=session_id, path="f", content="x")
        )
        assert os.stat(written["path"]).st_uid == 65534


def require(_brokers: Brokers) -> None:
    with running_broker({"sandbox": {"require": ["no_new_privs"]}}) as broker:
        assert broker.healthy()
    assert "cannot start" in refused_start({"sandbox": {"require": ["cgroup"]}})


async def enable_cgroups(_brokers: Brokers) -> None:
    on, off = [await cgroup_detail({"enable_cgroups": value}) for value in (True, False)]
    assert on != off


async def cgroup_base(_brokers: Brokers) -> None:
    one, two = [await cgroup_detail({"enable_cgroups": True, "cgroup_base": base}) for base in ("/no/a", "/no/b")]
    assert one != two


async def enable_namespaces(_brokers: Brokers) -> None:
    for value in (True, False):
        with running_broker({"sandbox": {"enable_namespaces": value}}) as broker:
            own = await in_session(broker, lambda client, session_id: run(client, session_id, "sh", "-c", "echo $$"))
            assert (int(own["stdout"]) != own["pid"]) is (value and await has_namespaces(broker))


async def private_tmp(_brokers: Brokers) -> None:
    for value in (True, False):
        with running_broker({"sandbox": {"private_tmp": value}}, {"allowed_paths": ["~/**", "/tmp/**"]}) as broker:
            name = f"/tmp/{broker.base.name}.tmp"
            words = ("sh", "-c", f"echo x > {name}")
            made = await in_session(broker, lambda client, session_id, words=words: run(client, session_id, *words))
            assert made["exit_code"] == 0
            assert os.path.exists(name) is not (value and await has_namespaces(broker))
            Path(name).unlink(missing_ok=True)


async def private_tmp_bytes(_brokers: Brokers) -> None:
    words = ("sh", "-c", "head -c 2000000 /dev/zero > /tmp/f")
    for size_bytes in (1 << 20, 4 << 20):
        with running_broker({"sandbox": {"private_tmp_bytes": size_bytes}}) as broker:
            if not await has_namespaces(broker):
                pytest.skip("this machine gives sessions no mounts of their own")
            filled = await in_session(broker, lambda client, session_id: run(client, session_id, *words))
            assert (filled["exit_code"] == 0) is (size_bytes > 2_000_000)


async def has_namespaces(broker: LiveBroker) -> bool:
    """Whether sessions have mounts and processes of their own here."""
    async with connect(broker) as client:
        layers = (await ok(client, "get_system_info"))["isolation"]
    return any((each["name"], each["state"]) == ("pid_namespace", "enforced") for each in layers)


async def cgroup_detail(sandbox: Mapping[str, object]) -> str:
    """What a broker says of its cgroup layer."""
    try:
        with running_broker({"sandbox": sandbox}) as broker:
            async with connect(broker) as client:
                layers = (await ok(client, "get_system_info"))["isolation"]
    except BrokerFailed as failed:
        return str(failed)
    detail: str = cgroup_layer(layers)["detail"]
    return detail


def cgroup_layer(layers: list[dict[str, str]]) -> dict[str, str]:
    """The report on cgroups of an `isolation`."""
    return next(each for each in layers if each["name"] == "cgroup")


ROWS: Mapping[str, Row] = {
    "server.host": at_once(host),
    "server.port": at_once(port),
    "server.allowed_hosts": at_once(allowed_hosts),
    "server.allowed_origins": at_once(allowed_origins),
    "server.max_body_bytes": at_once(max_body_bytes),
    "server.body_timeout_s": body_timeout_s,
    "server.max_calls_in_flight": max_calls_in_flight,
    "server.max_connections": max_connections,
    "server.max_bodies_bytes": max_bodies_bytes,
    "server.max_answers_bytes": max_answers_bytes,
    "server.max_mcp_sessions": max_mcp_sessions,
    "server.drain_s": drain_s,
    "server.logging.level": at_once(level),
    "server.logging.format": at_once(log_format),
    "server.logging.audit_log": at_once(audit_log),
    "server.logging.error_log": error_log,
    "server.logging.max_size_mb": max_size_mb,
    "server.logging.backup_count": backup_count,
    "server.logging.keep_days": keep_days,
    "server.logging.max_total_mb": keep_days,
    "server.sessions.max_session_age": max_session_age,
    "server.sessions.max_concurrent": max_concurrent,
    "server.sessions.cleanup_interval": cleanup_interval,
    "server.sessions.max_concurrent_commands": max_concurrent_commands,
    "server.timeouts.command_default": command_default,
    "server.timeouts.command_max": command_max,
    "server.timeouts.kill_grace": kill_grace,
    "server.timeouts.output_drain": output_drain,
    "server.timeouts.upload_idle": upload_idle,
    "server.output.inline_bytes": inline_bytes,
    "server.output.spill_bytes": spill_bytes,
    "server.transfers.max_open": max_open,
    "server.transfers.max_chunk_bytes": max_chunk_bytes,
    "server.transfers.url_ttl_s": url_ttl_s,
    "server.transfers.idle_s": transfer_idle_s,
    "server.transfers.max_streams": max_streams,
    "server.transfers.public_url": public_url,
    "server.sandbox.unprivileged_user": unprivileged_user,
    "server.sandbox.cgroup_base": cgroup_base,
    "server.sandbox.enable_cgroups": enable_cgroups,
    "server.sandbox.enable_namespaces": enable_namespaces,
    "server.sandbox.private_tmp": private_tmp,
    "server.sandbox.private_tmp_bytes": private_tmp_bytes,
    "server.sandbox.require": at_once(require),
}
