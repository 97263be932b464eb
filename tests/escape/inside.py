"""The same attacks through a real broker: its gateway decides, audits and performs; only HTTP is left out."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from broker.app import open_broker
from broker.calls import Answer, Call
from broker.gateway import Gateway
from broker.wiring import Foundation
from config.load import Config

from .attack import Attack
from .outside import lives_on, succeeded
from .rules import walls_rule
from .scene import Scene, filled, python
from .verdict import Layers, Round

RACE = Path(__file__).parent / "race.py"
RACES = 200
COMMAND_S = 60
UP_S = 60


@attrs.frozen(kw_only=True)
class Gate:
    """A broker's gateway, and one client of it."""

    gateway: Gateway
    script_session: str = ""
    """One session for all scripts: each goes to its own folder by itself."""

    async def call(self, tool: str, **arguments: object) -> Answer:
        call = Call(tool=tool, arguments=arguments, principal="attacker", client="escape", request_id="1")
        return await self.gateway.handle(call)

    async def ok(self, tool: str, **arguments: object) -> dict[str, Any]:
        answer = await self.call(tool, **arguments)
        assert not answer.is_error, answer.structured
        return answer.structured

    @asynccontextmanager
    async def session(self, working_dir: str) -> AsyncIterator[str]:
        """A session for one round."""
        session_id = (await self.ok("create_session", working_dir=working_dir))["session_id"]
        try:
            yield session_id
        finally:
            await self.call("kill_session", session_id=session_id, force=True)  # it may have done so itself

    async def layers(self, *, as_root: bool) -> Layers:
        """What a session says of its layers."""
        created = await self.ok("create_session")
        await self.ok("kill_session", session_id=created["session_id"], force=True)
        states = {layer["name"]: (layer["state"], layer["detail"]) for layer in created["isolation"]}
        return Layers(states=states, as_root=as_root)


@asynccontextmanager
async def open_gate(config: Config, foundation: Foundation) -> AsyncIterator[Gate]:
    """A broker for as long as the block lasts."""
    async with open_broker(config, foundation) as broker:
        gate = Gate(gateway=broker.gateway)
        async with gate.session("~") as session_id:
            yield attrs.evolve(gate, script_session=session_id)


async def run_inside(gate: Gate, scene: Scene, attack: Attack, way: str, words: Mapping[str, str]) -> Round:
    """Try *attack* from inside, one *way* of the two."""
    if attack.environment:
        return await _with_environment(gate, attack, words)
    if attack.call is not None and attack.call["tool"] == "create_session":
        arguments = {name: filled(value, words) for name, value in attack.call.items() if name != "tool"}
        return _seen(attack, words, await gate.call("create_session", **arguments))
    if attack.script is not None and not attack.alive and (attack.late or not attack.prepare):
        return _seen(attack, words, await _execute(gate, gate.script_session, _argv(attack, way, words)))
    async with gate.session(words["here"]) as session_id:
        if attack.races:
            return await _race(gate, scene, session_id, attack, words)
        if attack.call is not None:
            return _seen(attack, words, await gate.call(**_filled(attack.call, words), session_id=session_id))
        argv = _argv(attack, way, words)
        if attack.alive:
            return await _outlive(gate, session_id, argv, words)
        return _seen(attack, words, await _execute(gate, session_id, argv))


def _argv(attack: Attack, way: str, words: Mapping[str, str]) -> list[str]:
    if attack.argv is None:
        return [attack.program, f"{words['here']}/attack.py", words["mark"]]
    first = walls_rule(attack) if way == "walls" else attack.argv[0]
    return [filled(word, words) for word in (first, *attack.argv[1:])]


def _filled(values: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    return {name: filled(value, words) for name, value in values.items()}


async def _execute(gate: Gate, session_id: str, argv: list[str], **more: object) -> Answer:
    return await gate.call(
        "execute_command", session_id=session_id, argv=argv, confirm=True, timeout_seconds=COMMAND_S, **more
    )


def _seen(attack: Attack, words: Mapping[str, str], answer: Answer) -> Round:
    """Take an answer apart: a refusal is one only where nothing happened after all."""
    data = answer.structured
    said = data["stdout"] + data["stderr"] if "stdout" in data else json.dumps(data)
    through = succeeded(attack, words, said)
    refused = data["error_code"] if answer.is_error and "stdout" not in data and not through else ""
    return Round(through=through, refused=_by(refused), said=said[-400:])


def _by(code: str) -> str:
    """CMD_001 is the kernel's refusal to execute, not one that was decided before."""
    return "" if code.startswith("CMD") else code


async def _with_environment(gate: Gate, attack: Attack, words: Mapping[str, str]) -> Round:
    """Ask for the variables; where they are granted, run the command with them."""
    answer = await gate.call(
        "create_session", working_dir=words["here"], environment=_filled(attack.environment, words)
    )
    if answer.is_error:
        return _seen(attack, words, answer)
    session_id = answer.structured["session_id"]
    try:
        return _seen(attack, words, await _execute(gate, session_id, _argv(attack, "shipped", words)))
    finally:
        await gate.ok("kill_session", session_id=session_id, force=True)


async def _outlive(gate: Gate, session_id: str, argv: list[str], words: Mapping[str, str]) -> Round:
    """Kill the session once the daemon is up: its answer promises that nothing is left."""
    started = await gate.ok("execute_command", session_id=session_id, argv=argv, confirm=True, background=True)
    command = {"session_id": session_id, "command_id": started["command_id"]}
    said, cursor = "", 0
    with trio.fail_after(UP_S):
        while "UP" not in said:
            page = await gate.ok("read_output", **command, cursor=cursor, wait_seconds=5)
            said, cursor = said + page["data"], page["next_cursor"]
    await gate.ok("kill_session", session_id=session_id, force=True)
    return Round(through=lives_on(words), said=said)


async def _race(gate: Gate, scene: Scene, session_id: str, attack: Attack, words: Mapping[str, str]) -> Round:
    """Ask again and again while somebody swaps the file."""
    assert attack.call is not None
    outcome = Round(through=False)
    with swapping(scene, words):
        for _ in range(RACES):
            answer = await gate.call(**_filled(attack.call, words), session_id=session_id)
            outcome = _seen(attack, words, answer)
            if outcome.through:
                return outcome
    return attrs.evolve(outcome, refused="")  # the last of many answers is chance: all of them held


@contextlib.contextmanager
def swapping(scene: Scene, words: Mapping[str, str]) -> Any:
    """Swap `f` and `g` of the round without pause, outside the walls."""
    here = words["here"]
    process = subprocess.Popen(
        [python(), str(RACE), "swap", f"{here}/f", f"{here}/g"],
        stdout=subprocess.PIPE,
        env=scene.environment,
        **scene.ids,  # type: ignore[call-overload]  # a dict of three keywords
    )
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()
            process.wait()
