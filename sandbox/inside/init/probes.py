"""Probes of what is true inside a session's walls, layer by layer, after the last stage. Child side, stdlib only.

A wall that was raised and does not hold fails the birth; one that was not raised is told with the reason.
"""

from __future__ import annotations

import os
import resource

from sandbox.inside import blocked_paths
from sandbox.inside.init.birth import CANARY, can_list
from sandbox.inside.stages import StageFailed
from sandbox.kernel import namespaces, process, processes, seccomp

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from sandbox.inside.init.birth import Birth
    from sandbox.protocol.commands import LayerFound, LayerState


def report(birth: Birth) -> list[LayerFound]:
    """Say of each layer what is true in here now. Raises StageFailed where a wall does not hold."""
    return [
        _user(birth),
        _no_new_privs(),
        _landlock(birth),
        _process_tree(birth),
        _rlimits(birth),
        _blocked_paths(birth),
        _seccomp(birth),
        _pid_namespace(birth),
        _mount_namespace(birth),
        _network(birth),
    ]


def _layer(name: str, state: LayerState, detail: str) -> LayerFound:
    return {"name": name, "state": state, "detail": detail}


def _as_expected(birth: Birth, name: str) -> LayerFound:
    """Repeat what the plan said: nothing was tried, or the probes only confirm it."""
    return _layer(name, *birth.spec["expected"][name])


def _user(birth: Birth) -> LayerFound:
    spec = birth.spec
    uids, gids = os.getresuid(), os.getresgid()
    if set(uids) != {spec["uid"]} or set(gids) != {spec["gid"]}:
        raise StageFailed("user", f"the ids are {uids} and {gids}, not {spec['uid']} and {spec['gid']}")
    try:
        os.setuid(0)
    except OSError:  # EPERM, or EINVAL where a user namespace has no such user
        return _layer("user", "enforced", f"runs as {spec['user_name']} (uid {spec['uid']}), never as root")
    raise StageFailed("user", "root could be had back")


def _no_new_privs() -> LayerFound:
    if process.prctl(process.GET_NO_NEW_PRIVS) != 1:
        raise StageFailed("no_new_privs", "the flag is not set")
    if process.prctl(process.GET_DUMPABLE) != 0:
        raise StageFailed("not_dumpable", "the init can be traced by its own user")
    if left := set(namespaces.capabilities_left()) - {"CapBnd"}:  # what that admits, no_new_privs keeps out
        raise StageFailed("capabilities", f"there are some left: {_some(tuple(sorted(left)))}")
    return _layer("no_new_privs", "enforced", "set-user-ID programs gain nothing")


def _landlock(birth: Birth) -> LayerFound:
    spec = birth.spec
    if not spec["abi"]:
        return _as_expected(birth, "landlock")
    if birth.canary_sings and not spec["canary_granted"] and can_list(CANARY):
        raise StageFailed("landlock", f"{CANARY} can still be listed")
    limits = [] if spec["abi"] >= 3 else ["truncation is not restricted before ABI 3"]
    if spec["abi"] < 2:
        limits.append("nothing can be moved between directories before ABI 2")
    if spec["canary_granted"]:
        limits.append("the policy allows the whole file system")
    if not spec["terminals"]:
        limits.append(
            "commands open no terminal by name and make none (script, tmux): those of the broker's user are among them"
        )
    if birth.missing:
        limits.append("not there or not reachable, so not granted: " + _some(birth.missing))
    detail = (
        f"ABI {spec['abi']}; of the system's programs in bin, sbin, games and libexec those that may not be executed "
        "cannot be read either"
    )
    return _layer("landlock", "enforced" if spec["abi"] >= 3 else "partial", "; ".join([detail, *limits]))


def _some(paths: tuple[str, ...]) -> str:
    shown = ", ".join(paths[:5])
    return shown if len(paths) <= 5 else f"{shown} and {len(paths) - 5} more"


def _process_tree(birth: Birth) -> LayerFound:
    if not process.is_subreaper():
        raise StageFailed("process_tree", "orphans would escape")
    scoped = birth.spec["abi"] >= 6
    if not birth.prepared.flags and scoped and not processes.scope_holds(birth.spec["broker_pid"]):
        raise StageFailed("process_tree", "the broker can be signalled from inside")
    return _as_expected(birth, "process_tree")


def _rlimits(birth: Birth) -> LayerFound:
    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        raise StageFailed("rlimits", "core files are not switched off")
    return _as_expected(birth, "rlimits")


def _seccomp(birth: Birth) -> LayerFound:
    if birth.spec["seccomp"] and (weak := seccomp.weak_points(birth.filter_options)):
        raise StageFailed("seccomp", f"these calls are not refused: {', '.join(weak)}")
    return _as_expected(birth, "seccomp")


def _pid_namespace(birth: Birth) -> LayerFound:
    if birth.prepared.flags:
        pids = {name for name in os.listdir("/proc") if name.isdigit()}
        if os.getpid() != 1 or pids != {"1"}:
            raise StageFailed("pid_namespace", f"processes {_some(tuple(sorted(pids)))} are in sight")
    return _as_expected(birth, "pid_namespace")


def _mount_namespace(birth: Birth) -> LayerFound:
    if birth.prepared.flags:
        for line in namespaces.read_bytes("/proc/self/mountinfo").splitlines():
            _, _, _, _, place, options, *_ = line.split(b" ")
            held = options.split(b",")
            if b"nosuid" not in held or not (b"nodev" in held or place.startswith(b"/dev")):
                raise StageFailed("mount_namespace", f"{os.fsdecode(place)} has devices or set-user-ID programs")
    return _as_expected(birth, "mount_namespace")


def _network(birth: Birth) -> LayerFound:
    if birth.prepared.flags & namespaces.NET and namespaces.interfaces() != ("lo",):
        raise StageFailed("network", f"interfaces {_some(namespaces.interfaces())} are in sight")
    return _as_expected(birth, "network")


def _blocked_paths(birth: Birth) -> LayerFound:
    if birth.search is None:
        return _as_expected(birth, "blocked_paths")
    closed = birth.closed
    state, detail = birth.spec["expected"]["blocked_paths"]
    counts = [f"{len(closed.masked)} covered", f"{len(closed.guarded)} kept from changes"]
    if closed.left:
        counts.append(f"{closed.left} kept from changes by file tools alone")
    if closed.framed:
        counts.append(f"{len(closed.framed)} directories take no new names: {_some(tuple(closed.framed))}")
    if missed := birth.search.missed:
        detail += (
            f"; NOT ALL: there are more than {blocked_paths.MAX_NAMES} names, and commands can reach what is blocked "
            f"in {len(missed)} directories that were not looked at, with all beneath: {_some(missed)}"
        )
    if not birth.spec["close"]["system_known"]:
        detail += "; NOT ALL: the system's directories were not looked through yet when this session began"
    return _layer("blocked_paths", state, "; ".join([*counts, detail]))
