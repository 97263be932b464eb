"""The wire form of a tool's answer: structured content and its twin as text, of the tool's own call or of a task."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from broker.calls import Answer

STRUCTURED_SINCE = "2025-06-18"
"""Older clients know no structured content: their text is all they get."""


def tool_result(answer: Answer, *, bulk: Collection[str], version: str) -> dict[str, Any]:
    """The result for a client of that protocol *version*: structured, and as text without the bulk.

    Bulk is large, once is enough; clients that know no structured content get all of it as text. A plain dict,
    because the SDK checks and shapes it anyway; its own model would only be dumped again first.
    """
    structured = version >= STRUCTURED_SINCE
    told = answer.structured
    if structured and bulk:
        told = {name: value for name, value in told.items() if name not in bulk}
    result = {
        "content": [{"type": "text", "text": json.dumps(told, ensure_ascii=False)}],
        "isError": answer.is_error,
        "resultType": "complete",
    }
    return result | {"structuredContent": answer.structured} if structured else result
