"""`python -m bench`: the promises of the design's section 10, measured in one run on this machine.

All numbers are taken side by side on this machine, now; compare ratios, not runs. MB are 10^6 bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping

import attrs
import trio

from bench import ends, latency, load, memory, raw, sparse, start, transfer
from bench.table import Row, render
from broker.memory.heap import keep_freed_memory
from tests.support.live import LiveBroker, running_broker

SERVER = {
    "sessions": {"max_concurrent": 200},
    "logging": {"level": "WARNING", "max_size_mb": 1024},
}


@attrs.frozen(kw_only=True)
class Effort:
    """How much of everything is measured."""

    commands: int
    quick: bool

    def of(self, quick: float, full: float) -> float:
        return quick if self.quick else full


Part = Callable[[LiveBroker, Effort], Awaitable[list[Row]]]


async def _latency(broker: LiveBroker, effort: Effort) -> list[Row]:
    return await latency.latency_rows(broker, int(effort.of(10, 40)))


async def _load(broker: LiveBroker, effort: Effort) -> list[Row]:
    return await load.load_rows(broker, effort.of(1, 3))


async def _ends(broker: LiveBroker, effort: Effort) -> list[Row]:
    return await ends.end_rows(broker, int(effort.of(1, 3)))


async def _session(broker: LiveBroker, _effort: Effort) -> list[Row]:
    return [await memory.session_row(broker)]


async def _growth(broker: LiveBroker, effort: Effort) -> list[Row]:
    return await memory.growth_rows(broker, effort.commands)


async def _transfers(broker: LiveBroker, effort: Effort) -> list[Row]:
    return await transfer.transfer_rows(broker, int(effort.of(64, 256)))


async def _raw(broker: LiveBroker, effort: Effort) -> list[Row]:
    return await raw.raw_rows(broker, int(effort.of(64, 512)), int(effort.of(3, 5)))


async def _sparse(broker: LiveBroker, effort: Effort) -> list[Row]:
    return await sparse.sparse_rows(broker, effort.of(1, 10))


async def _start(_broker: LiveBroker, effort: Effort) -> list[Row]:
    return await start.start_rows(int(effort.of(2, 5)))


async def _idle(broker: LiveBroker, _effort: Effort) -> list[Row]:
    return [await memory.idle_row(broker)]


PARTS: Mapping[str, Part] = {
    "idle": _idle,
    "latency": _latency,
    "load": _load,
    "ends": _ends,
    "session": _session,
    "growth": _growth,
    "transfers": _transfers,
    "raw": _raw,
    "sparse": _sparse,
    "start": _start,
}


async def _measure(names: list[str], effort: Effort) -> list[Row]:
    rows: list[Row] = []
    for name in names:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        with running_broker(SERVER) as broker:  # its own for each part: what one leaves must not weigh on the next
            rows += await PARTS[name](broker, effort)
    return rows


def main() -> int:
    """Print the table; 1 when a promise was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part alone (may be repeated)")
    parser.add_argument("--commands", type=int, help="commands of the growth part (default 10000)")
    parser.add_argument("--quick", action="store_true", help="fewer samples and 1000 commands: about a minute")
    given = parser.parse_args()
    effort = Effort(commands=given.commands or (1_000 if given.quick else 10_000), quick=given.quick)
    keep_freed_memory()  # what the client costs is not to be seen
    begun = time.monotonic()
    rows = trio.run(_measure, given.only or list(PARTS), effort)
    print(render(rows))
    print(f"{os.cpu_count()} CPUs, Python {sys.version.split()[0]}, {time.monotonic() - begun:.0f} s; MB = 10^6 bytes")
    return int(any(row.verdict == "MISSED" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
