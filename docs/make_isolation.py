"""Write docs/isolation.md from runs of the attack corpus: python docs/make_isolation.py [FILES...].

Each file is the report of one run, one combination of layers and one column: python -m tests.escape --report FILE
--title TEXT. Without files: docs/isolation/*.json, from which the committed page is made. The file name orders them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
DATA = DOCS / "isolation"
PAGE = DOCS / "isolation.md"

HEAD = """# What the walls hold

Made by `docs/make_isolation.py` from runs of the attack corpus (`tests/escape/`); a test holds every run to it. Each
attack is tried without walls first, where it must succeed, and then through a broker.

- a name, such as `policy` or `landlock`: the attack is stopped, and that fence decided. `policy` is the broker's
  decision about a call, `environment` that variables are built from nothing, `file tools` their own rules about what
  they open; everything else is a layer of the kernel, as `isolation` in the results names it.
- `policy, else landlock`: with the shipped policy the first decides; under a rule that lets any argument pass, and with
  the environment's help taken away, the second does.
- **open**: the attack goes through, and the layer that would stop it is not enforced in this combination. Ask
  `python -m broker doctor` what holds on your machine.
- skipped: it does not work there without walls either, or what it needs is not there. `-`: not part of that run.

Work of any length on a session's files (searches, copies, archives, hashes of whole files) is done by processes of the
session, inside these walls and on its account; which hashes the broker makes itself, and why, is in
[files.md](files.md#hashes-of-files).
"""


def page(reports: Sequence[Mapping[str, Any]]) -> str:
    """Return the whole page."""
    vectors = dict.fromkeys(row["vector"] for report in reports for row in report["attacks"].values())
    parts = [HEAD, "## Layers", _layers(reports), "## Sums", _sums(reports)]
    for vector in sorted(vectors):
        parts += [f"## {vector[0].upper()}{vector[1:]}", _attacks(reports, vector)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _layers(reports: Sequence[Mapping[str, Any]]) -> str:
    names = dict.fromkeys(name for report in reports for name in report["layers"])
    rows = [[f"`{name}`", *(_layer(report, name) for report in reports)] for name in names]
    return _table(["layer", *(report["title"] for report in reports)], rows)


def _layer(report: Mapping[str, Any], name: str) -> str:
    state: str = report["layers"].get(name, "-")
    return f"{state}, {report['landlock']}" if name == "landlock" else state


def _sums(reports: Sequence[Mapping[str, Any]]) -> str:
    states = ("held", "open", "skipped")
    rows = [[state, *(str(_count(report, state)) for report in reports)] for state in states]
    return _table(["attacks", *(report["title"] for report in reports)], rows)


def _count(report: Mapping[str, Any], state: str) -> int:
    return sum(row["shipped"]["state"] == state for row in report["attacks"].values())


def _attacks(reports: Sequence[Mapping[str, Any]], vector: str) -> str:
    found = {name: row for report in reports for name, row in report["attacks"].items() if row["vector"] == vector}
    rows = [
        [f"{name}: {row['does']}", *(_cell(report["attacks"].get(name)) for report in reports)]
        for name, row in found.items()
    ]
    return _table(["attack", *(report["title"] for report in reports)], rows)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    shipped, walls = row["shipped"], row.get("walls")
    if shipped["state"] == "skipped":
        return "skipped"
    first = _word(shipped)
    if walls is None or _word(walls) == first:
        return first
    return f"{first}, else {_word(walls)}"


def _word(verdict: Mapping[str, str]) -> str:
    by = verdict["by"].replace("_", " ")
    if verdict["state"] == "held":
        return by
    if verdict["state"] == "open":
        return "**open** by design" if by == "nothing there is" else f"**open** (needs {by})"
    return f"**{verdict['state']}**: {by}"


def read_reports(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Read the runs, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(files, key=lambda path: path.name)]


def main() -> int:
    """Write the page."""
    files = [Path(name) for name in sys.argv[1:]] or list(DATA.glob("*.json"))
    PAGE.write_text(page(read_reports(files)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
