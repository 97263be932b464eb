"""MCP over Streamable HTTP: the SDK's session manager behind the guard, on Hypercorn's connections.

Owns the order of stopping: refuse new work, end the work that runs (so that every waiting client still gets
its answer), and only then let go of the connections. Hypercorn alone would stop listening and cut them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import attrs
import trio
from hypercorn.config import Config
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from broker.access.peerwatch import PeerWatch
from broker.http.connections import serve_connections
from broker.http.guard import MCP_PATH, Guard, GuardLimits, MemoryBudgets
from broker.http.origins import HostRules, host_rules
from broker.http.sockets import host_and_port, open_listeners
from broker.http.transfer_app import TransferApp
from broker.logs import quiet_libraries
from broker.memory.heap import give_back_when_quiet
from config.settings import HttpSettings

HEADER_BYTES = 32 * 1024
KEEP_ALIVE_S = 30.0
"""Idle connections, and request headers on their way, have this long. Longer than clients keep an idle
connection (4 to 15 s in common ones), so that they, not we, close first and no request meets a closed connection."""
KEEP_ALIVE_REQUESTS = 1_000_000
GRACE_S = 2.0
"""What Hypercorn gives connections that are still busy after the drain."""


@attrs.frozen(kw_only=True)
class Patience:
    """How many seconds a client may keep the server waiting, where no operator need choose."""

    mcp_session_idle_s: float = 900
    keep_alive_s: float = KEEP_ALIVE_S
    stall_s: float = 20
    """Seconds a client may leave an answer unread before its connection is closed. Of the body of a download over a
    URL `transfers.idle_s` decides instead."""


async def serve_http(
    settings: HttpSettings,
    server: Server[Any],
    *,
    stop: trio.Event,
    end_work: Callable[[], Awaitable[None]],
    transfers: TransferApp | None = None,
    watch: PeerWatch | None = None,
    patience: Patience = Patience(),
    task_status: trio.TaskStatus[tuple[str, ...]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve MCP over HTTP until *stop* is set; `started` gives the URLs.

    After *stop* nothing new is taken; *end_work* is called once and ends the sessions, so that calls in flight
    answer; these answers still go out. Without *transfers* there is nothing beneath /transfers/, without a *watch*
    every connection is served.

    Raises:
        ListenFailed: the address cannot be had.
        ValueError: a host or origin in the settings is none.
    Cancellation: at once, without a drain: calls in flight are cancelled and their clients see a closed socket.
    """
    rules = host_rules(settings.host, settings.allowed_hosts, settings.allowed_origins)
    manager = _session_manager(settings, server, rules, patience)
    budgets = MemoryBudgets.of(bodies_bytes=settings.max_bodies_bytes, answers_bytes=settings.max_answers_bytes)
    guard = _guard(settings, server, rules, manager, transfers, budgets)
    sockets = await open_listeners(settings.host, settings.port, stall_s=patience.stall_s)

    async def drained() -> None:
        await stop.wait()
        await guard.drain(end_work)

    with quiet_libraries(), ExitStack() as open_sockets:
        for sock in sockets:
            open_sockets.enter_context(sock)
        async with _heap_tended(budgets), manager.run():
            task_status.started(tuple(f"http://{host_and_port(sock)}{MCP_PATH}" for sock in sockets))
            await serve_connections(
                guard,
                _hypercorn_config(patience.keep_alive_s),
                sockets,
                max_connections=settings.max_connections,
                until=drained,
                watch=watch,
            )


@asynccontextmanager
async def _heap_tended(budgets: MemoryBudgets) -> AsyncIterator[None]:
    """Give memory back after large bodies and answers, as long as the block runs."""
    async with trio.open_nursery() as nursery:
        for budget in (budgets.bodies, budgets.answers):
            nursery.start_soon(give_back_when_quiet, budget)
        yield
        nursery.cancel_scope.cancel(reason="the server has stopped")


def _session_manager(
    settings: HttpSettings, server: Server[Any], rules: HostRules, patience: Patience
) -> StreamableHTTPSessionManager:
    """Return the SDK's own entry; its checks are the same as the guard's, a second lock behind the first."""
    return StreamableHTTPSessionManager(
        server,
        security_settings=TransportSecuritySettings(
            allowed_hosts=rules.host_patterns(), allowed_origins=rules.origin_patterns()
        ),
        max_request_body_size=settings.max_body_bytes,
        session_idle_timeout=patience.mcp_session_idle_s,
        # `McpSessions` counts them; the SDK also counts requests that turn out not to open one.
        max_sessions=settings.max_mcp_sessions + settings.max_calls_in_flight,
    )


def _guard(
    settings: HttpSettings,
    server: Server[Any],
    rules: HostRules,
    manager: StreamableHTTPSessionManager,
    transfers: TransferApp | None,
    budgets: MemoryBudgets,
) -> Guard:
    limits = GuardLimits(
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.body_timeout_s,
        max_calls_in_flight=settings.max_calls_in_flight,
        max_mcp_sessions=settings.max_mcp_sessions,
    )
    return Guard(
        app=manager.handle_request,
        rules=rules,
        budgets=budgets,
        version=server.version,
        handshake_versions=HANDSHAKE_PROTOCOL_VERSIONS,
        limits=limits,
        transfers=transfers,
    )


def _hypercorn_config(keep_alive_s: float) -> Config:
    config = Config()
    config.alpn_protocols = ["http/1.1"]
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.h11_max_incomplete_size = HEADER_BYTES
    config.max_app_queue_size = 1  # pieces of a body that waits for room are memory, too
    config.keep_alive_timeout = keep_alive_s
    config.keep_alive_max_requests = KEEP_ALIVE_REQUESTS
    config.graceful_timeout = GRACE_S
    return config
