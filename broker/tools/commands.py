"""Starting commands and waiting for them: perform_* takes a request and returns its result.

A foreground command is the work of its call and ends with it. One that was started with `background` or
`wait_seconds` is the session's own: leaving the call does not end it. Who waits for either is outside of the session,
whose end is not to take from him what the command has said. What is asked of a command that runs or ran is
`output.py`.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import attrs
import trio

from broker.contract.commands import (
    CommandInfo,
    ExecuteCommand,
    ExecuteCommandResult,
    ListCommands,
    ListCommandsResult,
    ResizeTerminal,
    ResizeTerminalResult,
    SignalCommand,
    SignalCommandResult,
    WaitCommand,
    WaitCommandResult,
    WriteStdin,
    WriteStdinResult,
)
from broker.contract.encode import encode
from broker.contract.errors import BrokerError, ErrorCode
from broker.grants import limits_of
from broker.scope import Host, Scope, Step
from broker.session.commands import SIGNALS, CommandOrigin, SessionCommand
from broker.session.resources import SessionResources
from broker.session.session import Session, SessionClosed
from broker.tools.ansi import strip_ansi
from broker.tools.progress import narrated
from policy.decision import Run
from policy.environment import build_environment
from sandbox.commands.excerpt import Excerpt
from sandbox.commands.terminal import Size
from sandbox.commands.values import ExecPlan, Exited, Signalled, TimedOut, Times

R = TypeVar("R", bound=ExecuteCommandResult)
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP)
"""What somebody else sends to end a program (kill_process, the kernel out of memory); other signals are its own."""


async def perform_execute_command(scope: Scope, request: ExecuteCommand, run: Run) -> ExecuteCommandResult:
    """Run the command: to its end, its deadline or the session's end; or have it run in the session."""
    own = scope.own
    stays = request.background or request.wait_seconds is not None
    plan, times = _plan(scope, request, run, stays=stays), _times(scope.host, request, stays=stays)
    command = own.commands.admit(run.argv, _origin(scope, request), has_terminal=request.terminal is not None)
    work = partial(command.run, own.init, plan, times)
    if stays:
        await _start(scope, command, work, request.wait_seconds or 0)
    else:
        await _call(scope, command, work)
    return _answer(ExecuteCommandResult, scope.session, command, plain=request.strip_ansi)


async def _call(scope: Scope, command: SessionCommand, work: Callable[[], Awaitable[None]]) -> None:
    """Run *command* as a call of its session, to its end or the session's. Raises SessionClosed: it never began."""
    try:
        async with narrated(scope.session, command, scope.report):
            await scope.session.call(work)
    except SessionClosed:
        if command.running:
            raise


async def _start(scope: Scope, command: SessionCommand, work: Callable[[], Awaitable[None]], wait_s: float) -> None:
    """Have the session run *command*, and wait for its start, then at most *wait_s* seconds for its end."""
    scope.session.start(work)
    try:
        await command.started.wait()
        async with narrated(scope.session, command, scope.report):
            with trio.move_on_after(wait_s):
                await command.done.wait()
    finally:
        command.detached = command.running  # also when the client has left: its end is nobody's answer


def _origin(scope: Scope, request: ExecuteCommand) -> CommandOrigin:
    session = scope.session
    return CommandOrigin(
        session_id=request.session_id,
        principal=scope.principal,
        client=scope.client,
        request_id=scope.request_id,
        session_over=lambda: session.closed,
    )


def _plan(scope: Scope, request: ExecuteCommand, run: Run, *, stays: bool) -> ExecPlan:
    host, own, given = scope.host, scope.own, request.stdin_input
    size = request.terminal
    env = build_environment(host.policy, user=host.account, rule_env=run.env, session_env=own.environment)
    return ExecPlan(
        program=run.program,
        argv=run.argv,
        env=env if size is None else {"TERM": "xterm-256color", **env},
        cwd=own.working_dir,
        stdin=None if given is None else given.encode(),
        stdin_stays=stays and given is None,
        exec_paths=host.grants.of_command.get(run.rule_name),
        network=run.network,
        limits=None if run.resource_override is None else limits_of(run.resource_override),
        terminal=None if size is None else Size(rows=size.rows, columns=size.columns),
    )


def _times(host: Host, request: ExecuteCommand, *, stays: bool) -> Times:
    limits = host.timeouts
    default_s = limits.command_max if stays else limits.command_default
    asked_s = request.timeout_seconds
    timeout_s = default_s if asked_s is None else asked_s
    return Times(timeout_s=timeout_s, grace_s=limits.kill_grace, drain_s=limits.output_drain)


def _answer(kind: type[R], session: Session[SessionResources], command: SessionCommand, *, plain: bool) -> R:
    """Tell what is known of *command*; a command that was ended instead of ending is an error that carries it."""
    if command.failure is not None:
        raise command.failure
    result = _result(kind, command, plain=plain)
    if session.closed and not command.running:
        # kill_session asked everything to end first, and this obeyed: its caller must not take that for an end.
        why = SessionClosed(session.id, session.ended)
        raise BrokerError(
            ErrorCode.SESSION_CLOSED, f"{why}; the output up to then is in this answer", partial=encode(result)
        )
    if command.cancelled:
        raise BrokerError(
            ErrorCode.CMD_KILLED,
            "the call that started it was cancelled, which ended it; its output up to then is in this answer",
            partial=encode(result),
        )
    if command.ended is None:
        return result
    if isinstance(command.ended.how, TimedOut):
        after_s = command.ended.how.after_s
        raise BrokerError(
            ErrorCode.CMD_TIMEOUT,
            f"the command was ended after {after_s:g} s; the output up to then is in this answer; ask for more "
            "timeout_seconds, at most timeouts.command_max",
            partial=encode(result),
            timeout_seconds=after_s,
        )
    if result.signal in ENDING_SIGNALS:
        by = f"killed: {result.killed_by}" if result.killed_by else f"{signal.Signals(result.signal).name} ended it"
        raise BrokerError(
            ErrorCode.CMD_KILLED,
            f"{by}; the command was not done, its output up to then is in this answer",
            partial=encode(result),
            signal=result.signal,
        )
    return result


def _result(kind: type[R], command: SessionCommand, *, plain: bool) -> R:
    how = command.ended.how if command.ended else None
    stdout, stderr = command.spill.stdout.excerpt(), command.spill.stderr.excerpt()
    return kind(
        success=command.running or how == Exited(0),
        exit_code=how.code if isinstance(how, Exited) else None,
        signal=how.signal if isinstance(how, Signalled) else None,
        stdout=_text(stdout, plain=plain),
        stderr=_text(stderr, plain=plain),
        duration_ms=command.duration_ms,
        pid=command.pid,
        stdout_truncated=stdout.omitted_bytes > 0,
        stderr_truncated=stderr.omitted_bytes > 0,
        timed_out=isinstance(how, TimedOut),
        command_id=command.id,
        running=command.running,
        next_cursor=command.spill.total("both"),
        stdout_omitted_bytes=stdout.omitted_bytes,
        stderr_omitted_bytes=stderr.omitted_bytes,
        dropped_bytes=command.spill.dropped("both"),
        **command.used,
    )


def _text(excerpt: Excerpt, *, plain: bool) -> str:
    head, tail = (strip_ansi(part) if plain else part for part in (excerpt.head, excerpt.tail))
    if not excerpt.omitted_bytes:
        return head
    return f"{head}\n[... {excerpt.omitted_bytes} bytes left out; read_output has them ...]\n{tail}"


async def perform_wait_command(scope: Scope, request: WaitCommand, _: None) -> WaitCommandResult:
    """Wait for the end of a command, and answer what execute_command would have."""
    command = scope.own.commands.find(request.command_id)
    async with narrated(scope.session, command, scope.report):
        with trio.move_on_after(request.wait_seconds):
            await command.done.wait()
    return _answer(WaitCommandResult, scope.session, command, plain=request.strip_ansi)


async def perform_list_commands(scope: Scope, _request: ListCommands, _: None) -> ListCommandsResult:
    """List every command that the session remembers, for a client that does not."""
    await trio.lowlevel.checkpoint()
    commands = scope.own.commands
    return ListCommandsResult(
        commands=tuple(_info(command) for command in commands.all()),
        running_count=len(commands.running()),
        max_concurrent_commands=commands.limit,
    )


def _info(command: SessionCommand) -> CommandInfo:
    how = command.ended.how if command.ended else None
    states = {Exited: "exited", Signalled: "signalled", TimedOut: "timed_out"}
    return CommandInfo(
        command_id=command.id,
        argv=command.argv,
        state="running" if command.running else states.get(type(how), "failed"),  # type: ignore[arg-type]  # a dict of Literals is str
        pid=command.pid,
        exit_code=how.code if isinstance(how, Exited) else None,
        signal=how.signal if isinstance(how, Signalled) else None,
        started_at=command.started_at,
        duration_ms=command.duration_ms,
        stdout_bytes=command.spill.stdout.total_bytes,
        stderr_bytes=command.spill.stderr.total_bytes,
        terminal=command.has_terminal,
        **command.used,
    )


async def perform_write_stdin(scope: Scope, request: WriteStdin, _: None) -> WriteStdinResult:
    """Give a command input; it reads when it wants to."""
    await trio.lowlevel.checkpoint()
    data = request.data.encode()
    waiting = scope.own.commands.find(request.command_id).write(data, last=request.close)
    return WriteStdinResult(bytes_written=len(data), waiting_bytes=waiting)


async def perform_signal_command(scope: Scope, request: SignalCommand, _: None) -> SignalCommandResult:
    """Signal a command by name, or end it and all it started."""
    await trio.lowlevel.checkpoint()
    command = scope.own.commands.find(request.command_id)
    was_running = command.running
    if request.signal == "END":
        await command.end(scope.host.timeouts.kill_grace)
    else:
        was_running = command.signal(SIGNALS[request.signal])
    return SignalCommandResult(command_id=command.id, signal_sent=request.signal, was_running=was_running)


async def perform_resize_terminal(scope: Scope, request: ResizeTerminal, _: None) -> ResizeTerminalResult:
    """Give a command's terminal a new size."""
    await trio.lowlevel.checkpoint()
    size = Size(rows=request.rows, columns=request.columns)
    scope.own.commands.find(request.command_id).resize(size)
    return ResizeTerminalResult(command_id=request.command_id, **attrs.asdict(size))


STEPS = (
    Step(
        ExecuteCommand,
        perform_execute_command,
        inside=False,
        begun="COMMAND_STARTED",
        completed="COMMAND_COMPLETED",
        failed="COMMAND_FAILED",
    ),
    Step(ListCommands, perform_list_commands),
    Step(ResizeTerminal, perform_resize_terminal),
    Step(SignalCommand, perform_signal_command),
    Step(WaitCommand, perform_wait_command, inside=False),
    Step(WriteStdin, perform_write_stdin),
)
