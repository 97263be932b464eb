"""Samples of several things in one run: a few of each in turn, so that a slow second of the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping

PER_ROUND = 10

Probe = Callable[[], Awaitable[object]]


async def interleaved(probes: Mapping[str, Probe], rare: Mapping[str, Probe], rounds: int) -> dict[str, list[float]]:
    """Durations in seconds: of each round ten of each of *probes* and one of each of *rare*."""
    samples: dict[str, list[float]] = {name: [] for name in [*probes, *rare]}
    await _one_round(probes, rare)  # warms up; not counted
    for _round in range(rounds):
        for name, taken in (await _one_round(probes, rare)).items():
            samples[name] += taken
    return samples


async def _one_round(probes: Mapping[str, Probe], rare: Mapping[str, Probe]) -> dict[str, list[float]]:
    taken = {name: [await timed(probe) for _ in range(PER_ROUND)] for name, probe in probes.items()}
    return taken | {name: [await timed(probe)] for name, probe in rare.items()}


async def timed(probe: Probe) -> float:
    """Seconds that one call of *probe* takes."""
    start = time.perf_counter()
    await probe()
    return time.perf_counter() - start
