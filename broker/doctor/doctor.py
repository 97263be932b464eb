"""`python -m broker doctor`: attacks every layer from inside a throw-away session with the operator's configuration.

The session is born as a real one is, with the same walls. What attacks them is no program but
`sandbox/inside/init/attacks.py`, which only this session has loaded: nothing more may be executed than in a real one.
Each attack is tried first by the same user without walls. The broker's logs are not written, only what is owed to them
is told; what is listened on is a port of this run's own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import trio

from broker.access.peerwatch import open_watch
from broker.audit.run import read_runs
from broker.doctor.approaches import absent, take_back
from broker.doctor.checks import CHECKS, MEMORY_BYTES, NAMES, TASKS, Attempt, Check, Line, judge, skipped
from broker.doctor.fixtures import Fixtures, control_command, open_fixtures
from broker.doctor.own_port import open_own_port
from broker.http.sockets import ListenFailed
from broker.scope import Host
from broker.session.aftermath import Listeners
from broker.session.resources import tend
from broker.session.supervisor import SupervisorSettings, open_supervisor
from broker.wiring import Foundation, build_host
from config.load import Config
from sandbox.cgroup.layer import open_groups
from sandbox.commands.run import open_command, run_command
from sandbox.commands.values import Ended, ExecPlan, Times
from sandbox.errors import BirthFailed
from sandbox.init.init import Init
from sandbox.init.launcher import open_launcher
from sandbox.plan.limits import Limits
from sandbox.plan.plan import LayerReport, LayerUnavailable
from sandbox.sniffing import open_sniffing

if TYPE_CHECKING:
    from sandbox.protocol.commands import Attack, AttackSaid

CANNOT_EXAMINE = (BirthFailed, ListenFailed, OSError)
"""What `examine` raises where there can be no session, alone or in a group."""
ATTACK_S = 30.0
MAKING = ("write_file", "make_file")
"""Attacks that make the file at `path`."""
OUTPUT_BYTES = 4096
SMALL = Limits(memory_max_bytes=MEMORY_BYTES * 4 // 3, pids_max=TASKS // 2)


@attrs.frozen(kw_only=True)
class Diagnosis:
    """Result of the doctor: the layers of a session here, and what became of every attack on them."""

    layers: tuple[LayerReport, ...]
    lines: tuple[Line, ...]
    audit: tuple[str, ...] = ()
    """What the brokers that write this audit log say that they owe it."""

    @property
    def holds(self) -> bool:
        """Whether everything that is claimed holds."""
        return all(line.state != "FAIL" for line in self.lines)


async def examine(config: Config, foundation: Foundation) -> Diagnosis:
    """Start the throw-away session and attack it.

    Raises:
        BirthFailed, ListenFailed, LayerUnavailable, OSError: there can be no session, or no port.
    """
    async with _open_host(config, foundation) as host:
        with open_fixtures(host, config) as around:
            async with (
                host.launcher.open_init(host.walls(around.inside)) as init,
                _open_port(host, foundation, around) as around_and_port,
            ):
                lines = [await _check(host, init, around_and_port, check) for check in CHECKS]
                audit = tuple(_owed(config.server.logging.audit_log))
                return Diagnosis(layers=init.layers, lines=tuple(lines), audit=audit)


def _owed(log: Path) -> Iterator[str]:
    """A sentence for each broker that writes to this log, or did until it was lost."""
    for note, alive in read_runs(log):
        who = f"run {note.run} (pid {note.pid}, since {note.started})"
        owed = f"{note.owed} records, lost {note.lost}" if note.owed or note.lost else "nothing"
        if alive:
            yield f"{who} writes it and owes {owed}"
        else:
            yield f"{who} ended without a word and owed {owed}; the next start records it"


@asynccontextmanager
async def _open_port(host: Host, foundation: Foundation, around: Fixtures) -> AsyncIterator[Fixtures]:
    """A port as a broker with this configuration would have, which minds who connects."""
    try:
        watch = open_watch(foundation.plan, foundation.user, host.launcher, _forget, _forget)
    except LayerUnavailable as refused:
        yield attrs.evolve(around, missing={**around.missing, "own_port": f"there is no start with a port: {refused}"})
    else:
        async with open_own_port(watch) as address:
            yield attrs.evolve(around, facts={**around.facts, "own_port": address})


@asynccontextmanager
async def _open_host(config: Config, foundation: Foundation) -> AsyncIterator[Host]:
    """Open what the tools of a broker would work with, but for an audit."""
    server = config.server
    settings = SupervisorSettings(idle_s=server.sessions.max_session_age, max_concurrent=1)
    async with (
        open_groups(foundation.cgroup, server.sandbox, foundation.limit_files) as (groups, layer),
        open_launcher(attrs.evolve(foundation.plan.with_cgroup(layer), besieged=True), groups) as launcher,
        open_sniffing(say=_forget) as sniffing,
        open_supervisor(settings, wait_lost=tend, on_end=_forget, drain_s=server.drain_s) as supervisor,
    ):
        layers, look, nobody = foundation.plan.layers, sniffing.look, Listeners(on_end=_forget, on_appeared=_forget)
        yield build_host(config, foundation, launcher, supervisor, layers, look, _forget, nobody)


def _forget(*_: object) -> None:
    """Take no note: the doctor's session has no transfers and no commands."""


async def _check(host: Host, init: Init, around: Fixtures, check: Check) -> Line:
    for need in check.needs:
        if need in around.missing:
            return skipped(check, around.missing[need])
    spec = {"attack": check.attack, "control": False, **check.given}
    spec |= {NAMES.get(need, need): around.facts[need] for need in check.needs}
    with _taking_back(check, spec):
        before = await _outside(host, check, spec)
    if not before.through:
        return skipped(check, f"it does not work without walls either: {before.said}")
    with _taking_back(check, spec):
        attempt = await (
            _outlive(init, around, spec) if check.attack == "daemon" else _inside(init, around, check, spec)
        )
        attempt = _seen_outside(check, spec, attempt)
    return judge(check, attempt, init.layers, as_root=os.geteuid() == 0)


@contextlib.contextmanager
def _taking_back(check: Check, spec: Mapping[str, Any]) -> Iterator[None]:
    """Take back what an attack made: inside it is to be done again, and afterwards it is to be gone."""
    made = absent(spec["path"]) if check.attack in MAKING else []
    try:
        yield
    finally:
        take_back(made)


def _seen_outside(check: Check, spec: Mapping[str, Any], attempt: Attempt) -> Attempt:
    """Return what an attempt inside comes to: a file that it made in the session's own /tmp is nobody else's."""
    if check.attack in MAKING and attempt.through and not os.path.lexists(spec["path"]):
        return Attempt(through=False, said=f"{spec['path']} was made in a place of the session's own, not outside")
    return attempt


async def _outside(host: Host, check: Check, spec: Mapping[str, Any]) -> Attempt:
    command = control_command(spec, host.user, as_broker=check.as_broker)
    if check.attack == "daemon":
        return await _outlive_outside(command, spec)
    with trio.move_on_after(ATTACK_S):
        done = await trio.run_process(command, env={}, capture_stdout=True, stderr=subprocess.DEVNULL, check=False)
        return _heard(done.stdout, "it ended without a word")
    return Attempt(through=False, said=f"no end after {ATTACK_S:g} s")


async def _inside(init: Init, around: Fixtures, check: Check, spec: Mapping[str, Any]) -> Attempt:
    ended = await run_command(
        init,
        attrs.evolve(_plan(around, spec, SMALL if check.limited else None), network=check.network),
        Times(timeout_s=ATTACK_S, grace_s=0, drain_s=1),
        output_bytes=OUTPUT_BYTES,
    )
    return _heard(ended.stdout.data, _end(ended))


def _plan(around: Fixtures, spec: Mapping[str, Any], limits: Limits | None = None) -> ExecPlan:
    return ExecPlan(program="", argv=(), env={}, cwd=around.inside, limits=limits, attack=cast("Attack", spec))


def _end(ended: Ended) -> str:
    return str(ended.how)


def _heard(output: bytes, otherwise: str) -> Attempt:
    """Take the attack's last word; one that was killed has none, and so did not get through."""
    lines = output.splitlines()
    if not lines:
        return Attempt(through=False, said=otherwise)
    word: AttackSaid = json.loads(lines[-1])
    return Attempt(through=word["through"], said=word["said"])


async def _outlive_outside(command: list[str], spec: Mapping[str, Any]) -> Attempt:
    """Kill the daemon's leader, as a supervisor without walls would; then look for the daemon."""
    with _pipe() as (read, write):
        process = await trio.lowlevel.open_process(command, env={}, stdin=write, stdout=subprocess.DEVNULL)
        said = await _wait_up(read, write)
        process.kill()
        await process.wait()
    attempt = _outlived(spec)
    if attempt.through and said:
        os.kill(int(said), signal.SIGKILL)  # it holds its lock, so the number is still its own
    return attempt


async def _outlive(init: Init, around: Fixtures, spec: Mapping[str, Any]) -> Attempt:
    """Kill the command once its daemon is up, and look for the daemon."""
    with _pipe() as (read, write):
        plan = attrs.evolve(_plan(around, spec), stdin_fd=write)
        async with open_command(init, plan, output_bytes=OUTPUT_BYTES) as command:
            said = await _wait_up(read, write)
            await command.kill()
    return _outlived(spec) if said else Attempt(through=False, said="it could not be started")


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """A pipe; whoever hands its second end over closes that."""
    read, write = os.pipe()
    try:
        yield read, write
    finally:
        os.close(read)


async def _wait_up(read: int, write: int) -> bytes:
    """Wait for the daemon's word, or for the end of everybody who could say it."""
    os.close(write)
    with trio.fail_after(ATTACK_S):
        await trio.lowlevel.wait_readable(read)
    return os.read(read, 32)


def _outlived(spec: Mapping[str, Any]) -> Attempt:
    alive = _is_locked(spec["path"])
    return Attempt(through=alive, said="the daemon lives on" if alive else "the daemon ended with it")


def _is_locked(path: str) -> bool:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def spoken(diagnosis: Diagnosis) -> Iterable[str]:
    """The diagnosis as lines for a person."""
    yield "Layers of a session on this machine:"
    for layer in diagnosis.layers:
        yield f"  {layer.name:<16} {layer.state:<12} {layer.detail}"
    yield "Attacks from inside one; each worked without walls first:"
    for line in diagnosis.lines:
        yield f"  {line.state:<11} {line.title}: {line.detail}"
    if diagnosis.audit:
        yield "The audit log:"
        yield from (f"  {sentence}" for sentence in diagnosis.audit)
    states = [line.state for line in diagnosis.lines]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    yield f"{counts}. " + (
        "All that is claimed holds." if diagnosis.holds else "Something that is claimed does not hold."
    )


def as_json(diagnosis: Diagnosis) -> str:
    """The diagnosis for a program."""
    return json.dumps({"holds": diagnosis.holds, **attrs.asdict(diagnosis)}, indent=1)
