"""The text of a decision, for `python -m broker explain` and for whoever reads a log.

Everything that came from outside is quoted and escaped, so that what is shown is what was asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policy.decision import Allow, Confirm, Deny, Run, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policy.decision import Decision


def explain(decision: Decision, asked: Sequence[str]) -> str:
    """Return the decision about the words *asked* (an argv, a path, a variable's name) in a few lines."""
    lines = [
        ("asked", argv_text(asked)),
        ("decision", _name(decision)),
        ("rule", decision.rule),
        ("reason", decision.reason),
        *_consequences(decision),
    ]
    return "\n".join(f"{label + ':':<11}{text}" for label, text in lines)


def argv_text(argv: Sequence[str]) -> str:
    """Return *argv* as a list of quoted words: where one word ends and what it holds cannot be mistaken."""
    return f"[{', '.join(shown(word) for word in argv)}]"


def _name(decision: Decision) -> str:
    match decision:
        case Allow():
            return "allow"
        case Confirm():
            return "confirm"
        case Deny():
            return "deny"


def _consequences(decision: Decision) -> list[tuple[str, str]]:
    match decision:
        case Deny():
            return [("runs", "nothing")]
        case Allow(subject=Run() as run) | Confirm(subject=Run() as run):
            return _run_lines(run)
        case _:
            return []


def _run_lines(run: Run) -> list[tuple[str, str]]:
    lines = [("runs", f"{run.program} with argv {argv_text(run.argv)}"), ("may start", _may_run(run.may_run))]
    lines.append(("network", "allowed" if run.network else "denied"))
    if run.env:
        lines.append(("sets", ", ".join(f"{name}={shown(value)}" for name, value in sorted(run.env.items()))))
    if run.resource_override:
        lines.append(("limits", str(run.resource_override)))
    return lines


def _may_run(paths: tuple[str, ...] | None) -> str:
    if paths is None:
        return "any program that its session may execute"
    return ", ".join(paths) or "no other program"
