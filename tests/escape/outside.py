"""The positive control: the same attack by the same user without any fence, where it must succeed.

What does not succeed here proves nothing inside, so its round is a visible skip with what was seen.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import trio

from .attack import Attack
from .scene import Scene, filled, python
from .verdict import Round

CONTROL_S = 60  # a net: an emulated guest is slow
UP = b"UP"


async def run_outside(scene: Scene, attack: Attack, words: Mapping[str, str]) -> Round:
    """Run the control and say whether it got through."""
    argv = [filled(word, words) for word in control_argv(attack)]
    if attack.alive:
        return await _outlive(scene, argv, words)
    said = await _run(scene, attack, argv, words)
    return Round(through=succeeded(attack, words, said), said=said[-400:])


def control_argv(attack: Attack) -> list[str]:
    """Return what is run: the row's own command line, or the attack itself."""
    if attack.control is not None:
        return list(attack.control)
    if attack.argv is not None:
        return list(attack.argv)
    if attack.races:
        return [python(), "{race}", "read", "{here}/f", "{outside}"]
    return [python(), "{here}/attack.py", "{mark}"]


def succeeded(attack: Attack, words: Mapping[str, str], said: str) -> bool:
    """Whether the attack's own sign of success is there; a signal is looked for elsewhere."""
    if attack.output:
        return filled(attack.output, words) in said
    return bool(attack.success_file) and os.path.lexists(filled(attack.success_file, words))


def _identity(scene: Scene, attack: Attack) -> dict[str, int | list[int]]:
    return {} if attack.control_as == "broker" else scene.ids


async def _run(scene: Scene, attack: Attack, argv: list[str], words: Mapping[str, str]) -> str:
    environment = {name: filled(value, words) for name, value in {**attack.operator_env, **attack.environment}.items()}
    if attack.argv is not None and "/" not in argv[0]:
        argv = [words["program"], *argv[1:]]
    done: subprocess.CompletedProcess[bytes] | None = None
    with trio.move_on_after(CONTROL_S):
        done = await trio.run_process(
            argv,
            cwd=words["here"],
            env={**scene.environment, **environment},
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
            start_new_session=True,
            deliver_cancel=_kill_group,
            **_identity(scene, attack),
        )
    return "no end in time" if done is None else done.stdout.decode(errors="replace")


async def _kill_group(process: trio.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
        os.killpg(process.pid, signal.SIGKILL)


async def _outlive(scene: Scene, argv: list[str], words: Mapping[str, str]) -> Round:
    """Kill the attack's group once its daemon is up, as a supervisor without walls would."""
    process = await trio.lowlevel.open_process(
        argv,
        cwd=words["here"],
        env=scene.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        **scene.ids,
    )
    assert process.stdout is not None
    said = b""
    with trio.fail_after(CONTROL_S):
        while UP not in said and (more := await process.stdout.receive_some()):
            said += more
    os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    await process.stdout.aclose()
    return Round(through=lives_on(words), said=said.decode(errors="replace"))


def lives_on(words: Mapping[str, str]) -> bool:
    """Whether the daemon of a round, or anything it forked, holds its lock; whatever does is ended."""
    fd = os.open(f"{words['here']}/lock", os.O_RDWR)
    try:
        alive = not _locked(fd)
        Path(f"{words['here']}/stop").touch()  # for one that is a new process whenever we look
        while alive and not _locked(fd):
            _kill_marked(words["mark"])
    finally:
        os.close(fd)
    return alive


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _kill_marked(mark: str) -> None:
    """Kill what carries *mark* among its arguments: it is ours."""
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):  # it ended while we looked
            if name.isdigit() and mark.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                os.kill(int(name), signal.SIGKILL)
