"""Attack the walls of this machine: `python -m tests.escape [--report FILE] [--title TEXT]`; --help has the rest.

Exit status: 0 every fence that claims to hold held; 1 something got through against a claim, or a row is wrong.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import trio

from .attack import Attack, load_catalogue
from .corpus import Result, run_corpus
from .report import as_json, counts, save
from .verdict import Verdict

WRONG = ("finding", "unclaimed")


def main() -> int:
    """Run what is asked for, a line for each attack."""
    asked = _parser().parse_args()
    attacks = [attack for attack in load_catalogue() if _wanted(attack, asked)]
    run = trio.run(partial(run_corpus, attacks, _tell, namespaces=not asked.without_namespaces))
    for name, (state, detail) in run.layers.states.items():
        print(f"layer {name}: {state}: {detail}")
    print(", ".join(f"{count} {state}" for state, count in counts(run).items()))
    if asked.report is not None:
        save(asked.report, as_json(run, asked.title))
    return 1 if any(state in counts(run) for state in WRONG) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.escape", description=__doc__)
    parser.add_argument("--report", type=Path, help="write what came out as JSON")
    parser.add_argument("--title", default="", help="what a person calls this combination")
    parser.add_argument("--scripts", action="store_true", help="only those that need no program but Python")
    parser.add_argument("--guest", action="store_true", help="only those that are tried again in a guest")
    parser.add_argument("--without-namespaces", action="store_true", help="as on a host that gives none")
    parser.add_argument("--only", default="", help="only those whose name or vector holds this text")
    return parser


def _wanted(attack: Attack, asked: argparse.Namespace) -> bool:
    if (asked.scripts and attack.script is None) or (asked.guest and not attack.guest):
        return False
    return asked.only in attack.name or asked.only in attack.vector


def _tell(result: Result) -> None:
    print(f"{result.attack.name}: {_words(result.shipped)}", flush=True)
    if result.walls is not None:
        print(f"  without the policy's help: {_words(result.walls)}", flush=True)


def _words(verdict: Verdict) -> str:
    more = f" [{' '.join(verdict.said.split())}]" if verdict.state in WRONG else ""
    return f"{verdict.state}: {verdict.by}{more}"


if __name__ == "__main__":
    sys.exit(main())
