"""Decide what a session's walls are to be, from facts and settings: pure, no IO.

`make_plan` either says which layers this host will enforce, or refuses because a layer that the operator marked
as required cannot be had. What was really enforced is reported later, by probes run inside the session.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import attrs

from sandbox.kernel import namespaces
from sandbox.plan.limits import Limits
from sandbox.plan.spaces import NAMESPACES_REMEDY, NETWORK_REMEDY, choose_spaces

if TYPE_CHECKING:
    from sandbox.machine.capabilities import Capabilities
    from sandbox.plan.spaces import NetworkUse, Spaces

LAYERS = (
    "user",
    "no_new_privs",
    "landlock",
    "process_tree",
    "rlimits",
    "blocked_paths",
    "seccomp",
    "pid_namespace",
    "mount_namespace",
    "network",
    "cgroup",
)
State = Literal["enforced", "partial", "unavailable"]
TASKS_TOGETHER = "processes of a session's commands together"
"""Words of the rlimits layer where a command is held to its limit of processes without a cgroup."""


class LayerUnavailable(Exception):
    """Refusal to start: a layer that the operator requires cannot be had on this host."""

    def __init__(self, *, layer: str, why: str, remedy: str) -> None:
        """Keep the three parts apart: a person reads them, a test compares them."""
        super().__init__(f"the sandbox layer {layer!r} is required but {why}; {remedy}")
        self.layer = layer
        self.why = why
        self.remedy = remedy


def _known_layers(_owner: object, _field: object, names: tuple[str, ...]) -> None:
    unknown = sorted(set(names) - set(LAYERS))
    if unknown:
        raise ValueError(f"unknown layers {', '.join(unknown)}; the layers are {', '.join(LAYERS)}")


def _absolute(_owner: object, field: attrs.Attribute[tuple[str, ...]], paths: tuple[str, ...]) -> None:
    for path in paths:
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"{field.name} must hold absolute paths: {path!r}")


@attrs.frozen(kw_only=True)
class SandboxSettings:
    """Settings of the `sandbox` section of server.yaml. Defaults live in the shipped file, not here."""

    unprivileged_user: str
    cgroup_base: str
    enable_cgroups: bool
    enable_namespaces: bool
    private_tmp: bool
    private_tmp_bytes: int = attrs.field(validator=attrs.validators.ge(4096))
    require: tuple[str, ...] = attrs.field(validator=_known_layers)


@attrs.frozen(kw_only=True)
class SessionUser:
    """User of the session's processes.

    Attributes:
        home: of the account; what `~` means in paths, and where a session begins.
        kept_home: a directory that the broker keeps for commands instead, so that they leave nothing in a person's home
            that the person's programs obey; empty where `home` is such a directory itself.
        dedicated: root chose this user for the broker alone.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str
    dedicated: bool
    kept_home: str = ""

    @property
    def own_home(self) -> str:
        """Value of HOME in commands."""
        return self.kept_home or self.home


NEVER = "(?!)"
"""An expression that matches no path."""


@attrs.frozen(kw_only=True)
class Names:
    """Names that stay closed, as two expressions over absolute paths, as the policy's TreeFilter has them."""

    from_root: str = NEVER
    anywhere: str = NEVER


@attrs.frozen(kw_only=True)
class ClosedPaths:
    """Paths that stay closed in the trees that a session sees.

    Attributes:
        blocked: neither read nor changed, with all beneath.
        guarded: read, but neither changed nor made nor moved, with all beneath.
        last_names: what a name must match, with a slash in front, to be closed in a directory that is not.
        places: literal paths where what is blocked may begin: looked at first, and outside the allowed trees too.
        guarded_places: the same of what is guarded; outside, nothing can be changed anyway.
        names: literal paths that stay closed though nothing is there yet.
        folders: directories in which some names are closed, whatever is there yet.
        opened: trees of the session's own, whose places in closed ones are left open.
        system: what is blocked in the system's own directories, found once for all sessions.
        system_known: whether that is all.
    """

    blocked: Names = Names()
    guarded: Names = Names()
    last_names: str = ""
    places: tuple[str, ...] = ()
    guarded_places: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()
    system: tuple[str, ...] = ()
    system_known: bool = True


@attrs.frozen(kw_only=True)
class Walls:
    """Reach of one session: absolute paths; a directory means everything beneath it.

    The system's own directories are readable beside `read_paths`; `home` and `working_dir` are writable beside
    `write_paths`. `exec_paths` are real files (the program, its interpreters, its loader) or directories;
    `named_programs` are the names that lead to them. `home` is what HOME says, not the home of the user's account.
    """

    user: SessionUser
    home: str
    working_dir: str
    read_paths: tuple[str, ...] = attrs.field(validator=_absolute)
    write_paths: tuple[str, ...] = attrs.field(validator=_absolute)
    exec_paths: tuple[str, ...] = attrs.field(validator=_absolute)
    limits: Limits
    named_programs: tuple[str, ...] = ()
    closed: ClosedPaths = ClosedPaths()


@attrs.frozen(kw_only=True)
class LayerReport:
    """State of one layer for this session, in words for a user."""

    name: str
    state: State
    detail: str


NO_CGROUP = LayerReport(name="cgroup", state="unavailable", detail="nobody looked for a place")


@attrs.frozen(kw_only=True)
class Plan:
    """Plan of how inits are born on this host."""

    landlock_abi: int
    switch_user: bool
    seccomp: bool
    spaces: int  # see `Spaces.ahead`
    internet: bool  # the session's filter lets internet sockets through
    own_task_count: bool  # RLIMIT_NPROC counts the tasks of a session by themselves
    network: NetworkUse
    private_tmp: bool
    private_tmp_bytes: int
    require: tuple[str, ...]
    layers: tuple[LayerReport, ...]  # what is expected; an Init carries what was found
    besieged: bool = False  # the doctor's: inits have attacks on their own walls at hand

    @property
    def shares_network(self) -> bool:
        """Tell whether commands may reach what listens on this machine, the broker's own port included."""
        return not self.spaces & namespaces.NET and (self.internet or not self.seccomp)

    def with_cgroup(self, report: LayerReport) -> Plan:
        """Return this plan with what became of the cgroup layer, and what that leaves to the rlimits."""
        found = {"cgroup": report, "rlimits": _rlimits(report, counted=self.own_task_count)}
        return attrs.evolve(self, layers=tuple(found.get(layer.name, layer) for layer in self.layers))


def make_plan(
    capabilities: Capabilities,
    settings: SandboxSettings,
    *,
    cgroup: LayerReport = NO_CGROUP,
    network: NetworkUse = "none",
) -> Plan:
    """Decide the layers for this host.

    Args:
        capabilities: of the host.
        settings: of the operator.
        cgroup: what is known of that layer.
        network: which commands the policy allows it.

    Raises:
        LayerUnavailable: a layer of `settings.require` cannot be enforced here.
    """
    spaces = choose_spaces(
        capabilities, enabled=settings.enable_namespaces, private_tmp=settings.private_tmp, network=network
    )
    counted = capabilities.own_task_count and bool(spaces.ahead & namespaces.USER)
    expected = {report.name: report for report in _expected(capabilities, cgroup, spaces, counted=counted)}
    for name in settings.require:
        check_enforced(expected[name])
    return Plan(
        landlock_abi=capabilities.landlock_abi,
        switch_user=capabilities.is_root,
        seccomp=capabilities.seccomp.present,
        spaces=spaces.ahead,
        internet=spaces.internet,
        own_task_count=counted,
        network=network,
        private_tmp=settings.private_tmp,
        private_tmp_bytes=settings.private_tmp_bytes,
        require=settings.require,
        layers=tuple(expected[name] for name in LAYERS),
    )


def check_enforced(required: LayerReport) -> None:
    """Raise LayerUnavailable where a layer that the operator requires is not enforced."""
    if required.state != "enforced":
        why = f"it is {required.state}: {required.detail}"
        raise LayerUnavailable(layer=required.name, why=why, remedy=_remedy(required.name))


def _expected(
    capabilities: Capabilities, cgroup: LayerReport, spaces: Spaces, *, counted: bool
) -> tuple[LayerReport, ...]:
    return (
        _user(capabilities),
        LayerReport(name="no_new_privs", state="enforced", detail="set-user-ID programs gain nothing"),
        _landlock(capabilities),
        _rlimits(cgroup, counted=counted),
        _seccomp(capabilities),
        *(LayerReport(name=name, state=state, detail=detail) for name, (state, detail) in spaces.layers),
        cgroup,
    )


def _rlimits(cgroup: LayerReport, *, counted: bool) -> LayerReport:
    if cgroup.state == "unavailable" and counted:
        detail = f"memory and file size count per process, and {TASKS_TOGETHER}; sums of memory need a cgroup"
    elif cgroup.state == "unavailable":
        detail = "memory and file size count per process and processes per user; sums need a cgroup"
    else:
        detail = "file size and open files count per process; memory and processes are the cgroup's"
    return LayerReport(name="rlimits", state="partial", detail=detail)


def _seccomp(capabilities: Capabilities) -> LayerReport:
    if not capabilities.seccomp.present:
        return LayerReport(name="seccomp", state="unavailable", detail=capabilities.seccomp.detail)
    detail = (
        "refuses tracing, mounts, namespaces, kernel modules, io_uring, raw sockets, executable memory files, "
        "set-user-ID and set-group-ID bits, ..."
    )
    return LayerReport(name="seccomp", state="enforced", detail=detail)


def _user(capabilities: Capabilities) -> LayerReport:
    if capabilities.is_root and not capabilities.may_switch_user:
        return LayerReport(
            name="user",
            state="unavailable",
            detail="root lacks CAP_SETUID or CAP_SETGID and cannot become another user",
        )
    return LayerReport(name="user", state="enforced", detail="nothing runs as root")


def _landlock(capabilities: Capabilities) -> LayerReport:
    if not capabilities.landlock_abi:
        return LayerReport(name="landlock", state="unavailable", detail=capabilities.landlock_detail)
    return LayerReport(name="landlock", state="enforced", detail=f"ABI {capabilities.landlock_abi}")


_REMEDIES = MappingProxyType(
    {
        "landlock": "boot Linux 6.12 or newer with landlock in its lsm= list",
        "process_tree": "boot Linux 6.12 or newer with landlock in its lsm= list",
        "user": "give the broker CAP_SETUID and CAP_SETGID, start it as a plain user",
        "pid_namespace": NAMESPACES_REMEDY,
        "mount_namespace": f"set sandbox.private_tmp: true; {NAMESPACES_REMEDY}",
        "network": NETWORK_REMEDY,
        "cgroup": "do that",
        "blocked_paths": "what appears after a session began cannot be hidden from it on any host",
    }
)


def _remedy(layer: str) -> str:
    return ", or ".join(filter(None, (_REMEDIES.get(layer), "take it out of sandbox.require")))
