"""The catalogue as values: what an attack does, what it needs, how its success shows, which fences claim to stop it.

The rows are in `catalogue/*.yaml`, one file per vector, loaded strictly. Nothing here runs anything.

A fence is a layer of the broker's isolation report, or one of these three, which always stand: `policy` (the decision
refuses the call), `environment` (built from nothing), `file_tools` (they refuse by their own rules). A number behind
`landlock` is the ABI from which it has what stops the attack; `partial` behind a layer says that the part of it which
is meant holds even where the layer as a whole is reported as partial; and what follows a colon is what it must say of
itself to claim the attack.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import yaml
from cattrs import Converter

CATALOGUE = Path(__file__).parent / "catalogue"
ALWAYS = ("policy", "environment", "file_tools")


@attrs.frozen(kw_only=True)
class Fence:
    """See the module."""

    layer: str
    abi: int = 1
    partial: bool = False
    says: str = ""

    @classmethod
    def parse(cls, text: str) -> Fence:
        text, _, says = text.partition(": ")
        layer, _, more = text.partition(" ")
        if more == "partial":
            return cls(layer=layer, partial=True, says=says)
        return cls(layer=layer, abi=int(more or 1), says=says)

    def __str__(self) -> str:
        return f"{self.layer} (ABI {self.abi})" if self.abi > 1 else self.layer


@attrs.frozen(kw_only=True)
class Attack:
    """One row. Exactly one of `argv`, `script` and `call` says what is done; see README.md for the places in braces."""

    name: str
    does: str
    vector: str = ""
    needs: tuple[str, ...] = ()
    """Programs, by absolute path, without which the attack cannot be tried."""
    prepare: str = ""
    """A shell script that furnishes `{here}`, outside the walls, as the session's user."""
    argv: tuple[str, ...] | None = None
    """A command line as an agent types it."""
    script: str | None = None
    """A Python program for an interpreter that the policy allows."""
    call: Mapping[str, Any] | None = None
    """`tool` and arguments of a file tool."""
    rule: str = ""
    """Which rule of the policy runs a script; python3 by default."""
    environment: Mapping[str, str] = attrs.field(factory=dict)
    """Variables that the session asks for."""
    operator_env: Mapping[str, str] = attrs.field(factory=dict)
    """For `walls`: what an operator's rule would have to set so that the environment does not stop the attack."""
    control: tuple[str, ...] | None = None
    """The command line of the control, where it is another one."""
    control_as: str = "user"
    """Who the control runs as: the session's `user`, or the `broker`'s own, where other ids are the fence."""
    file: str = ""
    """Success: this file is there afterwards. `{here}/ran` unless another success is named."""
    output: str = ""
    """Success: this is in the output."""
    alive: bool = False
    """Success: a process with the mark lives on after the command was killed."""
    signalled: bool = False
    """Success: a signal waits in the victim."""
    races: bool = False
    """`{here}/f` is swapped without pause between a file and a link to the secret while the call is repeated."""
    fences: tuple[Fence, ...]
    late: bool = False
    """The session is there before what `prepare` makes."""
    guest: bool = False
    """Part of what is tried again in a guest, where every program takes its time."""

    @property
    def program(self) -> str:
        """The name of the policy's rule under which it runs."""
        return self.argv[0] if self.argv else self.rule or "python3"

    @property
    def success_file(self) -> str:
        """The file whose presence is the success, if a file is."""
        return self.file or ("" if self.output or self.alive or self.signalled else "{here}/ran")

    @property
    def kernel_fences(self) -> tuple[Fence, ...]:
        """Those of its fences that stand without the policy's look at the arguments."""
        return tuple(fence for fence in self.fences if fence.layer not in ALWAYS)


def load_catalogue() -> tuple[Attack, ...]:
    """Read every row; names are unique, and every row says one thing to do."""
    attacks = tuple(attack for path in sorted(CATALOGUE.glob("*.yaml")) for attack in _load(path))
    names = [attack.name for attack in attacks]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
    for attack in attacks:
        ways = (attack.argv is not None, attack.script is not None, attack.call is not None)
        assert sum(ways) == 1, attack.name
    return attacks


def _load(path: Path) -> list[Attack]:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    snippets: dict[str, str] = document.get("snippets", {})
    converter = _converter()
    rows = [_with_snippets(row, snippets) for row in document["attacks"]]
    return [converter.structure({**row, "vector": document["vector"]}, Attack) for row in rows]


def _with_snippets(row: dict[str, Any], snippets: dict[str, str]) -> dict[str, Any]:
    row = dict(row)
    for field in ("prepare", "script"):
        for name, text in snippets.items():
            if field in row:
                row[field] = row[field].replace(f"{{{name}}}", text.rstrip())
    return row


def _converter() -> Converter:
    converter = Converter(forbid_extra_keys=True)
    converter.register_structure_hook(Fence, lambda text, _: Fence.parse(text))
    return converter
