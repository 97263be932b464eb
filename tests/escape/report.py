"""A run as data: what `docs/isolation.md` is made from, and what a later run is compared with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from .corpus import Result, Run
from .verdict import Layers, Verdict


def combination(layers: Layers) -> dict[str, Any]:
    """What a run's results depend on: who the broker is, and what each layer does, without this machine's words."""
    states = {name: state for name, (state, _) in layers.states.items()}
    landlock = layers.states["landlock"][1].partition(";")[0]
    return {"broker": "root" if layers.as_root else "plain user", "landlock": landlock, "layers": states}


def as_json(run: Run, title: str) -> dict[str, Any]:
    """The whole run; `title` is what a person calls the combination."""
    attacks = {result.attack.name: _row(result) for result in run.results}
    return {"title": title, **combination(run.layers), "attacks": attacks}


def _row(result: Result) -> dict[str, Any]:
    rounds = {"shipped": result.shipped, "walls": result.walls}
    verdicts = {way: _verdict(verdict) for way, verdict in rounds.items() if verdict is not None}
    return {"vector": result.attack.vector, "does": result.attack.does, **verdicts}


def _verdict(verdict: Verdict) -> dict[str, str]:
    return {"state": verdict.state, "by": _timeless(verdict)}


def _timeless(verdict: Verdict) -> str:
    """Why a round was skipped, without what differs from run to run."""
    if verdict.state != "skipped":
        return verdict.by
    return verdict.by if verdict.by.endswith("is not there") else verdict.by.partition(":")[0]


def save(path: Path, report: Mapping[str, Any]) -> None:
    """Write *report* as people can read a change of it."""
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def contradictions(report: Mapping[str, Any], committed: Mapping[str, Any]) -> list[str]:
    """What *report* says otherwise than *committed*, a run of the same combination; a skip contradicts nothing."""
    found = []
    for name, row in committed["attacks"].items():
        for way in ("shipped", "walls"):
            then, now = row.get(way), report["attacks"].get(name, {}).get(way)
            if then is None or now is None or "skipped" in (then["state"], now["state"]):
                continue
            if then != now:
                found.append(f"{name} ({way}): the table says {_said(then)}, this run {_said(now)}")
    return found


def _said(verdict: Mapping[str, str]) -> str:
    return f"{verdict['state']} by {verdict['by']}"


def same_combination(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two reports are about the same layers."""
    return all(one[key] == other[key] for key in ("broker", "landlock", "layers"))


def agree_with(committed: Iterable[Path], report: Mapping[str, Any]) -> None:
    """Fail the test where *report* contradicts a committed one of its combination; skip where there is none."""
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in committed]
    same = [table for table in tables if same_combination(table, report)]
    if not same:
        pytest.skip(f"docs/isolation.md has no column for {report['broker']}, {report['landlock']}, {report['layers']}")
    found = [contradiction for table in same for contradiction in contradictions(report, table)]
    assert not found, "\n".join(found)


def counts(run: Run) -> Mapping[str, int]:
    """How many rounds came out how."""
    states = [verdict.state for result in run.results for verdict in (result.shipped, result.walls) if verdict]
    return {state: states.count(state) for state in dict.fromkeys(states)}
