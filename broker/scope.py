"""The machine as the tools see it: what the broker is made of, built once in `app.py` and handed down.

Values and owners that live as long as the broker. Anything that belongs to one session is in `session/resources.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs

from broker.calls import Report
from broker.contract.table import Request, Result
from broker.memory.answers import Reserve
from broker.session.aftermath import Listeners
from broker.session.name_locks import NameLocks
from broker.session.resources import ResourceSettings, SessionResources
from broker.session.session import Session
from broker.session.supervisor import Supervisor
from broker.session.urls import TransferRegistry
from config.settings import TimeoutSettings
from policy.environment import User
from policy.path import PathRules, Purpose
from policy.rules import Policy
from sandbox.init.launcher import Launcher
from sandbox.machine.facts import FactSource
from sandbox.paths import is_beneath_any
from sandbox.plan.limits import Limits
from sandbox.plan.plan import ClosedPaths, LayerReport, SessionUser, Walls
from sandbox.plan.walls import packages_of
from transfers.media import MediaTypes
from transfers.upload import Discarded


@attrs.frozen(kw_only=True)
class Grants:
    """The policy as the kernel is told of it: real files and directories of this machine."""

    write_paths: tuple[str, ...]
    exec_paths: tuple[str, ...]
    """Of every session: all allowed executables, what they may run, their interpreters and loaders."""
    of_command: Mapping[str, tuple[str, ...]]
    """The narrower list of a command whose rule says what it may run, by the rule's name."""
    named_programs: tuple[str, ...]
    """The paths by which the policy names all of these; they may be links to somewhere else."""
    closed: ClosedPaths
    """Names that stay closed inside `write_paths`, and elsewhere."""


@attrs.frozen(kw_only=True)
class Host:
    """All that lives as long as the broker and that a tool may use."""

    policy: Policy
    paths: PathRules
    real_paths: Mapping[str, str]
    user: SessionUser
    grants: Grants
    limits: Limits
    timeouts: TimeoutSettings
    resource_settings: ResourceSettings
    layers: tuple[LayerReport, ...]
    launcher: Launcher
    supervisor: Supervisor[SessionResources]
    facts: FactSource
    media: MediaTypes
    transfer_registry: TransferRegistry
    locks: NameLocks
    on_discard: Callable[[str, str, Discarded], None]
    """Told of the principal, the session and the upload."""
    listeners: Listeners
    """Of all sessions' commands."""

    @property
    def account(self) -> User:
        """The session user, as the policy's environment knows it."""
        return User(name=self.user.name, home=self.user.own_home)

    def walls(self, working_dir: str) -> Walls:
        """Return what a session that begins in *working_dir* may reach."""
        return Walls(
            user=self.user,
            home=self.user.own_home,
            working_dir=working_dir,
            read_paths=self._packages(),
            write_paths=self.grants.write_paths,
            exec_paths=self.grants.exec_paths,
            limits=self.limits,
            named_programs=self.grants.named_programs,
            closed=self.grants.closed,
        )

    def _packages(self) -> tuple[str, ...]:
        """List what the policy's programs in /opt came with, where the policy does not allow more of it."""
        found = packages_of((*self.grants.exec_paths, *self.grants.named_programs))
        return tuple(path for path in found if not is_beneath_any(path, self.grants.write_paths))


@attrs.frozen(kw_only=True)
class Scope:
    """One call as every perform_* gets it: its client, its session, and the machine."""

    host: Host
    principal: str
    _session: Session[SessionResources] | None
    client: str = ""
    request_id: str = ""
    report: Report | None = None
    reserve: Reserve | None = None
    base_url: str = ""
    """See `broker.calls.Call`."""

    async def make_room(self, size_bytes: int) -> None:
        """Wait for room for an answer of so many bytes, before they are read. Raises: NoRoomForAnswer."""
        if self.reserve is not None:
            await self.reserve(size_bytes)

    @property
    def session(self) -> Session[SessionResources]:
        """The session of a tool whose arguments name one. Raises: LookupError for any other tool."""
        if self._session is None:
            raise LookupError("this tool names no session")
        return self._session

    @property
    def own(self) -> SessionResources:
        """The resources of the session that the call names."""
        return self.session.own


@attrs.frozen
class Step:
    """A tool's row on this side: how its requests are decided on, performed and recorded."""

    request: type[Request]
    perform: Callable[[Scope, Any, Any], Awaitable[Result]]
    """With the scope of the call, the request and what was decided about."""
    inside: bool = attrs.field(default=True, kw_only=True)
    """It is a child of the session's nursery."""
    paths: Mapping[str, Purpose] = attrs.field(default=MappingProxyType({}), kw_only=True)
    """Its arguments that are paths, and what the policy is asked of each: of one, or of a source and a destination."""
    completed: str = attrs.field(default="TOOL_COMPLETED", kw_only=True)
    """The name of the audit's event for its end record; `failed` and `begun` likewise."""
    failed: str = attrs.field(default="TOOL_FAILED", kw_only=True)
    begun: str = attrs.field(default="TOOL_CALLED", kw_only=True)
