"""The attack corpus against a real broker: each attack works without the fence, and none gets through one that stands.

An attack that only an absent layer would stop is a visible skip that names the layer; docs/isolation.md is the table.
"""

from __future__ import annotations

import json
import runpy
import subprocess
from pathlib import Path

import pytest
import trio

from tests.escape.attack import Attack, Fence, load_catalogue
from tests.escape.corpus import Result, Run, run_corpus
from tests.escape.report import agree_with, as_json, contradictions
from tests.escape.verdict import Layers, Round, judge
from tests.support.live import ROOT, live_folder
from tests.support.live_plain_user import plain_user

COMMITTED = sorted((ROOT / "docs" / "isolation").glob("*.json"))
ATTACKS = load_catalogue()
RUN_S = 300
"""A net: it takes half a minute on a quiet machine."""

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def corpus() -> Run:
    async def bounded() -> Run:
        with trio.fail_after(RUN_S):
            return await run_corpus(ATTACKS, lambda _: None)

    return trio.run(bounded)


def result_of(run: Run, attack: Attack) -> Result:
    return next(result for result in run.results if result.attack is attack)


@pytest.mark.long
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_that_works_outside_is_held_inside(corpus: Run, attack: Attack) -> None:
    result = result_of(corpus, attack)
    verdicts = [verdict for verdict in (result.shipped, result.walls) if verdict is not None]
    for verdict in verdicts:
        assert verdict.state != "finding", f"it got through although {verdict.by} claims to hold: {verdict.said}"
        assert verdict.state != "unclaimed", f"it is held by {verdict.by}, which its row does not name: {verdict.said}"
    for verdict in verdicts:
        if verdict.state == "skipped":
            pytest.skip(verdict.by)
        if verdict.state == "open":
            pytest.skip(f"not fenced here: {verdict.by} would stop it")


@pytest.mark.long
def test_this_run_says_what_the_committed_table_says(corpus: Run) -> None:
    agree_with(COMMITTED, as_json(corpus, ""))


@pytest.mark.long
@pytest.mark.bounded(RUN_S)
@pytest.mark.parametrize("options", [(), ("--without-namespaces",)], ids=["namespaces", "landlock alone"])
def test_the_walls_of_a_plain_users_broker_hold_too(options: tuple[str, ...]) -> None:
    """Attacks by an interpreter inside: there the broker has no other user to hide behind."""
    with live_folder() as base:
        plain = plain_user(base)
        report = base / "report.json"
        done = subprocess.run(
            [*plain.python, "-m", "tests.escape", "--scripts", *options, "--report", str(report)],
            cwd=ROOT,
            env={**plain.environment, "PYTHONPATH": f"{ROOT}:{plain.environment.get('PYTHONPATH', '')}"},
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        agree_with(COMMITTED, json.loads(report.read_text()))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_the_committed_runs_found_nothing_wrong_and_know_every_attack_they_could(path: Path) -> None:
    table = json.loads(path.read_text())
    found = {
        verdict["state"]
        for row in table["attacks"].values()
        for verdict in (row["shipped"], row.get("walls"))
        if verdict
    }
    assert found <= {"held", "open", "skipped"}
    assert {attack.name for attack in ATTACKS if attack.guest} <= table["attacks"].keys()


def test_the_page_is_made_of_the_committed_runs() -> None:
    maker = runpy.run_path(str(ROOT / "docs" / "make_isolation.py"))
    assert (ROOT / "docs" / "isolation.md").read_text() == maker["page"](maker["read_reports"](COMMITTED))


LAYERS = Layers(
    states={"landlock": ("enforced", "ABI 5; x"), "network": ("unavailable", "no"), "user": ("enforced", "")},
    as_root=False,
)


def attack_with(*fences: str) -> Attack:
    return Attack(name="x", does="y", argv=("z",), fences=tuple(map(Fence.parse, fences)))


@pytest.mark.parametrize(
    ("fences", "seen", "state", "by"),
    [
        (["policy", "landlock"], Round(through=False, refused="POLICY_001"), "held", "policy"),
        (["policy", "landlock"], Round(through=False), "held", "landlock"),
        (["landlock"], Round(through=False, refused="POLICY_001"), "unclaimed", "policy"),
        (["landlock"], Round(through=True), "finding", "landlock"),
        (["landlock 6"], Round(through=True), "open", "landlock (ABI 6)"),
        (["network"], Round(through=True), "open", "network"),
        (["network"], Round(through=False), "unclaimed", "nothing that the row names"),
        (["user"], Round(through=True), "open", "user"),
        ([], Round(through=True), "open", "nothing there is"),
    ],
)
def test_a_round_is_judged_by_the_layers_that_claim_it(fences: list[str], seen: Round, state: str, by: str) -> None:
    verdict = judge(attack_with(*fences), "shipped", seen, LAYERS)
    assert (verdict.state, verdict.by) == (state, by)


def test_without_the_policys_help_only_the_kernel_counts() -> None:
    assert judge(attack_with("policy", "landlock"), "walls", Round(through=True), LAYERS).state == "finding"
    assert judge(attack_with("policy", "network"), "walls", Round(through=True), LAYERS).state == "open"


def test_a_contradiction_of_the_table_is_found() -> None:
    committed = {"attacks": {"a": {"shipped": {"state": "held", "by": "landlock"}}}}
    through = {"attacks": {"a": {"shipped": {"state": "open", "by": "network"}}}}
    skipped = {"attacks": {"a": {"shipped": {"state": "skipped", "by": "no git"}}}}
    assert contradictions(committed, committed) == []
    assert contradictions(skipped, committed) == []
    assert len(contradictions(through, committed)) == 1


def test_every_vector_of_the_catalogue_is_there() -> None:
    assert {path.stem for path in (Path(__file__).parents[1] / "escape" / "catalogue").iterdir()} >= {
        "arguments", "environment", "files", "filetools", "kernel", "processes", "programs", "repository",
    }  # fmt: skip
