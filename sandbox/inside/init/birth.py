"""The stages in which a session init confines itself. Child side.

Each stage is fatal and has a name. The order is load-bearing: the limits count the machine's processes, so they come
before the new root takes these out of sight; mounts need the rights that the user then gives up; the user comes before
no_new_privs and the death signal, which a change of credentials clears; Landlock looks its paths up in the new root;
the system call filter is last, because it refuses what the others do. What no session differs in, the other
namespaces, was done before there was one (`prepare.py`). Afterwards `probes.py` says what holds.
"""

from __future__ import annotations

import itertools
import os
import signal

from sandbox.inside import blocked_paths
from sandbox.inside.init import accounts, beside
from sandbox.inside.stages import StageFailed, stage
from sandbox.kernel import landlock, masks, namespaces, process, processes, rlimits, root, seccomp, syscalls

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandbox.inside.init.prepare import Preparation
    from sandbox.kernel.landlock import Grant
    from sandbox.protocol.commands import BirthSpec

CANARY = "/"  # listing it is granted by no rule of ours, and every user may do it outside


class Birth:
    """A birth under way: what was asked for, what was done ahead, what came of the stages so far.

    Attributes:
        tasks_room: how many tasks the user may have beside a command's own.
        missing: granted paths that are not there.
        outcome: of the new root; None without one.
        search: for what stays closed; None where nothing was restricted.
        closed: what became of that.
        plain_memfds: whether the kernel keeps memory files from being executed without the filter's help.
        canary_sings: whether the canary could be listed before Landlock.
        opener_pid: of the opener that was forked after the last stage and the report.
    """

    __slots__ = (
        "canary_sings",
        "closed",
        "missing",
        "opener_pid",
        "outcome",
        "plain_memfds",
        "prepared",
        "search",
        "spec",
        "tasks_room",
    )

    def __init__(self, spec: BirthSpec, prepared: Preparation) -> None:
        self.spec = spec
        self.prepared = prepared
        self.tasks_room = 0
        self.missing: tuple[str, ...] = ()
        self.outcome: root.RootOutcome | None = None
        self.search: blocked_paths.Search | None = None
        self.closed = masks.MaskOutcome()
        self.plain_memfds = False
        self.canary_sings = False
        self.opener_pid = 0

    @property
    def filter_options(self) -> seccomp.Options:
        """The session's filter; what runs in it may put another on top."""
        return seccomp.Options(internet=self.spec["internet"], plain_memfds=self.plain_memfds)

    def raise_walls(self) -> None:
        """Perform every stage, in order. Raises StageFailed."""
        for name, perform in STAGES:
            with stage(name):
                perform(self)


def _process_tree(_birth: Birth) -> None:
    process.prctl(process.SET_CHILD_SUBREAPER, 1)


def _rlimits(birth: Birth) -> None:
    rlimits.no_core_dumps()
    if birth.spec["own_task_count"]:
        birth.tasks_room = rlimits.ROOM_COUNTED
    else:
        present = processes.threads_of_user(birth.spec["uid"])
        birth.tasks_room = rlimits.room(present, dedicated=birth.spec["dedicated"])


def _cgroup_namespace(birth: Birth) -> None:
    if birth.prepared.flags and birth.spec["cgroup"]:  # the broker has put us into the session's group by now
        namespaces.unshare(namespaces.CGROUP)


def _mounts(birth: Birth) -> None:
    if not birth.prepared.flags:
        return
    namespaces.unshare(namespaces.MOUNT)  # not ahead: what the machine mounts meanwhile belongs to the session
    wanted = birth.spec["root"]
    birth.outcome = root.build(
        root.RootPlan(
            binds=wanted["binds"],
            real=wanted["real"],
            private=wanted["private"],
            private_bytes=wanted["private_bytes"],
            close=lambda: _close(birth),
            cgroup=birth.spec["cgroup"],
        )
    )


def _close(birth: Birth) -> masks.MaskOutcome:
    """Cover and guard in the new root what stays closed."""
    search = birth.search = blocked_paths.Search(birth.spec["close"])
    sockets = ((path, False) for path in birth.spec["sockets"])
    birth.closed = masks.close(
        itertools.chain(sockets, search.found()),
        holds=search.holds,
        frames=search.frames(),
        stays_closed=search.stays_closed,
        holes=birth.spec["close"]["holes"],
    )
    return birth.closed


def _accounts(birth: Birth) -> None:
    if birth.outcome is not None:
        accounts.place(accounts.Account(**birth.spec["account"]), birth.closed.masked)


def _memory_files(birth: Birth) -> None:
    if birth.prepared.flags:
        birth.plain_memfds = namespaces.forbid_memfd_execution()


def _nesting(birth: Birth) -> None:
    if birth.prepared.flags & namespaces.USER:
        namespaces.forbid_nesting()


def _user(birth: Birth) -> None:
    spec = birth.spec
    namespaces.drop_bounding()
    if spec["switch_user"]:
        os.setgroups(spec["groups"])
        os.setresgid(spec["gid"], spec["gid"], spec["gid"])
        os.setresuid(spec["uid"], spec["uid"], spec["uid"])
    if 0 in os.getresuid() or 0 in os.getresgid():
        raise StageFailed("user", "a session never runs as root")


def _capabilities(_birth: Birth) -> None:
    namespaces.drop_capabilities()


def _no_new_privs(_birth: Birth) -> None:
    process.prctl(process.SET_NO_NEW_PRIVS, 1)


def _not_dumpable(_birth: Birth) -> None:
    process.prctl(process.SET_DUMPABLE, 0)


def _death_signal(birth: Birth) -> None:
    if birth.prepared.flags:
        birth.prepared.stay_bound()
    else:
        process.die_with(birth.spec["broker_pid"], signal.SIGTERM)


def _landlock(birth: Birth) -> None:
    spec = birth.spec
    birth.canary_sings = can_list(CANARY)  # the control: before the walls this works
    grants, real_grants = spec["grants"], spec["real_grants"]
    if spec["abi"] and not birth.prepared.flags:  # no mounts cover what stays closed
        grants, real_grants = _grants_beside(birth)
    birth.missing = landlock.enforce(
        spec["abi"],
        handled=landlock.handled_rights(spec["abi"]),
        grants=grants,
        real_grants=real_grants,
        scoped=landlock.SCOPE_SIGNAL | landlock.SCOPE_ABSTRACT_UNIX,
    )


def _grants_beside(birth: Birth) -> tuple[Sequence[Grant], Sequence[Grant]]:
    """Take what stays closed out of what is granted.

    Not what is only guarded wherever it lies, such as the configuration of a repository: the directories above it would
    take no new names, and there would be no work in a project.
    """
    search = birth.search = blocked_paths.Search(birth.spec["close"])
    named = list(search.named())
    found = [*named, *search.found()]
    closed = birth.closed
    closed.masked = [path for path, only_guarded in found if not only_guarded]
    frames = search.frames()
    aside = beside.Beside(closed.masked, [path for path, only_guarded in named if only_guarded], frames).frames
    # In a directory that is granted in pieces anyway, what is guarded costs nothing more.
    by_name = {path for path, _ in named}
    closed.guarded = [
        path for path, only_guarded in found if only_guarded and (path in by_name or os.path.dirname(path) in aside)
    ]
    search.left = frozenset(path for path, only_guarded in found if only_guarded) - set(closed.guarded)
    closed.left = len(search.left)
    between = beside.Beside(closed.masked, closed.guarded, frames)
    try:
        pieces = [list(between.pieces(grants)) for grants in (birth.spec["grants"], birth.spec["real_grants"])]
    except beside.TooMany as too_many:
        raise StageFailed("blocked_paths", str(too_many)) from too_many
    closed.framed = sorted(between.frames & {path for path, _ in pieces[1]})
    return pieces[0], pieces[1]


def _seccomp(birth: Birth) -> None:
    if birth.spec["seccomp"]:
        try:
            options = birth.filter_options
            seccomp.install(birth.prepared.filters.get(options) or seccomp.program(options))
        except syscalls.UnknownMachine as error:
            raise StageFailed("seccomp", str(error)) from error


STAGES: tuple[tuple[str, Callable[[Birth], None]], ...] = (
    ("process_tree", _process_tree),
    ("rlimits", _rlimits),
    ("cgroup_namespace", _cgroup_namespace),
    ("mount_namespace", _mounts),
    ("accounts", _accounts),
    ("memory_files", _memory_files),
    ("nesting", _nesting),
    ("user", _user),
    ("capabilities", _capabilities),
    ("no_new_privs", _no_new_privs),
    ("not_dumpable", _not_dumpable),
    ("death_signal", _death_signal),
    ("landlock", _landlock),
    ("seccomp", _seccomp),
)


def can_list(path: str) -> bool:
    """Tell whether a directory can be listed here and now."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
    except PermissionError:
        return False
    return True
