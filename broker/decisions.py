"""The policy's decision about a request, before anything happens: one place where requests meet `policy/`.

A file tool's path is decided twice: here on its lexical form, for an early and clear answer, and by `require_path` on
the real path of the descriptor that was opened, which is the one that counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import attrs

from broker.contract.commands import ExecuteCommand
from broker.contract.errors import BrokerError, ErrorCode
from broker.contract.names import real_name
from broker.contract.sessions import CreateSession
from broker.contract.table import Request
from broker.contract.transfers import OpenTransfer
from broker.contract.trees import (
    DeletePath,
)
from broker.scope import Host
from broker.session.resources import SessionResources
from broker.session.session import Session
from policy.command import decide_command
from policy.decision import Allow, Confirm, Deny, Run, shown
from policy.environment import decide_environment
from policy.path import Purpose, decide_beneath, decide_path, lexical_path
from sandbox.files.errors import NotFound
from sandbox.paths import is_beneath_any


@attrs.frozen
class TwoPaths:
    """Subject of a move or a copy: two lexical absolute paths."""

    source: str
    destination: str


Subject: TypeAlias = Run | str | TwoPaths | None
"""What was decided about: the command to run, the lexical absolute path or paths, or nothing."""


class Denied(BrokerError):
    """The policy does not allow it; `rule` is the key in policy.yaml that says so."""

    def __init__(self, code: ErrorCode, decision: Deny | Confirm[Run] | Confirm[str]) -> None:
        super().__init__(code, decision.reason, rule=decision.rule)
        self.rule = decision.rule


def decide(
    host: Host, session: Session[SessionResources] | None, request: Request, paths: Mapping[str, Purpose]
) -> Allow[Subject]:
    """Decide about *request*.

    Args:
        paths: its arguments that are paths, and what is wanted of each; see `broker.scope.Step`.

    Raises:
        Denied: it must not happen, or only when confirmed.
    """
    match request:
        case ExecuteCommand(argv=argv, confirm=confirm):
            _require_timeout(host, request)
            return _of_command(host, argv, confirm=confirm)
        case CreateSession():
            return _of_session(host, request)
        case OpenTransfer():
            paths = {"path": _purpose_of(request)}
    allowed = [require_path(host, _lexical(host, session, getattr(request, name)), paths[name]) for name in paths]
    match request, allowed:
        case DeletePath(recursive=True, confirm=False), [allow]:
            raise _unconfirmed(allow)
        case _, [allow]:
            return Allow(rule=allow.rule, reason=allow.reason, subject=allow.subject)
        case _, [first, second]:
            return Allow(rule=second.rule, reason=second.reason, subject=TwoPaths(first.subject, second.subject))
        case _:
            return Allow(rule="tools", reason="The tool needs no further permission.", subject=None)


def _purpose_of(request: OpenTransfer) -> Purpose:
    if request.direction == "download":
        return "read"
    return "write" if request.archive is None else "make"


def require_path(host: Host, path: str, purpose: Purpose) -> Allow[str]:
    """Decide about a real path; raises Denied."""
    decision = decide_path(host.paths, path, purpose)
    if isinstance(decision, Deny):
        raise Denied(ErrorCode.POLICY_PATH_VIOLATION, decision)
    return decision


def require_workplace(host: Host, path: str) -> Allow[str]:
    """Decide about where a session begins; raises Denied.

    The kernel gives a session all that lies beneath, so that must be allowed, not the directory alone.
    """
    allow = require_path(host, path, "enter")
    beneath = decide_beneath(host.paths, path)
    if isinstance(beneath, Deny) and not is_beneath_any(path, host.grants.write_paths):
        reason = f"{path} may be entered, but a session writes all beneath where it begins; allow {path.rstrip('/')}/**"
        raise Denied(ErrorCode.POLICY_PATH_VIOLATION, attrs.evolve(beneath, reason=reason))
    return allow


def require_end(host: Host, missing: NotFound) -> None:
    """Decide about where the links of a path lead at which there is nothing to be seen; raises Denied.

    In a root of its own a session does not see what the policy does not allow, so that a link to it leads nowhere.
    """
    if missing.led_to:
        require_path(host, missing.led_to, "read")


def _of_command(host: Host, argv: tuple[str, ...], *, confirm: bool) -> Allow[Subject]:
    match decide_command(host.policy, argv, confirm=confirm, programs=host.real_paths):
        case Allow() as allow:
            return Allow(rule=allow.rule, reason=allow.reason, subject=allow.subject)
        case Confirm() as confirm_first:
            raise Denied(ErrorCode.POLICY_CONFIRMATION_REQUIRED, confirm_first)
        case Deny() as deny:
            raise Denied(ErrorCode.POLICY_COMMAND_BLOCKED, deny)


def _require_timeout(host: Host, request: ExecuteCommand) -> None:
    asked_s = request.timeout_seconds
    if asked_s is not None and asked_s > host.timeouts.command_max:
        raise BrokerError(
            ErrorCode.POLICY_RESOURCE_EXCEEDED,
            f"timeout_seconds {asked_s:g} is above timeouts.command_max, {host.timeouts.command_max:g} s; ask for less",
            limit_seconds=host.timeouts.command_max,
            asked_seconds=asked_s,
        )


def _of_session(host: Host, request: CreateSession) -> Allow[Subject]:
    denial = decide_environment(host.policy, request.environment)
    if denial is not None:
        raise Denied(ErrorCode.POLICY_COMMAND_BLOCKED, denial)
    home = host.user.home
    allow = require_workplace(host, lexical_path(home, real_name(request.working_dir or "~"), home))
    return Allow(rule=allow.rule, reason=allow.reason, subject=allow.subject)


def _lexical(host: Host, session: Session[SessionResources] | None, path: str) -> str:
    """The absolute path that a client means, in the bytes of its name."""
    cwd = session.own.working_dir if session is not None else host.user.home
    return lexical_path(cwd, real_name(path), host.user.home)


def _unconfirmed(allow: Allow[str]) -> Denied:
    asked = Confirm(
        rule="delete_path.recursive",
        reason=f"Deleting {shown(allow.subject)} with all it holds cannot be undone: look at it with "
        "list_directory, then say confirm: true.",
        subject=allow.subject,
    )
    return Denied(ErrorCode.POLICY_CONFIRMATION_REQUIRED, asked)
