"""Reading and searching what a command said: by exact byte cursors, while it runs and after."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from broker.contract.commands import OutputMatch, ReadOutput, ReadOutputResult, SearchOutput, SearchOutputResult
from broker.contract.encode import encode
from broker.contract.errors import BrokerError, ErrorCode
from broker.scope import Scope, Step
from broker.session.commands import SessionCommand
from broker.session.session import WIND_DOWN_S, SessionClosed
from broker.tools.ansi import strip_ansi, whole_sequences
from broker.tools.progress import narrated
from sandbox.commands.excerpt import whole_characters
from sandbox.commands.run import run_command
from sandbox.commands.spill import Page
from sandbox.commands.transcript import Point
from sandbox.commands.values import Ended, ExecPlan, Exited, Signalled, TimedOut, Times
from sandbox.protocol.commands import BAD_PATTERN
from sandbox.shortage import shortage_of

if TYPE_CHECKING:
    from sandbox.protocol.commands import SearchMatch, SearchSpec

SEARCH_S = 20.0
"""A search takes about two seconds for 256 MiB of usual lines; a bad pattern would take for ever."""
FINDINGS_BYTES = 4 * 1024 * 1024
WAITED_BYTES = 64 * 1024
"""Of a page that was waited for: its answer may be an event, and the SDK's client refuses one above 1 MiB. In JSON, and
as text in JSON, a control character takes 13 bytes."""


async def perform_read_output(scope: Scope, request: ReadOutput, _: None) -> ReadOutputResult:
    """Return what a command said from a cursor on; wait for it a while, if nothing is there yet.

    That is a call of the session; its end is an error that carries what is left by then.
    """
    session, commands = scope.session, scope.own.commands
    command = commands.find(request.command_id)
    cursor = request.cursor if request.cursor >= 0 else max(0, command.spill.total(request.stream) + request.cursor)
    max_bytes = request.max_bytes or commands.output.inline_bytes
    if request.wait_seconds:
        max_bytes = min(max_bytes, WAITED_BYTES)
    with suppress(SessionClosed):
        return _result(command, request, await session.call(_page, scope, request, command, cursor, max_bytes))
    with trio.move_on_after(WIND_DOWN_S):  # it is being ended, and may say something yet
        await command.done.wait()
    left = _result(command, request, command.spill.read_newest(request.stream, cursor, max_bytes))
    raise BrokerError(
        ErrorCode.SESSION_CLOSED,
        f"{SessionClosed(session.id, session.ended)}; what was in memory from the cursor on is in this answer",
        partial=encode(left),
    )


async def _page(scope: Scope, request: ReadOutput, command: SessionCommand, cursor: int, max_bytes: int) -> Page:
    spill, view = command.spill, request.stream
    async with narrated(scope.session, command, scope.report if request.wait_seconds else None):
        with trio.move_on_after(request.wait_seconds):
            await spill.wait_more(view, cursor)
    return await spill.read(view, cursor, max_bytes)


def _result(command: SessionCommand, request: ReadOutput, page: Page) -> ReadOutputResult:
    data = page.data
    if request.encoding == "text":
        data = _cut(command, page, plain=request.strip_ansi)
    how = command.ended.how if command.ended else None
    return ReadOutputResult(
        data=data if request.encoding == "base64" else _shown(data, plain=request.strip_ansi),
        cursor=page.cursor,
        next_cursor=page.cursor + len(data),
        total_bytes=page.end,
        running=command.running,
        exit_code=how.code if isinstance(how, Exited) else None,
        signal=how.signal if isinstance(how, Signalled) else None,
        dropped_bytes=page.dropped_bytes,
        evicted_bytes=page.evicted_bytes,
    )


def _cut(command: SessionCommand, page: Page, *, plain: bool) -> bytes:
    """The page without a character or control sequence that only its next page makes whole."""
    if page.next_cursor >= page.end and not command.running:
        return page.data  # there is no next page
    data = whole_characters(page.data)
    if plain:
        data = whole_sequences(data)
    return data if data or page.next_cursor >= page.end else page.data  # never a page that leads nowhere


def _shown(data: bytes, *, plain: bool) -> str:
    text = data.decode("utf-8", "replace")
    return strip_ansi(text) if plain else text


async def perform_search_output(scope: Scope, request: SearchOutput, _: None) -> SearchOutputResult:
    """Find the lines that match a pattern, in all that is kept, by a process inside the session's walls."""
    own = scope.own
    command = own.commands.find(request.command_id)
    if request.cursor and request.stream == "both":
        raise BrokerError(
            ErrorCode.INVALID_ARGUMENTS, "cursor: expected 0 with stream both; search stdout or stderr from a cursor"
        )
    fd, begin, stop = await _open_log(command, request)
    try:
        ended = await run_command(
            own.init,
            ExecPlan(
                program="", argv=(), env={}, cwd="/", stdin_fd=fd, search=_search(request, begin, stop), limits=None
            ),
            Times(timeout_s=SEARCH_S, grace_s=0, drain_s=scope.host.timeouts.output_drain),
            output_bytes=FINDINGS_BYTES,
        )
    finally:
        os.close(fd)
    return _found(request, command, ended, numbered=begin.at == 0)


async def _open_log(command: SessionCommand, request: SearchOutput) -> tuple[int, Point, int]:
    """See `Spill.open_log`."""
    try:
        return await command.spill.open_log(request.stream, request.cursor)
    except OSError as fault:
        if shortage_of(fault, of_own_file=True):
            raise
        raise BrokerError(
            ErrorCode.FILE_WRITE_ERROR,
            f"the output cannot be searched: the broker's own file for it failed ({fault.strerror}). read_output has "
            "what is kept of it",
        ) from fault


def _search(request: SearchOutput, begin: Point, stop: int) -> SearchSpec:
    return {
        "pattern": request.pattern,
        "ignore_case": request.ignore_case,
        "stream": request.stream,
        "context": request.context,
        "max_matches": request.max_matches,
        "from": request.cursor,
        "begin": begin.at,
        "offsets": (begin.stdout, begin.stderr),
        "stop": stop,
    }


def _found(request: SearchOutput, command: SessionCommand, ended: Ended, *, numbered: bool) -> SearchOutputResult:
    """The findings of a search; the last whole line of them says how far it came."""
    lines = [json.loads(line) for line in ended.stdout.data.decode().splitlines(keepends=True) if line.endswith("}\n")]
    if ended.how == Exited(BAD_PATTERN):
        problem = json.loads(ended.stdout.data)["problem"]
        raise BrokerError(
            ErrorCode.INVALID_ARGUMENTS, f"pattern: expected a regular expression, got one with {problem}"
        )
    last = lines.pop() if lines and "done" in lines[-1] else None
    if last is None and not lines:
        took = f"took more than {SEARCH_S:g} s" if isinstance(ended.how, TimedOut) else f"ended: {ended.how}"
        raise BrokerError(
            ErrorCode.POLICY_RESOURCE_EXCEEDED,
            f"the search {took}; use a simpler pattern, or search from a later cursor",
        )
    one = None if request.stream == "both" else request.stream
    complete = last is not None and last["complete"]
    next_cursor = None if complete or one is None else last["cursors"][one] if last else lines[-1]["cursor"]
    return SearchOutputResult(
        matches=tuple(_match(line, numbered=numbered) for line in lines),
        complete=complete,
        next_cursor=next_cursor,
        dropped_bytes=command.spill.dropped(request.stream),
    )


def _match(line: SearchMatch, *, numbered: bool) -> OutputMatch:
    return OutputMatch(
        stream=line["stream"],
        cursor=line["cursor"],
        line=line["line"] if numbered else None,
        text=line["text"],
        before=tuple(line["before"]),
        after=tuple(line["after"]),
    )


STEPS = (
    Step(ReadOutput, perform_read_output, inside=False),
    Step(SearchOutput, perform_search_output),
)
