"""The answer of the policy: a closed union of frozen values, never an exception.

Every answer names the rule that made it (as the path of its key in `policy.yaml`) and gives a sentence that
a person, or an agent, can act on: the value, the limit it met, what to do next. Values from outside appear
in a sentence only through `shown`, so that a newline or a right-to-left override cannot forge a log line.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

import attrs

from policy.rules import ResourceOverride

SHOWN_CHARACTERS = 200  # of one value in a sentence: enough to recognise it, too few to flood a log

S_co = TypeVar("S_co", covariant=True)


def _read_only(variables: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(variables))


@attrs.frozen(kw_only=True)
class Run:
    """The program that runs when a command is allowed: nothing here is looked up again later.

    `may_run` None means that the program may start whatever its session may; otherwise only these (`X/**`:
    all beneath X). `network`: whether it gets internet sockets.
    """

    rule_name: str  # the key in allowed_commands
    program: str  # the absolute path that is executed, whatever argv[0] says
    argv: tuple[str, ...]
    env: Mapping[str, str] = attrs.field(converter=_read_only)
    may_run: tuple[str, ...] | None
    network: bool
    resource_override: ResourceOverride | None


@attrs.frozen(kw_only=True)
class Allow(Generic[S_co]):
    """Do it: `subject` is what was decided about (a Run, a path, a variable's name)."""

    rule: str
    reason: str
    subject: S_co


@attrs.frozen(kw_only=True)
class Confirm(Generic[S_co]):
    """Every other gate is passed; do it only when the caller says `confirm: true`."""

    rule: str
    reason: str
    subject: S_co


@attrs.frozen(kw_only=True)
class Deny:
    """Do not do it."""

    rule: str
    reason: str


CommandDecision = Allow[Run] | Confirm[Run] | Deny
PathDecision = Allow[str] | Deny
VariableDecision = Allow[str] | Deny
Decision = CommandDecision | PathDecision | VariableDecision


def strictness(decision: Decision) -> int:
    """Order decisions, so that the strictest of several is `max(..., key=strictness)`."""
    match decision:
        case Allow():
            return 0
        case Confirm():
            return 1
        case Deny():
            return 2


def shown(value: str) -> str:
    """Quote a value for a person: control, bidirectional and undecodable characters become escapes."""
    if len(value) <= SHOWN_CHARACTERS:
        return repr(value)
    return f"{value[:SHOWN_CHARACTERS]!r}... ({len(value)} characters)"
