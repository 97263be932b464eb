"""MCP over standard input and output, one JSON-RPC message a line, in both protocol eras.

Bounds what the client may cost, as the guard does for HTTP, and stops in the same order. What is left after
end-of-file is still answered, so that requests can be piped in.

The lines go over descriptors that nothing else in the process can reach. While they are claimed, descriptor 0 reads
end-of-file and descriptor 1 goes to standard error, so that a stray `print`, or a child, can neither eat a message nor
break one. Reading and writing wait for the descriptor inside trio instead of in a thread: a thread blocked on standard
input could not be cancelled.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import mcp_types as types
import trio
from mcp.server.lowlevel import Server
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from broker.http.asgi import INVALID_REQUEST, PARSE_ERROR, SERVER_BUSY, rpc_error
from broker.logs import quiet_libraries

EOF_LINGER_S = 5.0
"""After end-of-file, or when the broker stops, what was asked before may still be answered for this long."""


async def serve_stdio(
    server: Server[Any],
    *,
    stop: trio.Event,
    end_work: Callable[[], Awaitable[None]],
    max_line_bytes: int,
    max_calls_in_flight: int,
) -> None:
    """Serve MCP over standard input and output until end-of-file or *stop*.

    After *stop* nothing more is read; *end_work* is called once and ends the sessions, so that calls in flight
    answer; these answers still go out. A client that stops reading ends the conversation as well.
    """
    with quiet_libraries(), claim_stdio(max_line_bytes=max_line_bytes) as lines:
        conversation = _Conversation(lines, max_calls_in_flight)
        to_server, server_in = trio.open_memory_channel[SessionMessage | Exception](0)
        server_out, from_server = trio.open_memory_channel[SessionMessage](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conversation.write_answers, from_server, nursery.cancel_scope)
            nursery.start_soon(_end_at_stop, conversation, stop, end_work)
            nursery.start_soon(conversation.read_requests, to_server)
            await server.run(server_in, server_out, server.create_initialization_options())
            nursery.cancel_scope.cancel(reason="the conversation is over")


async def _end_at_stop(conversation: _Conversation, stop: trio.Event, end_work: Callable[[], Awaitable[None]]) -> None:
    await stop.wait()
    await end_work()
    conversation.reading.cancel(reason="the broker is stopping")


@attrs.define(eq=False)
class _Conversation:
    """One conversation: what has been asked and not yet answered."""

    _lines: StdioLines
    _limit: int
    reading: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    _open: set[str] = attrs.field(init=False, factory=set)
    _answered: trio.Event = attrs.field(init=False, factory=trio.Event)

    async def read_requests(self, to_server: trio.MemorySendChannel[SessionMessage | Exception]) -> None:
        """Hand over what is read; at the end wait for the answers (bounded), then end the conversation."""
        async with to_server:
            with self.reading:
                async for line in self._lines.lines():
                    message = self._message(line)
                    if isinstance(message, bytes):
                        await self._lines.write_line(message)
                    else:
                        await to_server.send(SessionMessage(message))
            with trio.move_on_after(EOF_LINGER_S):
                while self._open:
                    self._answered = trio.Event()
                    await self._answered.wait()

    async def write_answers(
        self, from_server: trio.MemoryReceiveChannel[SessionMessage], conversation: trio.CancelScope
    ) -> None:
        """Write what the server says, one line each; end the conversation when nobody reads it."""
        try:
            async for item in from_server:
                line = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                await self._lines.write_line(line.encode())
                if isinstance(item.message, types.JSONRPCResponse | types.JSONRPCError):
                    self._close(item.message.id)
        except BrokenPipeError:
            conversation.cancel(reason="nobody reads standard output any more")

    def _message(self, line: bytes | LineTooLong) -> types.JSONRPCMessage | bytes:
        """Return the message in *line*, or the error line that answers it."""
        if isinstance(line, LineTooLong):
            return rpc_error(INVALID_REQUEST, "the line is too long")
        try:
            message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValidationError as exc:
            if exc.errors(include_input=False)[0]["type"] == "json_invalid":
                return rpc_error(PARSE_ERROR, "the line is not JSON")
            return rpc_error(INVALID_REQUEST, "the line must be one JSON-RPC 2.0 message")
        match message:
            case types.JSONRPCRequest():
                if len(self._open) >= self._limit:
                    return rpc_error(SERVER_BUSY, f"{self._limit} calls are in flight, which is the limit", message.id)
                self._open.add(str(message.id))
            case types.JSONRPCNotification() if "id" in json.loads(line):
                # A request whose id is neither string nor integer passes the SDK's check as a notification.
                return rpc_error(INVALID_REQUEST, "the id of a request must be a string or an integer")
            case types.JSONRPCNotification(method="notifications/cancelled"):
                self._close((message.params or {}).get("requestId"))  # a cancelled request is never answered
        return message

    def _close(self, request_id: object) -> None:
        self._open.discard(str(request_id))
        self._answered.set()


READ_BYTES = 64 * 1024


class LineTooLong(Exception):
    """A line is longer than the limit; it has been skipped."""


@attrs.define(eq=False)
class StdioLines:
    """The two descriptors. One task reads; any may write, a line at a time."""

    _in_fd: int
    _out_fd: int
    _max_line_bytes: int
    _writing: trio.Lock = attrs.field(init=False, factory=trio.Lock)

    async def lines(self) -> AsyncIterator[bytes | LineTooLong]:
        """Yield each line that is not blank, without its end, until end-of-file."""
        rest, skipping = bytearray(), False
        while data := await self._read():
            head, newline, tail = data.partition(b"\n")
            while newline:
                rest += head
                if skipping or len(rest) > self._max_line_bytes:
                    yield LineTooLong()
                elif line := rest.strip():
                    yield bytes(line)
                rest, skipping = bytearray(), False
                head, newline, tail = tail.partition(b"\n")
            rest += head
            if len(rest) > self._max_line_bytes:
                rest, skipping = bytearray(), True
        if skipping:
            yield LineTooLong()
        elif line := rest.strip():
            yield bytes(line)

    async def write_line(self, line: bytes) -> None:
        """Write one line, whole, after the ones before it.

        Raises:
            BrokenPipeError: the reader is gone.
        Cancellation: a line that was begun may stay incomplete, so only the end of the process cancels it.
        """
        async with self._writing:
            view = memoryview(line + b"\n")
            while view:
                await _wait(trio.lowlevel.wait_writable, self._out_fd)
                # No more than a pipe takes at once when it is writable at all: the descriptor is shared with
                # whoever started us, so it stays in blocking mode, and a larger write could block the loop.
                view = view[os.write(self._out_fd, view[: select.PIPE_BUF]) :]

    async def _read(self) -> bytes:
        await _wait(trio.lowlevel.wait_readable, self._in_fd)
        return os.read(self._in_fd, READ_BYTES)


async def _wait(wait: Callable[[int], Awaitable[None]], fd: int) -> None:
    try:
        await wait(fd)
    except PermissionError:
        # epoll refuses regular files, which are always ready: `broker < requests.jsonl > answers.jsonl`
        await trio.lowlevel.checkpoint()


@contextmanager
def claim_stdio(*, max_line_bytes: int) -> Iterator[StdioLines]:
    """Take standard input and output for the protocol; give them back on the way out."""
    with ExitStack() as restore:
        yield StdioLines(_move_away(0, restore), _move_away(1, restore), max_line_bytes)


def _move_away(fd: int, restore: ExitStack) -> int:
    """Duplicate *fd* out of the standard range, close-on-exec, and put something harmless in its place."""
    private = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    restore.callback(os.close, private)
    restore.callback(os.dup2, private, fd)
    if fd == 0:
        harmless = os.open(os.devnull, os.O_RDONLY)
        os.dup2(harmless, 0)
        os.close(harmless)
    else:
        os.dup2(2, fd)
    return private
