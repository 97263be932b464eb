"""The composition root: what is built, in which order it lives and dies; signals; drain.

Order is nesting: the audit outlives the launcher, the launcher outlives the supervisor, the supervisor outlives the
endpoint. So whatever ends, there is still someone to write it down.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import attrs
import trio

from broker.access.peerwatch import PeerWatch, open_watch
from broker.audit.audit import Audit, AuditUnavailable, Event, EventType, open_audit
from broker.contract.table import TOOLS
from broker.endpoint.adapter import McpServer, build_server
from broker.endpoint.http import serve_http
from broker.endpoint.stdio import serve_stdio
from broker.gateway import Gateway
from broker.http.sockets import ListenFailed
from broker.http.transfer_app import TransferApp
from broker.pulse import open_pulse
from broker.records import EndRecords
from broker.session.aftermath import Listeners
from broker.session.resources import SessionResources, tend
from broker.session.supervisor import Supervisor, SupervisorSettings, open_supervisor
from broker.session.urls import TransferRegistry
from broker.wiring import Foundation, audit_settings, build_host
from config.load import Config
from sandbox.cgroup.layer import open_groups
from sandbox.errors import BirthFailed
from sandbox.init.launcher import Launcher, open_launcher
from sandbox.kernel.processes import is_below
from sandbox.plan.plan import LayerUnavailable
from sandbox.sniffing import open_sniffing

log = logging.getLogger("broker")

INSTRUCTIONS = (
    "Hands on one Linux machine. Call create_session first and pass its session_id to the other tools. Commands are "
    "argv arrays of allowed programs, no shell. Every failure names an error_code and what to do. kill_session ends "
    "everything the session started."
)

CANNOT_SERVE = (ListenFailed, AuditUnavailable, LayerUnavailable, BirthFailed)
"""What `run_http` and `run_stdio` raise when the address, the logs, a required layer or the first process for a session
cannot be had; the text is for the operator."""


def program_version() -> str:
    """The installed version, or what pyproject.toml would say in a bare checkout."""
    try:
        return version("remote-mcp-exec-gateway")
    except PackageNotFoundError:
        return "0+checkout"


async def run_http(config: Config, foundation: Foundation, announce: Callable[[str], None]) -> None:
    """Serve MCP over HTTP until SIGTERM or SIGINT; a second one ends at once.

    Args:
        announce: told each URL when it answers.
    """
    async with open_broker(config, foundation) as broker, trio.open_nursery() as nursery:
        watch = broker.watch(foundation)

        async def serve(*, task_status: trio.TaskStatus[tuple[str, ...]]) -> None:
            server = build_mcp(broker)
            transfers = TransferApp(broker.transfer_registry, broker.audit)
            try:
                await serve_http(
                    config.server,
                    server,
                    stop=broker.stop,
                    end_work=broker.end_work,
                    transfers=transfers,
                    watch=watch,
                    task_status=task_status,
                )
            finally:
                watch.settle()
            nursery.cancel_scope.cancel(reason="the server has stopped")

        nursery.start_soon(_mind_signals, broker, nursery.cancel_scope)
        urls = await nursery.start(serve)
        broker.note(EventType.SERVER_START, urls=urls)
        for url in urls:
            announce(url)


async def run_stdio(config: Config, foundation: Foundation) -> None:
    """Serve MCP on standard input and output until end-of-file, SIGTERM or SIGINT."""
    async with open_broker(config, foundation) as broker, trio.open_nursery() as nursery:
        nursery.start_soon(_mind_signals, broker, nursery.cancel_scope)
        broker.note(EventType.SERVER_START, transport="stdio")
        await serve_stdio(
            build_mcp(broker),
            stop=broker.stop,
            end_work=broker.end_work,
            max_line_bytes=config.server.max_body_bytes,
            max_calls_in_flight=config.server.max_calls_in_flight,
        )
        nursery.cancel_scope.cancel(reason="the conversation is over")


@attrs.define(eq=False, kw_only=True)
class Broker:
    """The running whole, as `run_http` and `run_stdio` hold it."""

    audit: Audit
    gateway: Gateway
    supervisor: Supervisor[SessionResources]
    launcher: Launcher
    transfer_registry: TransferRegistry
    drain_s: float
    stop: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def end_work(self) -> None:
        """End every session, so that calls in flight answer; bounded."""
        left = await self.supervisor.drain(self.drain_s)
        if left:
            log.warning("%d sessions were still ending after %g s", left, self.drain_s)

    def watch(self, foundation: Foundation) -> PeerWatch:
        """Open the watch that keeps the sessions' own processes from the port. Raises: LayerUnavailable."""
        return open_watch(foundation.plan, foundation.user, self.launcher, self.session_of, self.refused)

    def refused(self, event: Event) -> None:
        """Record that somebody at the port was refused, and say it."""
        known = event.details or {}
        if "peer" in known:  # or it is how many more there were
            log.warning("refused a connection from %s: %s", known["peer"], known["why"])
        self.audit.end(event)

    def session_of(self, pid: int) -> str | None:
        """The id of the session whose process this is."""
        return next((s.id for s in self.supervisor.living if is_below(pid, (s.own.init.pid,))), None)

    def note(self, event_type: EventType, **details: object) -> None:
        """Record something of the broker itself."""
        self.audit.end(Event(event_type=event_type, details=details))


def build_mcp(broker: Broker) -> McpServer:
    """The MCP server in front of the gateway."""
    gateway = broker.gateway
    return build_server(gateway, TOOLS, version=program_version(), instructions=INSTRUCTIONS, outputs=gateway)


@asynccontextmanager
async def open_broker(config: Config, foundation: Foundation) -> AsyncIterator[Broker]:
    """Everything but the endpoint: audit, launcher, supervisor, gateway; on leaving, all sessions are ended."""
    server = config.server
    settings = SupervisorSettings(idle_s=server.sessions.max_session_age, max_concurrent=server.sessions.max_concurrent)
    with open_audit(audit_settings(server)) as audit:
        records = EndRecords(audit)
        async with (
            open_pulse(),
            open_groups(foundation.cgroup, server.sandbox, foundation.limit_files) as (groups, layer),
            open_launcher(plan := foundation.plan.with_cgroup(layer), groups) as launcher,
            open_sniffing(say=partial(log.info, "types of files: %s")) as sniffing,
            open_supervisor(
                settings, wait_lost=tend, on_end=records.session_ended, drain_s=server.timeouts.kill_grace + 5
            ) as supervisor,
        ):
            host = build_host(
                config,
                foundation,
                launcher,
                supervisor,
                plan.layers,
                sniffing.look,
                records.upload_discarded,
                Listeners(on_end=records.command_ended, on_appeared=records.closed_names_appeared),
            )
            if layer != foundation.cgroup.report:
                log.info("layer %s: %s: %s", layer.name, layer.state, layer.detail)
            broker = Broker(
                audit=audit,
                gateway=Gateway(host, audit),
                supervisor=supervisor,
                launcher=launcher,
                transfer_registry=host.transfer_registry,
                drain_s=server.drain_s,
            )
            try:
                yield broker
            finally:
                broker.note(EventType.SERVER_STOP)


async def _mind_signals(broker: Broker, everything: trio.CancelScope) -> None:
    """SIGHUP opens the logs anew; the first SIGTERM or SIGINT drains, a second one ends at once."""
    with trio.open_signal_receiver(signal.SIGHUP, signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            if number == signal.SIGHUP:
                broker.audit.reopen()
            elif broker.stop.is_set():
                everything.cancel(reason=f"second signal {number}")
            else:
                log.info("signal %d: stopping", number)
                broker.stop.set()
