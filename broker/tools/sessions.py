"""Sessions, processes, the machine: perform_* takes a request and returns its result.

No audit, no policy, no codes but those of failures that only a tool can know. What runs `inside` is a child of the
session's nursery: it ends when the session does, and its caller gets a typed answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType

import trio

from broker.contract.encode import utc_now
from broker.contract.errors import BrokerError, ErrorCode
from broker.contract.names import shown_path
from broker.contract.sessions import (
    CpuInfo,
    CreateSession,
    CreateSessionResult,
    DiskInfo,
    GetProcessList,
    GetProcessListResult,
    GetSystemInfo,
    GetSystemInfoResult,
    IsolationLayer,
    KillProcess,
    KillProcessResult,
    KillSession,
    KillSessionResult,
    MemoryInfo,
    ProcessInfo,
)
from broker.decisions import Subject, require_workplace
from broker.scope import Host, Scope, Step
from broker.session.resources import SessionResources, open_session_resources, sweep_leftovers
from broker.session.session import EndReason, Session, SessionClosed
from broker.session.supervisor import new_session_id
from sandbox.errors import ProcessNotFound
from sandbox.machine.facts import ProcessFacts
from sandbox.plan.plan import LayerReport

SHOWN_NAMES = 5


async def perform_create_session(scope: Scope, request: CreateSession, working_dir: str) -> CreateSessionResult:
    """Bring a session to life and enter its working directory, whose real path is decided as well."""
    host, session_id = scope.host, request.id or new_session_id()
    open_resources = partial(
        open_session_resources,
        host.launcher,
        host.walls(working_dir),
        host.resource_settings,
        environment=request.environment,
        on_discard=partial(host.on_discard, scope.principal, session_id),
        listeners=host.listeners,
        registry=host.transfer_registry,
    )
    try:
        session = await host.supervisor.create(scope.principal, session_id, open_resources, partial(_enter, host))
    finally:
        host.launcher.warm_up_soon()
    return CreateSessionResult(
        session_id=session.id,
        working_dir=shown_path(session.own.working_dir),
        created_at=utc_now(),
        idle_timeout_seconds=session.idle_s,
        isolation=_isolation(session.own.init.layers),
    )


async def _enter(host: Host, session: Session[SessionResources]) -> None:
    """Make the working directory's real path the session's. Raises BrokerError: the policy does not allow it there."""
    own = session.own
    with await own.files.resolve(own.working_dir, read=True) as found:
        require_workplace(host, found.path)
        found.directory()
        own.working_dir = found.path
        await sweep_leftovers(own.files, found)
    own.init.get_ready()


async def perform_kill_session(scope: Scope, request: KillSession, _: Subject) -> KillSessionResult:
    """End the session; returns when nothing of it is left.

    Cancellation: the session ends at once, since it takes no further calls, not even one that would end it.
    """
    session = scope.session
    init = session.own.init
    running = tuple(session.own.commands.running())
    session.refuse_calls(EndReason.KILLED)
    try:
        ended = await init.descendants()
        if not request.force:
            with trio.move_on_after(scope.host.timeouts.kill_grace):
                await init.ask_to_end()
                for command in running:  # what obeyed ends as it did, and is not cut off while its end is taken in
                    await command.done.wait()
    finally:
        session.kill()
    await session.wait_closed()
    return KillSessionResult(
        session_id=session.id, processes_ended=len(ended), commands_ended=tuple(command.id for command in running)
    )


async def perform_get_system_info(scope: Scope, _request: GetSystemInfo, _: Subject) -> GetSystemInfoResult:
    """Describe the machine, and what the walls enforce on it."""
    facts = await scope.host.facts.system()
    memory = facts.memory
    return GetSystemInfoResult(
        hostname=facts.hostname,
        platform=facts.platform,
        cpu=CpuInfo(cores=facts.cpu.count, usage_percent=facts.cpu.usage_percent),
        memory=MemoryInfo(
            total_bytes=memory.total_bytes,
            available_bytes=memory.available_bytes,
            used_bytes=memory.total_bytes - memory.available_bytes,
            usage_percent=memory.used_percent,
        ),
        disks=tuple(
            DiskInfo(
                mount_point=disk.mount_point,
                total_bytes=disk.total_bytes,
                used_bytes=disk.used_bytes,
                free_bytes=disk.free_bytes,
                usage_percent=disk.used_percent,
            )
            for disk in facts.disks
        ),
        uptime_seconds=int(facts.uptime_s),
        isolation=_isolation(scope.host.layers, _appeared(scope)),
    )


async def perform_get_process_list(scope: Scope, request: GetProcessList, _: Subject) -> GetProcessListResult:
    """List the processes of one session, or those of the session user: command lines only of the caller's own."""
    host = scope.host
    if request.session_id is not None:
        found = await host.facts.processes(pids=await scope.own.init.descendants())
        shown = tuple(_process(facts, with_cmdline=True) for facts in found)
    else:
        own: set[int] = set()
        for session in host.supervisor.of(scope.principal):
            with suppress(SessionClosed):  # it ended meanwhile, and its processes with it
                own |= await session.own.init.descendants()
        found = await host.facts.processes_of(host.user.uid)
        shown = tuple(_process(facts, with_cmdline=facts.pid in own) for facts in found)
    return GetProcessListResult(processes=shown, total_count=len(shown), session_id=request.session_id)


async def perform_kill_process(scope: Scope, request: KillProcess, _: Subject) -> KillProcessResult:
    """Signal a process of this session; any other does not exist or is refused."""
    try:
        await scope.own.init.signal(request.pid, request.signal)
    except ProcessNotFound:
        raise await _no_such_process(scope, request) from None
    return KillProcessResult(pid=request.pid, signal_sent=request.signal, was_running=True)


async def _no_such_process(scope: Scope, request: KillProcess) -> BrokerError:
    if await scope.host.facts.processes(pids=[request.pid]):
        return BrokerError(
            ErrorCode.PROC_ACCESS_DENIED,
            f"process {request.pid} was not started by session {request.session_id!r}, so it cannot be signalled",
        )
    return BrokerError(ErrorCode.PROC_NOT_FOUND, f"there is no process {request.pid} in session {request.session_id!r}")


def _process(facts: ProcessFacts, *, with_cmdline: bool) -> ProcessInfo:
    return ProcessInfo(
        pid=facts.pid,
        name=facts.name,
        cmdline=" ".join(facts.cmdline) if with_cmdline else None,
        status=facts.status,
        cpu_percent=facts.cpu_percent,
        memory_rss=facts.memory_rss_bytes,
    )


def _appeared(scope: Scope) -> Mapping[str, str]:
    """Return what is to be added to a layer's words: closed names that were found in sessions of the caller.

    Without the sessions' ids: anyone who has one has the session.
    """
    sessions = scope.host.supervisor.of(scope.principal)
    names = tuple(dict.fromkeys(name for session in sessions for name in session.own.aftermath.names))
    if not names:
        return {}
    shown = ", ".join(shown_path(name) for name in names[:SHOWN_NAMES])
    more = "" if len(names) <= SHOWN_NAMES else f" and {len(names) - SHOWN_NAMES} more"
    return {"blocked_paths": f"; closed names that appeared while your sessions live: {shown}{more}"}


def _isolation(
    layers: tuple[LayerReport, ...], more: Mapping[str, str] = MappingProxyType({})
) -> tuple[IsolationLayer, ...]:
    return tuple(
        IsolationLayer(name=layer.name, state=layer.state, detail=layer.detail + more.get(layer.name, ""))
        for layer in layers
    )


STEPS = (
    Step(CreateSession, perform_create_session, inside=False, completed="SESSION_CREATED", failed="SESSION_FAILED"),
    Step(KillSession, perform_kill_session, inside=False, completed="SESSION_KILLED"),
    Step(GetSystemInfo, perform_get_system_info, inside=False),
    Step(GetProcessList, perform_get_process_list),
    Step(KillProcess, perform_kill_process, completed="PROCESS_KILLED"),
)
