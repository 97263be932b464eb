"""Layer of control groups, from the settings to what is said of it: where they can be made, and what they limit.

`look` finds a place without changing anything, before the broker decides whether to start; `open_groups` makes the
broker's tree there. What stands in the way of either is the layer's report, with its remedy. Outside the walls.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import attrs

from sandbox.cgroup.group import CgroupFault, Group
from sandbox.cgroup.place import NoCgroup, find_base
from sandbox.cgroup.tree import Tree, open_tree
from sandbox.plan.plan import LayerReport, SandboxSettings, check_enforced

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LAYER = "cgroup"
_CONTROLLERS = (("cpu.max", "cpu"), ("io.weight", "io"))  # those that a base may lack
_TELL = "tell the operating system's keeper of cgroups (systemd: Delegate=yes) to hand them down"


@attrs.frozen(kw_only=True)
class CgroupPlace:
    """Place where groups can be made, as far as looking tells; `base` is None where they cannot."""

    base: Group | None
    report: LayerReport


def look(settings: SandboxSettings, wanted: frozenset[str]) -> CgroupPlace:
    """Look for the base that *settings* name or leave to us.

    Args:
        settings: of the operator.
        wanted: files of limits that the policy makes use of.
    """
    if not settings.enable_cgroups:
        return CgroupPlace(base=None, report=_unavailable("switched off; set sandbox.enable_cgroups to true"))
    try:
        base = find_base(settings.cgroup_base)
    except NoCgroup as fault:
        return CgroupPlace(base=None, report=_unavailable(_why(fault, settings.cgroup_base)))
    lacking = {file for file, controller in _CONTROLLERS if controller not in base.controllers()}
    return CgroupPlace(base=base, report=_report(base.path, wanted & lacking, settings.cgroup_base))


@contextlib.asynccontextmanager
async def open_groups(
    place: CgroupPlace, settings: SandboxSettings, wanted: frozenset[str]
) -> AsyncIterator[tuple[Tree | None, LayerReport]]:
    """Make the broker's tree at *place*, and say what it limits; None where none can be made.

    Raises:
        LayerUnavailable: there is none, and the operator requires it.
    """
    if place.base is None:
        yield None, place.report
        return
    async with contextlib.AsyncExitStack() as stack:
        tree = None
        try:
            tree = await stack.enter_async_context(open_tree(place.base))
            report = _report(tree.path, wanted & tree.absent, settings.cgroup_base)
        except CgroupFault as fault:
            report = _unavailable(_why(fault, settings.cgroup_base))
        if LAYER in settings.require:
            check_enforced(report)
        yield tree, report


def _report(path: str, lacking: frozenset[str], configured: str) -> LayerReport:
    detail = f"memory, swap, processes, processor time and one kill for all, per command and session, in {path}"
    if lacking:
        detail += f"; not limited, because there is no {', no '.join(sorted(lacking))} here: {_TELL}"
    return LayerReport(name=LAYER, state="partial" if lacking else "enforced", detail=detail + _searched(configured))


def _unavailable(why: str) -> LayerReport:
    return LayerReport(name=LAYER, state="unavailable", detail=why)


def _why(fault: CgroupFault, configured: str) -> str:
    remedy = f"; {fault.remedy}" if isinstance(fault, NoCgroup) else ""
    return f"{fault}{remedy}{_searched(configured)}"


def _searched(configured: str) -> str:
    """Say that the customer's `data/cgroup`, or what stands there now, is no group."""
    if not configured or os.path.isabs(configured):
        return ""
    return f" (sandbox.cgroup_base {configured!r} is no absolute path, so a place was looked for)"
