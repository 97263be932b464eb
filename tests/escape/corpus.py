"""One run of the catalogue: every attack outside, then inside, then judged. One broker serves the whole run."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from broker.wiring import lay_foundation
from config.load import load_config
from sandbox.machine.claims import Claims

from .attack import Attack
from .inside import RACE, Gate, open_gate, run_inside, swapping
from .outside import run_outside
from .rules import has_walls, write_configuration
from .scene import AS_ROOT, Scene, Victim, filled, furnish, open_ground, open_scene, open_victim, round_name
from .verdict import Layers, Round, Verdict, judge


@attrs.frozen(kw_only=True)
class Result:
    """What became of one attack; `walls` is there where the kernel alone was tried too."""

    attack: Attack
    shipped: Verdict
    walls: Verdict | None


@attrs.frozen(kw_only=True)
class Run:
    """A whole run."""

    layers: Layers
    results: tuple[Result, ...]


async def run_corpus(attacks: Sequence[Attack], tell: Callable[[Result], None], *, namespaces: bool = True) -> Run:
    """Try all of *attacks*, also as on a host without *namespaces*; *tell* hears of each as it is judged."""
    with open_ground() as ground, Claims() as claims:
        config = load_config(write_configuration(ground, attacks, namespaces=namespaces))
        foundation = lay_foundation(config, claims)
        programs = {name: rule.executable for name, rule in config.policy.allowed_commands.items()}
        async with open_scene(ground, foundation.user, programs) as scene, open_gate(config, foundation) as gate:
            layers = await gate.layers(as_root=AS_ROOT)
            results = []
            for attack in attacks:
                result = await _try(gate, scene, attack, layers)
                results.append(result)
                tell(result)
    return Run(layers=layers, results=tuple(results))


async def _try(gate: Gate, scene: Scene, attack: Attack, layers: Layers) -> Result:
    ways = ("shipped", "walls") if has_walls(attack) else ("shipped",)
    why_not = _missing(scene, attack) or await _control(scene, attack)
    if why_not:
        skipped = Verdict(state="skipped", by=why_not)
        return Result(attack=attack, shipped=skipped, walls=skipped if "walls" in ways else None)
    verdicts = {way: judge(attack, way, await _inside(gate, scene, attack, way), layers) for way in ways}
    return Result(attack=attack, shipped=verdicts["shipped"], walls=verdicts.get("walls"))


def _missing(scene: Scene, attack: Attack) -> str:
    words = scene.ground.words("")
    missing = [need.strip("{}") for need in attack.needs if not os.path.exists(filled(need, words))]
    return f"{', '.join(missing)} is not there" if missing else ""


async def _control(scene: Scene, attack: Attack) -> str:
    """Return why the attack cannot be tried here: it does not work without walls either."""
    try:
        with _stage(scene, attack, "control") as stage, contextlib.ExitStack() as stack:
            if attack.races:
                stack.enter_context(swapping(scene, stage.words))
            seen = stage.with_signal(await run_outside(scene, attack, stage.words))
    except subprocess.CalledProcessError as error:
        return f"it could not be prepared: {_short(error.stderr.decode(errors='replace'))}"
    except OSError as error:
        return f"the control could not be started: {error}"
    return "" if seen.through else f"it does not work without walls either: {_short(seen.said)}"


def _short(text: str) -> str:
    return " ".join(text.split())[-160:]


async def _inside(gate: Gate, scene: Scene, attack: Attack, way: str) -> Round:
    with _stage(scene, attack, way) as stage:
        return stage.with_signal(await run_inside(gate, scene, attack, way, stage.words))


@attrs.frozen(kw_only=True)
class Stage:
    """One round's places, and the victim of attacks that want one."""

    words: Mapping[str, str]
    victim: Victim | None

    def with_signal(self, seen: Round) -> Round:
        """What was *seen*, and whether a signal reached the victim."""
        return attrs.evolve(seen, through=seen.through or (self.victim is not None and self.victim.signalled()))


@contextlib.contextmanager
def _stage(scene: Scene, attack: Attack, way: str) -> Iterator[Stage]:
    """Furnish a round; raises CalledProcessError where the row's preparation fails."""
    with contextlib.ExitStack() as stack:
        wanted = attack.signalled or "{victim" in (attack.script or "") + attack.output
        victim = stack.enter_context(open_victim(scene)) if wanted else None
        words = _words(scene, attack, way, victim)
        furnish(scene, attack, words)
        try:
            yield Stage(words=words, victim=victim)
        finally:
            made = Path(filled(attack.success_file, words))
            if made.is_file() and not made.is_relative_to(scene.ground.base):  # nobody else would remove it
                made.unlink()


def _words(scene: Scene, attack: Attack, way: str, victim: Victim | None) -> dict[str, str]:
    """Every place in braces for one round."""
    words = {
        **scene.ground.words(round_name(attack, way)),
        **scene.services,
        "mark": f"mark-{secrets.token_hex(8)}",
        "broker": str(os.getpid()),
        "race": str(RACE),
        "program": scene.programs.get(attack.program, attack.program),
    }
    if victim is not None:
        words |= {"victim": str(victim.pid), "victim_secret": victim.secret, "victim_mark": victim.mark}
    outside = way == "control"  # where those above are the tests themselves: the victim stands in for them
    return {
        **words,
        "stand_in": words.get("victim", "None") if outside else "None",
        "above": "[]" if outside else "ancestors()",
    }
