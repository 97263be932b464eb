"""The seam between the MCP adapter and the gateway: one call in, one answer out.

The two values are all that passes: the endpoint knows MCP and nothing of sessions, policy or audit; the
gateway knows those and nothing of MCP. The protocols say what the endpoint needs of its neighbours, so
that it depends on neither the gateway nor the tool table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Protocol, TypeAlias

import attrs

from broker.memory.answers import Reserve

Report: TypeAlias = Callable[[float, str], Awaitable[None]]
"""Tells the client how far its call is: seconds so far, and a message."""


@attrs.frozen(kw_only=True)
class Call:
    """One `tools/call` as the gateway sees it.

    `arguments` are the client's own, not validated. `client` and `request_id` are what the client says of
    itself: good for the audit log, never for a decision. `report` is there if the client asked for progress.
    `reserve` waits for room for a large answer, where answers are bounded; it raises NoRoomForAnswer.
    `base_url` is how it reaches this server over HTTP, without a slash at the end; empty where it does not.
    """

    tool: str
    arguments: Mapping[str, object]
    principal: str
    client: str
    request_id: str
    report: Report | None = None
    base_url: str = ""
    reserve: Reserve | None = None


@attrs.frozen(kw_only=True)
class Answer:
    """The result of a call as one JSON object; `is_error` only if the tool itself failed."""

    structured: dict[str, Any]
    is_error: bool


class Handler(Protocol):
    """The part that answers calls: the gateway."""

    async def handle(self, call: Call) -> Answer:
        """Answer *call*; names of unknown tools arrive here too, so that they are audited.

        Raises nothing by promise. Cancellation: the client left or sent `notifications/cancelled`.
        """
        ...


class Outputs(Protocol):
    """The output of commands, beside the calls: the gateway knows it."""

    def outputs(self, principal: str) -> tuple[OutputResource, ...]:
        """List the outputs that *principal* can read, of all its sessions."""
        ...

    async def follow(self, principal: str, uri: str, seen: int) -> int | None:
        """Wait until the output named *uri* has more than *seen* bytes, or is complete; return how many, None: no more.

        Raises:
            LookupError: *principal* has no such output.
        """
        ...


@attrs.frozen(kw_only=True)
class OutputResource:
    """One output of one command as a resource; `uri` is what `output_uri` makes."""

    uri: str
    name: str
    description: str
    size_bytes: int


class ToolInfo(Protocol):
    """A tool as a client is told of it: a row of the tool table."""

    @property
    def name(self) -> str:
        """Its name in `tools/call`."""
        ...

    @property
    def title(self) -> str:
        """Its name for a person."""
        ...

    @property
    def description(self) -> str:
        """The text by which a model decides whether to use it."""
        ...

    @property
    def annotations(self) -> Mapping[str, Any]:
        """MCP's hints (`readOnlyHint`, ...)."""
        ...

    @property
    def input_schema(self) -> Mapping[str, Any]:
        """JSON Schema of the arguments."""
        ...

    @property
    def output_schema(self) -> Mapping[str, Any]:
        """JSON Schema of the result."""
        ...

    @property
    def bulk_fields(self) -> Collection[str]:
        """Result fields that are left out of the text twin of structured content."""
        ...
