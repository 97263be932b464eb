"""What a tool is, and how one is made of its name: the classes of its request and result give schemas and decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs

from broker.contract import requests, results
from broker.contract.decode import make_decoder
from broker.contract.requests import Request
from broker.contract.results import Result
from broker.contract.schema import input_schema, output_schema

FAILURE_PROPERTIES: Mapping[str, Any] = MappingProxyType(
    {
        "error_code": {"type": "string", "description": "On failure, as the rest: such as POLICY_001."},
        "error_name": {"type": "string"},
        "error_message": {"type": "string", "description": "Names the limit and the value."},
        "error_details": {"type": "object", "description": "what_to_do, and facts for a program."},
        "retryable": {"type": "boolean", "description": "The same call, unchanged, may succeed later."},
    }
)
ODD_NAMES = "A byte of a name that is no UTF-8 is shown as \\xff; every path argument takes it so."
HINTS = ("readOnly", "destructive", "idempotent", "openWorld")


@attrs.frozen(kw_only=True)
class Tool:
    """One tool. `decode` makes a request of JSON arguments, or raises InvalidArguments with every fault.

    `annotations` has MCP's names. `bulk_fields` of a result are left out of the text twin of structured content.
    """

    name: str
    title: str
    description: str
    request: type[Request]
    result: type[Result]
    annotations: Mapping[str, bool]
    bulk_fields: frozenset[str]
    decode: Callable[[object], Request]
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any]


def make_tool(
    name: str,
    title: str,
    description: str,
    *hints: str,
    bulk: frozenset[str] = frozenset(),
) -> Tool:
    """A row of the table; the classes are found by the tool's name, so that the three cannot drift apart."""
    class_name = "".join(word.capitalize() for word in name.split("_"))
    request, result = getattr(requests, class_name), getattr(results, f"{class_name}Result")
    return Tool(
        name=name,
        title=title,
        description=description,
        request=request,
        result=result,
        annotations=MappingProxyType({f"{hint}Hint": hint in hints for hint in HINTS}),
        bulk_fields=bulk,
        decode=make_decoder(request),
        input_schema=input_schema(request),
        output_schema=output_schema(result, FAILURE_PROPERTIES),
    )
