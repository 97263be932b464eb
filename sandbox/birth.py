"""The stages in which a session init confines itself, and the probes that say what came of it. Child side.

Each stage is fatal and has a name. The order is load-bearing: limits while they can still be set, the user before
no_new_privs and the death signal (a change of credentials clears those), Landlock, and the system call filter last,
because it refuses what the others do. Namespaces and mounts belong in front of `user`.
"""

from __future__ import annotations

import os
import resource
import signal

from sandbox import landlock, prctl, rlimits, seccomp, syscalls, trees

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.wire import Message

    Layer = dict[str, str]

# The network is no layer of this version, and memory files cannot be kept from being executed by anything else.
FILTER = seccomp.Options(internet=True)
CANARY = "/"  # listing it is granted by no rule of ours, and every user may do it outside


class StageFailed(Exception):
    """One stage could not be done: there will be no session."""

    def __init__(self, stage: str, why: str) -> None:
        """Keep stage and reason apart."""
        super().__init__(f"{stage}: {why}")
        self.stage = stage
        self.why = why


def raise_walls(spec: Message) -> None:
    """Perform every stage, in order. Raises StageFailed."""
    for name, stage in STAGES:
        try:
            stage(spec)
        except OSError as error:
            raise StageFailed(name, error.strerror or str(error)) from error


def _process_tree(_spec: Message) -> None:
    prctl.prctl(prctl.SET_CHILD_SUBREAPER, 1)


def _rlimits(spec: Message) -> None:
    rlimits.no_core_dumps()
    present = trees.threads_of_user(spec["uid"])
    spec["tasks_room"] = rlimits.room(present, dedicated=spec["dedicated"])


def _user(spec: Message) -> None:
    if spec["switch_user"]:
        os.setgroups(spec["groups"])
        os.setresgid(spec["gid"], spec["gid"], spec["gid"])
        os.setresuid(spec["uid"], spec["uid"], spec["uid"])
    if 0 in os.getresuid() or 0 in os.getresgid():
        raise StageFailed("user", "a session never runs as root")


def _no_new_privs(_spec: Message) -> None:
    prctl.prctl(prctl.SET_NO_NEW_PRIVS, 1)


def _not_dumpable(_spec: Message) -> None:
    prctl.prctl(prctl.SET_DUMPABLE, 0)


def _death_signal(spec: Message) -> None:
    prctl.die_with(spec["broker_pid"], signal.SIGTERM)


def _landlock(spec: Message) -> None:
    spec["canary_sings"] = _can_list(CANARY)  # the control: before the walls this works
    spec["missing"] = landlock.enforce(
        spec["abi"],
        handled=landlock.handled_rights(spec["abi"]),
        grants=spec["grants"],
        scoped=landlock.SCOPE_SIGNAL | landlock.SCOPE_ABSTRACT_UNIX,
    )


def _seccomp(spec: Message) -> None:
    if spec["seccomp"]:
        try:
            seccomp.enforce(FILTER)
        except syscalls.UnknownMachine as error:
            raise StageFailed("seccomp", str(error)) from error


STAGES: tuple[tuple[str, Callable[[Message], None]], ...] = (
    ("process_tree", _process_tree),
    ("rlimits", _rlimits),
    ("user", _user),
    ("no_new_privs", _no_new_privs),
    ("not_dumpable", _not_dumpable),
    ("death_signal", _death_signal),
    ("landlock", _landlock),
    ("seccomp", _seccomp),
)


def report(spec: Message) -> list[Layer]:
    """Say of each layer what is true in here now. Raises StageFailed where a wall does not hold."""
    return [
        _user_layer(spec),
        _no_new_privs_layer(),
        _landlock_layer(spec),
        _process_tree_layer(spec),
        _rlimits_layer(spec),
        _seccomp_layer(spec),
    ]


def _layer(name: str, state: str, detail: str) -> Layer:
    return {"name": name, "state": state, "detail": detail}


def _user_layer(spec: Message) -> Layer:
    uids, gids = os.getresuid(), os.getresgid()
    if set(uids) != {spec["uid"]} or set(gids) != {spec["gid"]}:
        raise StageFailed("user", f"the ids are {uids} and {gids}, not {spec['uid']} and {spec['gid']}")
    try:
        os.setuid(0)
    except PermissionError:
        return _layer("user", "enforced", f"runs as {spec['user_name']} (uid {spec['uid']}), never as root")
    raise StageFailed("user", "root could be had back")


def _no_new_privs_layer() -> Layer:
    if prctl.prctl(prctl.GET_NO_NEW_PRIVS) != 1:
        raise StageFailed("no_new_privs", "the flag is not set")
    if prctl.prctl(prctl.GET_DUMPABLE) != 0:
        raise StageFailed("not_dumpable", "the init can be traced by its own user")
    return _layer("no_new_privs", "enforced", "set-user-ID programs gain nothing")


def _landlock_layer(spec: Message) -> Layer:
    if not spec["abi"]:
        return _layer("landlock", "unavailable", spec["details"]["landlock"])
    if spec["canary_sings"] and not spec["canary_granted"] and _can_list(CANARY):
        raise StageFailed("landlock", f"{CANARY} can still be listed")
    limits = [] if spec["abi"] >= 3 else ["truncation is not restricted before ABI 3"]
    if spec["abi"] < 2:
        limits.append("nothing can be moved between directories before ABI 2")
    if spec["canary_granted"]:
        limits.append("the policy allows the whole file system")
    if spec["missing"]:
        limits.append("not there or not reachable, so not granted: " + _some(spec["missing"]))
    detail = f"ABI {spec['abi']}; a program that may start the dynamic loader can load any readable program"
    return _layer("landlock", "enforced" if spec["abi"] >= 3 else "partial", "; ".join([detail, *limits]))


def _some(paths: tuple[str, ...]) -> str:
    shown = ", ".join(paths[:5])
    return shown if len(paths) <= 5 else f"{shown} and {len(paths) - 5} more"


def _can_list(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
    except PermissionError:
        return False
    return True


def _process_tree_layer(spec: Message) -> Layer:
    if not prctl.is_subreaper():
        raise StageFailed("process_tree", "orphans would escape")
    if spec["abi"] < 6:
        return _layer("process_tree", "partial", spec["details"]["process_tree"])
    if not trees.scope_holds(spec["broker_pid"]):
        raise StageFailed("process_tree", "the broker can be signalled from inside")
    return _layer("process_tree", "enforced", "one subreaper and signal scope per command")


def _rlimits_layer(spec: Message) -> Layer:
    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        raise StageFailed("rlimits", "core files are not switched off")
    return _layer("rlimits", "partial", spec["details"]["rlimits"])


def _seccomp_layer(spec: Message) -> Layer:
    if not spec["seccomp"]:
        return _layer("seccomp", "unavailable", spec["details"]["seccomp"])
    if weak := seccomp.weak_points(FILTER):
        raise StageFailed("seccomp", f"these calls are not refused: {', '.join(weak)}")
    return _layer("seccomp", "enforced", spec["details"]["seccomp"])
