"""KVM where it works, TCG where it does not; whether it works is tried, once for each boot of this machine.

/dev/kvm alone proves nothing: some machines have one that starts no ordinary kernel, or starts it and hangs. So the
first run boots a guest with it that only says `true`, and keeps the verdict beside the kernel.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from .inside import Job
from .machine import Accelerator, Exited, Lost, Machine, Outcome, run_in_guest

KVM = Accelerator(name="kvm", options=("-accel", "kvm", "-cpu", "host"), boot_s=15)
TCG = Accelerator(name="tcg", options=("-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max"), boot_s=120)
PROBE_S = 10
DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


async def boots_to_try(machine: Machine, wanted: str, cache: Path) -> tuple[Accelerator, ...]:
    """Return what to boot with, in order, for *wanted* ("kvm", "tcg", "auto"); a failed TCG boot gets another try."""
    if wanted == "kvm":
        return (KVM,)
    if wanted == "auto" and await _kvm_works(machine, cache):
        return (KVM, TCG)
    return (TCG, TCG)


async def _kvm_works(machine: Machine, cache: Path) -> bool:
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return False
    verdict = _remembered(machine, cache)
    if verdict is None:
        outcome = await run_in_guest(machine, Job(command=("true",), working_dir=Path("/")), KVM, timeout_s=PROBE_S)
        verdict = remember(machine, outcome, cache)
    return verdict


def remember(machine: Machine, outcome: Outcome, cache: Path) -> bool:
    """Keep, until this machine boots again, whether KVM starts this kernel; a No is said on stderr, once."""
    works = isinstance(outcome, Exited) and outcome.status == 0
    if not works:
        why = (
            ": ".join([outcome.why, *outcome.console.splitlines()[-1:]]) if isinstance(outcome, Lost) else f"{outcome}"
        )
        sys.stderr.write(f"guest: /dev/kvm is there but does not work ({why}); slow emulation is used instead\n")
    written = _verdict_file(machine, cache).with_suffix(f".{os.getpid()}")
    written.write_text(json.dumps({"boot": BOOT_ID.read_text().strip(), "works": works}))
    written.replace(_verdict_file(machine, cache))
    return works


def _remembered(machine: Machine, cache: Path) -> bool | None:
    try:
        kept = json.loads(_verdict_file(machine, cache).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return bool(kept["works"]) if kept["boot"] == BOOT_ID.read_text().strip() else None


def _verdict_file(machine: Machine, cache: Path) -> Path:
    return cache / f"kvm-{machine.kernel.release}.json"
