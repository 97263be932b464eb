"""How long it takes from nothing to the first answer, against importing the two libraries alone."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from bench.client import open_connection
from bench.table import Row, p50_row, yardstick_row
from tests.support.live import running_broker

IMPORTS = "import mcp, hypercorn"
FACTOR = 1.5


async def start_rows(rounds: int) -> list[Row]:
    """Both in turns."""
    imports, starts = [], []
    for _round in range(rounds):
        imports.append(_import_s())
        starts.append(await _first_answer_s())
    bound = FACTOR * statistics.median(imports)
    return [
        yardstick_row(f"python -c '{IMPORTS}'", imports),
        p50_row("start to the first tool's answer", starts, bound, f"{FACTOR} x the imports"),
    ]


def _import_s() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.perf_counter() - start


async def _first_answer_s() -> float:
    start = time.perf_counter()
    with running_broker() as broker:
        async with open_connection(broker.port) as connection:
            await connection.ok("get_system_info")
        return time.perf_counter() - start
