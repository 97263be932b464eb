"""What a round means: pure.

A fence claims an attack where its layer is enforced. What gets through against a claim is a finding, what gets through
without one is open and says which layer would close it; what is held although nothing claims it is a fault of the row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import attrs

from .attack import ALWAYS, Attack, Fence

State = Literal["held", "open", "finding", "unclaimed", "skipped"]
WAYS = ("shipped", "walls")


@attrs.frozen(kw_only=True)
class Round:
    """What was seen. `refused`: the error code of a call that was refused before anything ran."""

    through: bool
    refused: str = ""
    said: str = ""


@attrs.frozen(kw_only=True)
class Verdict:
    """`by`: the fence that decided; or, where it is open, what would close it; or why it was not tried."""

    state: State
    by: str
    said: str = ""


@attrs.frozen(kw_only=True)
class Layers:
    """What the session says of its layers: name to (state, detail)."""

    states: Mapping[str, tuple[str, str]]
    as_root: bool

    def holds(self, fence: Fence) -> bool:
        """Whether *fence* claims to hold here."""
        if fence.layer in ALWAYS:
            return True
        state, detail = self.states[fence.layer]
        if fence.says not in detail:
            return False
        if fence.layer == "landlock":
            found = re.match(r"ABI (\d+)", detail)
            return state != "unavailable" and found is not None and int(found[1]) >= fence.abi
        if fence.layer == "user":  # a plain user's broker has the same user as its sessions
            return self.as_root and state == "enforced"
        return state == "enforced" or (fence.partial and state == "partial")


def judge(attack: Attack, way: str, seen: Round, layers: Layers) -> Verdict:
    """Decide what *seen* means for this attack this way: `shipped` with the policy's help, `walls` without."""
    fences = attack.fences if way == "shipped" else attack.kernel_fences
    claims = [fence for fence in fences if layers.holds(fence)]
    if seen.through:
        if claims:
            return Verdict(state="finding", by=str(claims[0]), said=seen.said)
        needs = " or ".join(str(fence) for fence in fences) or "nothing there is"
        return Verdict(state="open", by=needs)
    if seen.refused:
        by = "policy" if seen.refused.startswith("POLICY") else "file_tools"
        known = any(fence.layer == by for fence in fences)
        return Verdict(state="held" if known else "unclaimed", by=by, said=seen.said)
    stands = [fence for fence in claims if fence.layer != "policy"]
    if not stands:
        return Verdict(state="unclaimed", by="nothing that the row names", said=seen.said)
    return Verdict(state="held", by=str(stands[0]))
