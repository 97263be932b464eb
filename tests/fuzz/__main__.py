"""Coverage-guided fuzzing: `python -m tests.fuzz [--seconds N] [TARGET...]`, with atheris (libFuzzer) installed.

Each target gets so many inputs, two targets at a time, from what is in `corpus/` on, by the same dice each time
(`--seed 0`: by new ones), so that the whole check says the same of the same code on a slow machine and on a fast one.
`--seconds N` gives each so much time instead, to look further. An input that breaks one is
written to `fuzz-findings/` in the current folder, with what it raised; the status says how many targets broke.
Nothing is added to the corpus but by `--grow`, which keeps of what was found the least that reaches as much.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
FINDINGS = Path("fuzz-findings")
AT_ONCE = 2
INPUTS = {
    "ansi": 900_000,
    "arguments": 700_000,
    "body_shape": 75_000,
    "bulk": 100_000,
    "bulk_answer": 45_000,
    "configuration": 450,
    "git_configuration": 180_000,
    "inside_message": 120_000,
    "opener_answers": 15_000,
    "path_pattern": 70_000,
    "redaction": 35_000,
    "request_head": 320_000,
    "secret_words": 100_000,
    "tar": 80_000,
    "text": 630_000,
    "transfer_head": 670_000,
    "tree_glob": 65_000,
    "yaml_document": 100_000,
}
"""By target, how many: what two slow cores try in nine seconds, and in two minutes all of it."""
LONGEST_S = 90  # for its inputs; it is not slowness that this looks for
SEED = 11
INPUT_BYTES = 2048
GROWN_BYTES = 256  # of an input that is kept: small ones are read
ONE_INPUT_S = 10
MEMORY_MB = 2048
FACTS = ("number_of_executed_units", "average_exec_per_sec", "new_units_added", "peak_rss_mb")


def fuzz_one(target: str, arguments: list[str]) -> None:
    """Fuzz in this process; libFuzzer ends it."""
    import atheris  # noqa: PLC0415  the one part that needs it

    with atheris.instrument_imports(include=["broker", "config", "policy", "sandbox"]):
        from .targets import TARGETS  # noqa: PLC0415  so that what it imports is instrumented

    def keep_what_breaks(data: bytes) -> None:
        try:
            TARGETS[target](data)
        except BaseException:  # libFuzzer writes it as well, by the same name, unless an alarm ends it on the way
            (FINDINGS / f"{target}-crash-{hashlib.sha1(data, usedforsecurity=False).hexdigest()}").write_bytes(data)
            raise

    atheris.Setup([sys.argv[0], *arguments], keep_what_breaks)
    atheris.Fuzz()


def _run(target: str, seconds: int | None, seed: int, *, grow: bool) -> tuple[str, int, str]:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as fresh:
        bounds = [f"-max_len={INPUT_BYTES}", f"-timeout={ONE_INPUT_S}", f"-rss_limit_mb={MEMORY_MB}"]
        bounds += [f"-artifact_prefix={FINDINGS}/{target}-"]
        much = [f"-runs={INPUTS[target]}", f"-max_total_time={LONGEST_S}"]
        much = much if seconds is None else [f"-max_total_time={seconds}"]
        bounded = [*bounds, *much, f"-seed={seed}", "-print_final_stats=1"]
        status, said = _start(target, [*bounded, fresh, _kept(target)])
        if grow and not status:
            status, said = _start(target, [*bounds, f"-max_len={GROWN_BYTES}", "-merge=1", _kept(target), fresh])
    return target, status, said


def _start(target: str, arguments: list[str]) -> tuple[int, str]:
    command = [sys.executable, "-m", "tests.fuzz", "--one", target, *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, check=False)
    return done.returncode, done.stdout.decode(errors="replace")


def _kept(target: str) -> str:
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def main() -> int:
    if sys.argv[1:2] == ["--one"]:
        fuzz_one(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, help="for each target, instead of so many inputs")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the dice; {SEED} if not said")
    parser.add_argument("--grow", action="store_true", help="keep what reaches more")
    every = [path.name for path in sorted(CORPUS.iterdir())]
    parser.add_argument("targets", nargs="*", metavar="TARGET", default=every)
    options = parser.parse_args()
    FINDINGS.mkdir(exist_ok=True)
    broken = 0
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        runs = [
            pool.submit(_run, target, options.seconds, options.seed, grow=options.grow) for target in options.targets
        ]
        for run in concurrent.futures.as_completed(runs):
            target, status, said = run.result()
            facts = [line.split()[-1] for fact in FACTS for line in said.splitlines() if f"stat::{fact}:" in line]
            print(f"{target}: {' '.join(f'{n}={v}' for n, v in zip(FACTS, facts, strict=False))}", flush=True)
            if status:
                broken += 1
                print(f"{target} BROKE ({status}); the input is in {FINDINGS}/\n{said}", flush=True)
    print(f"{broken} of {len(runs)} targets broke")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
