"""One guest: its QEMU, from the first instruction to the command's exit status, bounded in time at each step.

QEMU dies with us, whatever ends us: by our hand in the ordinary way, by the kernel (PDEATHSIG) when we are killed.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import trio

from .fetch import Kernel
from .inside import STAGE_ONE, Job, stage_two
from .ports import Lines, pass_on
from .unpack import cpio

STDOUT, STDERR = 1, 2
PORTS = ("out", "err", "control")
DIRECTORIES = ("bin", "dev", "proc", "sys", "host", "memory", "modules")
DRAIN_S = 10
REAP_S = 10
TAIL_BYTES = 3000
KERNEL_LINE = (
    "console=ttyS0 loglevel=4 panic=-1 oops=panic nokaslr mitigations=off tsc=reliable random.trust_cpu=on "
    "cgroup_no_v1=all lsm=landlock,lockdown,yama,bpf"
)


@attrs.frozen(kw_only=True)
class Accelerator:
    """How QEMU runs the guest's instructions, and how long a boot may take that way."""

    name: str
    options: tuple[str, ...]
    boot_s: float


@attrs.frozen(kw_only=True)
class Machine:
    """The guest's hardware."""

    kernel: Kernel
    memory_mib: int
    cpus: int


@attrs.frozen(kw_only=True)
class Exited:
    """The command ended by itself."""

    status: int
    boot_s: float


@attrs.frozen(kw_only=True)
class TimedOut:
    """The command was still running; the guest was ended."""

    after_s: float


@attrs.frozen(kw_only=True)
class Lost:
    """There was no guest, or there was one no longer; `started` says whether the command may have begun."""

    started: bool
    why: str
    console: str


Outcome = Exited | TimedOut | Lost


@attrs.define(eq=False)
class _Guest:
    """A running QEMU with our ends of its ports; owned by `_open_guest`."""

    process: subprocess.Popen[bytes]
    out: trio.SocketStream
    err: trio.SocketStream
    control: trio.SocketStream


async def run_in_guest(machine: Machine, job: Job, accelerator: Accelerator, *, timeout_s: float) -> Outcome:
    """Boot a guest, run the job's command in it, pass its output on, end the guest.

    Args:
        timeout_s: how long the command may run; the boot has its own bound.
    Cancellation: QEMU is killed and reaped before Cancelled leaves.
    """
    mark = f"\x1eguest-{secrets.token_hex(16)}\x1e"  # a byte that output rarely has: less is held back
    with (
        tempfile.TemporaryDirectory(prefix="guest-") as scratch,
        _open_guest(machine, job, accelerator, mark, Path(scratch)) as guest,
    ):
        outcome = await _follow(guest, mark.encode(), accelerator.boot_s, timeout_s)
        if isinstance(outcome, Lost):
            return attrs.evolve(outcome, console=_tails(Path(scratch)))
        return outcome


async def _follow(guest: _Guest, mark: bytes, boot_s: float, timeout_s: float) -> Outcome:
    drained = (trio.Event(), trio.Event())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pass_on, guest.out, mark, STDOUT, drained[0])
        nursery.start_soon(pass_on, guest.err, mark, STDERR, drained[1])
        outcome = await _outcome(Lines(guest.control), boot_s, timeout_s)
        if not isinstance(outcome, TimedOut):
            with trio.move_on_after(DRAIN_S):
                for event in drained:
                    await event.wait()
        nursery.cancel_scope.cancel()
    return outcome


async def _outcome(control: Lines, boot_s: float, timeout_s: float) -> Outcome:
    began = trio.current_time()
    with trio.move_on_after(boot_s) as booting:
        if await control.receive() is None:
            return Lost(started=False, why="QEMU ended before the guest was up", console="")
    if booting.cancelled_caught:
        return Lost(started=False, why=f"the guest was not up after {boot_s:g} s", console="")
    up = trio.current_time()
    with trio.move_on_after(timeout_s):
        line = await control.receive()
        if line is None:
            return Lost(started=True, why="QEMU ended before the command did", console="")
        return Exited(status=int(line.removeprefix("status ")), boot_s=up - began)
    return TimedOut(after_s=timeout_s)


@contextlib.contextmanager
def _open_guest(machine: Machine, job: Job, accelerator: Accelerator, mark: str, scratch: Path) -> Iterator[_Guest]:
    scratch.joinpath("initramfs").write_bytes(_initramfs(machine.kernel, job, mark))
    pairs = [socket.socketpair() for _ in PORTS]
    theirs = [pair[1] for pair in pairs]
    try:
        # Started from the main thread: PDEATHSIG follows the thread, and trio's own threads end when idle.
        with scratch.joinpath("qemu.log").open("wb") as log:
            command = _command(machine, job, accelerator, scratch, [end.fileno() for end in theirs])
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[end.fileno() for end in theirs]
            )
        for end in theirs:
            end.close()
        try:
            yield _Guest(process, *(trio.SocketStream(trio.socket.from_stdlib_socket(pair[0])) for pair in pairs))
        finally:
            process.kill()
            process.wait(REAP_S)
    finally:
        for end in (end for pair in pairs for end in pair):
            end.close()


def _initramfs(kernel: Kernel, job: Job, mark: str) -> bytes:
    files = {"init": STAGE_ONE.encode(), "stage-two": stage_two(job, mark).encode()}
    files["bin/busybox"] = Path("/bin/busybox").read_bytes()
    files |= {f"modules/{path.name}": path.read_bytes() for path in kernel.modules}
    return cpio(files, DIRECTORIES)


def _command(machine: Machine, job: Job, accelerator: Accelerator, scratch: Path, ends: list[int]) -> list[str]:
    command = ["setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64", "-machine", "q35", *accelerator.options]
    command += ["-m", f"{machine.memory_mib}M", "-smp", str(machine.cpus)]
    command += [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-serial",
        f"file:{scratch}/console",
    ]
    command += ["-kernel", str(machine.kernel.image), "-initrd", f"{scratch}/initramfs", "-append", KERNEL_LINE]
    command += ["-device", "virtio-serial-pci"]
    for number, (name, end) in enumerate(zip(PORTS, ends, strict=True), start=1):
        command += ["-chardev", f"socket,id={name},fd={end}", "-device", f"virtserialport,chardev={name},nr={number}"]
    for tag, path in [("host", "/"), *((f"rw{number}", str(path)) for number, path in enumerate(job.writable))]:
        readonly = "on" if tag == "host" else "off"
        share = f"local,mount_tag={tag},path={path.replace(',', ',,')},readonly={readonly}"
        command += ["-virtfs", f"{share},security_model=none,multidevs=remap"]
    return command


def _tails(scratch: Path) -> str:
    """The last words of the guest's kernel and of QEMU."""
    logs = [(name, (scratch / name).read_bytes()) for name in ("console", "qemu.log") if (scratch / name).exists()]
    return "\n".join(f"--- {name}\n{log[-TAIL_BYTES:].decode(errors='replace').strip()}" for name, log in logs if log)
