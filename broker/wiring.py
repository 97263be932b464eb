"""The way from the configuration to what the rooms are built with: each section goes to the room that needs it.

Decides nothing and runs nothing: `app.py` says in which order things live and die.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from broker.audit.audit import AuditSettings
from broker.grants import find_grants, limits_of, resolve_programs, without_own_files
from broker.scope import Host
from broker.session.aftermath import Listeners
from broker.session.name_locks import NameLocks
from broker.session.resources import ResourceSettings, SessionResources
from broker.session.supervisor import Supervisor
from broker.session.urls import TransferRegistry
from broker.trusted.ownership import NotOurs, check_owners
from broker.trusted.places import TrustedPlaces, find_trusted, take_names
from broker.trusted.untenable import Untenable, module_folder, refuse_untenable
from config.load import Config
from config.settings import ServerSettings
from policy.known import network_use
from policy.path import PathRules
from policy.rules import Policy
from sandbox.cgroup.layer import CgroupPlace, look
from sandbox.errors import UserUnavailable
from sandbox.init.launcher import Launcher
from sandbox.machine.capabilities import probe
from sandbox.machine.claims import Claims
from sandbox.machine.facts import FactSource
from sandbox.plan.plan import LayerReport, LayerUnavailable, Plan, SessionUser, make_plan
from sandbox.plan.users import choose_user
from transfers.media import Look, MediaTypes
from transfers.settings import TransferSettings
from transfers.upload import Discarded

MEDIA_THREADS = 2
DOWNLOAD_IDLE_S = 600.0
"""Seconds without a chunk after which a pinned download is let go; the client may start it again."""

CANNOT_START = (LayerUnavailable, UserUnavailable, NotOurs, Untenable)
"""The errors that `lay_foundation` raises: the machine lacks what is required, or the broker would not be safe here."""


@attrs.frozen(kw_only=True)
class Foundation:
    """The facts known before anything runs: the host's capabilities, the session user, the plan for the walls."""

    plan: Plan
    user: SessionUser
    cgroup: CgroupPlace
    limit_files: frozenset[str]
    """Of a cgroup: those that the policy makes use of."""
    trusted: TrustedPlaces
    """Places that no session may change."""
    warnings: tuple[str, ...]
    """Sentences for the operator, none of which stops the start."""


def lay_foundation(config: Config, claims: Claims) -> Foundation:
    """Find out what this machine can enforce and who commands run as.

    Args:
        config: of the operator.
        claims: what holds that user; to be given up after the broker's last session.

    Raises:
        LayerUnavailable, UserUnavailable, NotOurs, Untenable: the broker must not start here, and why.
    """
    capabilities, sandbox, limit_files = probe(), config.server.sandbox, _limit_files(config.policy)
    cgroup = look(sandbox, limit_files)
    network = network_use(config.policy, resolve_programs(config.policy))
    plan = make_plan(capabilities, sandbox, cgroup=cgroup.report, network=network)
    user = choose_user(sandbox, config.base_dir / "data", capabilities, claims)
    take_names(user)
    trusted = find_trusted(config, user)
    refuse_untenable(config, trusted, user, plan, module_folder())
    warnings = check_owners(trusted, user)
    return Foundation(plan=plan, user=user, cgroup=cgroup, limit_files=limit_files, trusted=trusted, warnings=warnings)


def _limit_files(policy: Policy) -> frozenset[str]:
    overrides = [limits for rule in policy.allowed_commands.values() if (limits := rule.resource_override) is not None]
    asked = [limits_of(policy.resource_limits), *map(limits_of, overrides)]
    return frozenset(name for limits in asked for name, _ in limits.of_group().files())


def build_host(
    config: Config,
    foundation: Foundation,
    launcher: Launcher,
    supervisor: Supervisor[SessionResources],
    layers: tuple[LayerReport, ...],
    look: Look,
    on_discard: Callable[[str, str, Discarded], None],
    listeners: Listeners,
) -> Host:
    """Return what the tools work with. Looks at the machine's programs and at what the path patterns stand for now.

    Args:
        look: who tells types by content, outside this process.
    """
    server, policy, user = config.server, config.policy, foundation.user
    trusted = foundation.trusted
    paths = without_own_files(PathRules.of(policy, user.home), trusted.hidden, trusted.sealed, user.own_home)
    programs = resolve_programs(policy)
    grants = find_grants(policy, paths, programs, user, trusted.links)
    launcher.look_ahead(grants.closed)
    return Host(
        policy=policy,
        paths=paths,
        real_paths={path: program.real_path for path, program in programs.items()},
        user=user,
        grants=grants,
        limits=limits_of(policy.resource_limits),
        timeouts=server.timeouts,
        resource_settings=_resource_settings(config),
        layers=layers,
        launcher=launcher,
        supervisor=supervisor,
        facts=FactSource(),
        media=MediaTypes(look=look, limiter=trio.CapacityLimiter(MEDIA_THREADS)),
        transfer_registry=TransferRegistry(settings=server.transfers),
        locks=NameLocks(),
        on_discard=on_discard,
        listeners=listeners,
    )


def _resource_settings(config: Config) -> ResourceSettings:
    server = config.server
    transfers = TransferSettings(
        max_open=server.transfers.max_open,
        max_chunk_bytes=server.transfers.max_chunk_bytes,
        max_upload_bytes=config.policy.file_limits.max_write_size,
        max_session_bytes=config.policy.file_limits.max_session_bytes,
        reserve_bytes=config.policy.file_limits.min_free_bytes,
        upload_idle_s=server.timeouts.upload_idle,
        download_idle_s=DOWNLOAD_IDLE_S,
    )
    return ResourceSettings(
        transfers=transfers,
        sessions=server.sessions,
        output=server.output,
        output_dir=str(config.base_dir / "data" / "output"),
    )


def audit_settings(server: ServerSettings) -> AuditSettings:
    """Return where the audit goes, and when its files are rotated."""
    return AuditSettings(
        audit_log=server.logging.audit_log,
        error_log=server.logging.error_log,
        max_bytes=server.logging.max_size_bytes,
        backup_count=server.logging.backup_count,
        keep_s=server.logging.keep_s,
        most_backups=server.logging.most_backups,
    )
