"""Run a command in a throw-away guest: `python -m tests.guest [options] -- COMMAND...`.

Exit status: the command's own; 124 when its time ran out; 125 when the guest died under it; 126 when none came up; 77
when this machine has not what a guest needs. Every end that is not the command's own is explained on stderr.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import assert_never

import trio

from .accelerator import KVM, boots_to_try, remember
from .fetch import CACHE, NO_GUEST, ROOT, NoGuest, ensure_kernel
from .inside import Job, Sized
from .machine import Exited, Lost, Machine, Outcome, TimedOut, run_in_guest

TIMED_OUT = 124
GUEST_DIED = 125
NOT_UP = 126
TERMINATED = 128 + signal.SIGTERM
MEMORY_MAX_MIB = 2048
CPUS_MAX = 2


def main() -> int:
    """Get a kernel, boot it, run the command."""
    asked = _parser().parse_args()
    try:
        machine = Machine(kernel=ensure_kernel(CACHE, asked.kernel), memory_mib=asked.memory, cpus=CPUS_MAX)
    except NoGuest as why:
        return _say(f"no guest could be started: {why}", NO_GUEST)
    return trio.run(_until_sigterm, machine, _job(asked), asked)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.guest", description=__doc__)
    parser.add_argument("--user", action="store_true", help="run as a plain user with a delegated cgroup subtree")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds the command may take (600)")
    parser.add_argument("--memory", type=_memory, default=1536, metavar="MIB", help="the guest's memory (1536)")
    parser.add_argument("--rw", type=_folder, action="append", default=[], metavar="DIR", help="shared for writing")
    parser.add_argument("--share", type=_folder, action="append", default=[], metavar="DIR", help="needed from /tmp")
    parser.add_argument("--tmpfs", type=_sized, action="append", default=[], metavar="DIR=MIB", help="a small disk")
    parser.add_argument("--kernel", default="", metavar="SERIES", help="such as 6.1 (default: the newest there is)")
    parser.add_argument("--accelerator", choices=("auto", "kvm", "tcg"), default="auto")
    parser.add_argument("--verbose", action="store_true", help="say how long the boot took")
    parser.add_argument("command", nargs="+")
    return parser


def _memory(text: str) -> int:
    if not 256 <= int(text) <= MEMORY_MAX_MIB:
        raise argparse.ArgumentTypeError(f"256 to {MEMORY_MAX_MIB} MiB, not {text}")
    return int(text)


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"no such folder: {text}")
    return Path(text).absolute()


def _sized(text: str) -> Sized:
    path, _, size = text.rpartition("=")
    if not (path.startswith("/") and size.isdecimal()):
        raise argparse.ArgumentTypeError(f"not of the form /DIR=MIB: {text}")
    return Sized(path=Path(path), size_mib=int(size))


def _job(asked: argparse.Namespace) -> Job:
    return Job(
        command=(_absolute(asked.command[0]), *asked.command[1:]),
        working_dir=Path.cwd(),
        as_user=asked.user,
        memory_max_mib=asked.memory // 2,
        shared=tuple(dict.fromkeys([Path.cwd(), ROOT, *_environments(asked.command[0]), *asked.share])),
        writable=tuple(asked.rw),
        sized=tuple(asked.tmpfs),
    )


def _absolute(program: str) -> str:
    """Where the program is here: inside, PATH is the system's and knows no environment that is active here."""
    found = shutil.which(program)
    return program if found is None else str(Path(found).absolute())


def _environments(program: str) -> list[Path]:
    """The folders of the Python that runs us and of the program: bin/python alone is no Python."""
    found = shutil.which(program)
    programs = [] if found is None else [Path(found).absolute(), Path(found).resolve()]
    return [Path(sys.prefix), Path(sys.base_prefix), *(path.parent.parent for path in programs)]


async def _until_sigterm(machine: Machine, job: Job, asked: argparse.Namespace) -> int:
    """Run; SIGTERM cancels it, so that the guest is ended in the ordinary way."""
    status = TERMINATED
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
            status = await _run(machine, job, asked)
            nursery.cancel_scope.cancel()
    return status


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel(reason="SIGTERM")


async def _run(machine: Machine, job: Job, asked: argparse.Namespace) -> int:
    failed: list[str] = []
    for accelerator in await boots_to_try(machine, asked.accelerator, CACHE):
        outcome = await run_in_guest(machine, job, accelerator, timeout_s=asked.timeout)
        if not isinstance(outcome, Lost) or outcome.started:
            return _status(outcome, accelerator.name if asked.verbose else "")
        failed.append(f"{accelerator.name}: {outcome.why}\n{outcome.console}")  # nothing ran: another try is harmless
        if accelerator is KVM:
            remember(machine, outcome, CACHE)
    return _say("no guest came up\n" + "\n".join(failed), NOT_UP)


def _status(outcome: Outcome, accelerator: str) -> int:
    match outcome:
        case Exited(status=status, boot_s=boot_s):
            return _say(f"{accelerator}: up after {boot_s:.1f} s", status) if accelerator else status
        case TimedOut(after_s=after_s):
            return _say(f"the command's time ran out after {after_s:g} s; the guest was ended", TIMED_OUT)
        case Lost(why=why, console=console):
            return _say(f"the guest died while the command ran: {why}\n{console}", GUEST_DIED)
        case _:
            assert_never(outcome)


def _say(what: str, status: int) -> int:
    sys.stderr.write(f"guest: {what}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
