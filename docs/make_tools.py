"""Write what README.md and docs/tools.md say of each tool from the tool table: `python docs/make_tools.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from broker.contract.table import TOOLS, Tool  # noqa: E402  the checkout's own, installed or not

BEGIN = "<!-- made by `python docs/make_tools.py` from broker/contract/; edit that -->\n"
SHOWN_CHOICES = 10
END = "<!-- end of what is made -->\n"


def lines() -> str:
    """Return a table of what each tool is for: the first paragraph of its request class's text."""
    texts = {tool.name: (tool.request.__doc__ or "").partition("\n\n")[0] for tool in TOOLS.values()}
    rows = (f"| `{name}` | {' '.join(text.split()).rstrip('.')} |\n" for name, text in texts.items())
    return "| tool | what it is for |\n|---|---|\n" + "".join(rows)


def sections() -> str:
    """Return, for each family of tools, a table of what they take and answer."""
    families = dict.fromkeys(tool.request.__module__ for tool in TOOLS.values())
    return "".join(map(_section, families)) + "\n"


def _section(family: str) -> str:
    topic = (sys.modules[family].__doc__ or "").partition(":")[0]
    rows = (_row(tool) for tool in TOOLS.values() if tool.request.__module__ == family)
    return f"\n## {topic}\n\n| tool | arguments | result, beside `success` |\n|---|---|---|\n{''.join(rows)}"


def _row(tool: Tool) -> str:
    properties, required = tool.input_schema["properties"], tool.input_schema.get("required", ())
    arguments = (
        f"`{name}{_default(schema, required=name in required)}`{_parts(schema)}" for name, schema in properties.items()
    )
    results = (f"`{field.name}`" for field in attrs.fields(tool.result) if field.name != "success")
    return f"| `{tool.name}` | {', '.join(arguments)} | {', '.join(results)} |\n"


def _default(schema: Mapping[str, Any], *, required: bool) -> str:
    default = schema.get("default")
    if required:
        return ""
    return "?" if default in (None, [], {}) else "=" + json.dumps(default).removesuffix(".0")


def _parts(schema: Mapping[str, Any]) -> str:
    """Return the choices there are, or the names within an object, where they are few enough to be read here."""
    shape = schema["anyOf"][0] if "anyOf" in schema else schema
    if choices := shape.get("enum", ()):
        return f" ({', '.join(choices)})" if len(choices) <= SHOWN_CHOICES else ""
    return f" {{{', '.join(shape['properties'])}}}" if "properties" in shape else ""


def documents() -> dict[Path, str]:
    """Return both documents as they should be, the made part between the two marks."""
    return {
        path: _with(path.read_text(), made)
        for path, made in ((ROOT / "README.md", lines()), (ROOT / "docs" / "tools.md", sections()))
    }


def _with(document: str, made: str) -> str:
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{made}{END}{after}"


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text)
