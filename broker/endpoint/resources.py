"""Output of commands as resources: what there is, its newest part, and word when there is more.

Reading goes through the gateway as the tool read_output does, so it is decided and audited as that is. Knows the
protocol's words for resources, no SDK.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import attrs
import trio

from broker.calls import Answer, Call, Handler, Outputs
from broker.session.outputs import TEMPLATE, parse_uri

READ_BYTES = 1024 * 1024
"""Of the newest output that a read gives; read_output has the rest."""
INTERVAL_S = 1.0
"""Between two words that one resource has changed."""
TEXT = "text/plain"
COMPLETE: Mapping[str, Any] = MappingProxyType({"resultType": "complete"})


class ResourceNotFound(Exception):
    """No output has this URI, for this principal."""


@attrs.frozen
class Resources:
    """Answers to `resources/*`."""

    _handler: Handler
    _outputs: Outputs

    def listed(self, principal: str, session_ids: Collection[str] | None) -> dict[str, Any]:
        """Every output of these sessions; None: of all that *principal* has."""
        outputs = [
            output
            for output in self._outputs.outputs(principal)
            if session_ids is None or parse_uri(output.uri).session_id in session_ids
        ]
        return {
            **COMPLETE,
            "resources": [
                {
                    "uri": output.uri,
                    "name": output.name,
                    "description": output.description,
                    "mimeType": TEXT,
                    "size": output.size_bytes,
                }
                for output in outputs
            ],
        }

    def templates(self) -> dict[str, Any]:
        """How a URI is made from what execute_command answered."""
        description = "What a command said; stream is stdout, stderr or both. The newest 1 MiB of it."
        template = {"uriTemplate": TEMPLATE, "name": "command output", "description": description, "mimeType": TEXT}
        return {**COMPLETE, "resourceTemplates": [template]}

    async def read(self, call: Call, uri: str) -> dict[str, Any]:
        """The newest part of an output.

        Args:
            call: who asks; tool and arguments are filled in here.
            uri: which.

        Raises:
            ResourceNotFound: there is none, or it is no more.
        """
        try:
            arguments = {**parse_uri(uri).arguments, "cursor": -READ_BYTES, "max_bytes": READ_BYTES}
        except LookupError as error:
            raise ResourceNotFound(str(error)) from error
        answer: Answer = await self._handler.handle(attrs.evolve(call, tool="read_output", arguments=arguments))
        if answer.is_error:
            raise ResourceNotFound(answer.structured["error_message"])
        told = answer.structured
        facts = {name: told[name] for name in ("cursor", "next_cursor", "running", "dropped_bytes")}
        contents = {"uri": uri, "mimeType": TEXT, "text": told["data"], "_meta": {"remote-broker/output": facts}}
        return {**COMPLETE, "contents": [contents]}

    async def follow(self, principal: str, uri: str, tell: Callable[[], Awaitable[None]]) -> None:
        """Tell whenever there is more of *uri*, at most once in INTERVAL_S; return when it is complete and told."""
        seen: int | None = 0
        while seen is not None:
            try:
                seen = await self._outputs.follow(principal, uri, seen)
            except LookupError:  # it never was, or its session has ended: either way there will be no more of it
                return
            await tell()
            if seen is not None:
                await trio.sleep(INTERVAL_S)

    def known(self, principal: str, uris: list[str]) -> tuple[str, ...]:
        """Those of *uris* that are there for *principal*."""
        there = {output.uri for output in self._outputs.outputs(principal)}
        return tuple(uri for uri in dict.fromkeys(uris) if uri in there)
