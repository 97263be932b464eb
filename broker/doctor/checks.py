"""The attacks of the doctor: which layers claim to stop each, and what an outcome means. Values and pure functions.

A fence claims an attack where its layer is enforced inside the session; `partial` says that the part of a layer that is
meant holds although the layer as a whole is reported as partial. An attack that does not work without walls either
proves nothing and is skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import attrs

from sandbox.plan.plan import TASKS_TOGETHER, LayerReport

State = Literal["pass", "FAIL", "not fenced", "skipped"]
MIB = 1024 * 1024
MEMORY_BYTES = 96 * MIB
TASKS = 48
BOMB_TASKS = 2500


@attrs.frozen
class Fence:
    """A layer that claims to stop an attack."""

    layer: str
    partial: bool = False
    says: str = ""
    """What the layer must say of itself to claim this."""

    def holds(self, reports: Mapping[str, LayerReport], *, as_root: bool) -> bool:
        """Whether it claims to hold in this session."""
        if self.layer == "user" and not as_root:  # a plain user's broker and its sessions are the same user
            return False
        state = reports[self.layer].state
        if self.says and self.says not in reports[self.layer].detail:
            return False
        return state == "enforced" or (self.partial and state == "partial")


@attrs.frozen(kw_only=True)
class Check:
    """One attack. `needs`: facts of the fixtures without which it cannot be tried; they are given to it."""

    title: str
    attack: str
    fences: tuple[Fence, ...]
    needs: tuple[str, ...] = ()
    given: Mapping[str, Any] = attrs.field(factory=dict)
    limited: bool = False
    """Run under the doctor's own small limits."""
    always: bool = False
    """Held by how the sandbox is made, whatever layers there are."""
    as_broker: bool = False
    """The control runs as the broker's own user."""
    network: bool = False
    """Tried as a command that may use the network, if any may."""


@attrs.frozen(kw_only=True)
class Attempt:
    """Outcome of one attack: `said` is the attack's own word, or why it was stopped."""

    through: bool
    said: str


@attrs.frozen(kw_only=True)
class Line:
    """One line of the doctor's answer."""

    title: str
    state: State
    detail: str


LANDLOCK, SECCOMP, TREE = Fence("landlock"), Fence("seccomp"), Fence("process_tree")
PIDS, MOUNTS, NETWORK = Fence("pid_namespace"), Fence("mount_namespace"), Fence("network")
USER, RLIMITS, CGROUP = Fence("user"), Fence("rlimits", partial=True), Fence("cgroup", partial=True)
VICTIM = ("victim", "mark")


def _around(title: str, attack: str, *needs: str) -> Check:
    return Check(title=title, attack=attack, needs=needs, fences=(MOUNTS, LANDLOCK))


CHECKS_AROUND = (
    _around("change the broker's own code", "change_file", "code_file"),
    Check(
        title="change the mode of the broker's own code", attack="change_mode", needs=("code_file",), fences=(MOUNTS,)
    ),
    _around("change the broker's own code by another name", "link_file", "code_file", "workspace"),
    _around("put a module beside the broker's own", "make_file", "module_new"),
    _around("put a .pth file among its libraries", "make_file", "pth_new"),
    _around("rename the folder of the broker's code", "rename_folder", "code_folder", "beside_code"),
    _around("rename the folder above that", "rename_folder", "code_above", "beside_above"),
    _around("replace a program beside the broker's interpreter", "replace_file", "beside_interpreter"),
    _around("change the broker's configuration", "change_file", "config_file"),
    _around("put a file beside that", "make_file", "config_new"),
    _around("put a file where the next start looks for configuration", "make_file", "next_config"),
    _around("change the audit log", "change_file", "audit_file"),
    _around("forge an audit log that was rotated", "make_file", "log_new"),
    _around("put a file among what the broker keeps", "make_file", "kept_new"),
    _around("put a file into its state folder", "make_file", "state_new"),
    _around("make a start file in the user's home", "make_file", "dot_new"),
    _around("change a start file in the user's home", "change_file", "dot_file"),
    Check(title="change a repository's configuration", attack="change_file", needs=("git_config",), fences=(MOUNTS,)),
    Check(title="put a hook into a repository", attack="make_file", needs=("hook_new",), fences=(MOUNTS,)),
)
"""What something outside obeys: the broker, its next start, the user's shell, git."""

CHECKS = (
    Check(
        title="write a file outside the allowed paths", attack="write_file", needs=("outside_new",), fences=(LANDLOCK,)
    ),
    Check(
        title="read a file outside the allowed paths", attack="read_file", needs=("outside_file",), fences=(LANDLOCK,)
    ),
    Check(
        title="read a path that the policy blocks",
        attack="read_file",
        needs=("blocked_file",),
        fences=(Fence("blocked_paths"),),
    ),
    Check(
        title="read the broker's audit log",
        attack="read_file",
        needs=("audit_file",),
        fences=(LANDLOCK, USER),
        as_broker=True,
    ),
    Check(title="run a program that no rule names", attack="execute", needs=("program",), fences=(LANDLOCK,)),
    Check(title="run a program of the workspace", attack="execute", needs=("own_program",), fences=(LANDLOCK,)),
    Check(title="run a program from memory", attack="execute_memory", needs=("program",), fences=(SECCOMP,)),
    Check(title="inherit a descriptor of the sandbox", attack="descriptors", fences=(), always=True),
    Check(title="trace the process that keeps it", attack="trace", needs=VICTIM, fences=(LANDLOCK, SECCOMP)),
    Check(title="signal the process that keeps it", attack="keeper", needs=VICTIM, fences=(TREE,)),
    Check(title="signal a process outside (such as the broker)", attack="signal", needs=VICTIM, fences=(TREE, PIDS)),
    Check(title="set limits of a process outside", attack="limits", needs=VICTIM, fences=(SECCOMP, PIDS)),
    Check(title="read the variables of a process outside", attack="environment", needs=VICTIM, fences=(LANDLOCK, PIDS)),
    Check(title="see the arguments of a process outside", attack="see", needs=VICTIM, fences=(PIDS,)),
    Check(
        title="leave a daemon behind (setsid, two forks)",
        attack="daemon",
        needs=("lock",),
        fences=(Fence("process_tree", partial=True), PIDS, CGROUP),
    ),
    Check(
        title=f"start {BOMB_TASKS} tasks",
        attack="threads",
        given={"count": BOMB_TASKS},
        limited=True,
        fences=(CGROUP, RLIMITS),
    ),
    Check(
        title=f"start {TASKS} tasks where a command may have {TASKS // 2}",
        attack="threads",
        given={"count": TASKS},
        limited=True,
        fences=(CGROUP, Fence("rlimits", partial=True, says=TASKS_TOGETHER)),
    ),
    Check(
        title="use more memory than a command may, in one process",
        attack="memory",
        given={"bytes": 2 * MEMORY_BYTES},
        limited=True,
        fences=(CGROUP, RLIMITS),
    ),
    Check(
        title="use more memory than a command may, in several",
        attack="memory_together",
        given={"bytes": MEMORY_BYTES * 3 // 4, "processes": 3},
        limited=True,
        fences=(CGROUP,),
    ),
    Check(
        title="connect to a service of this machine (TCP)",
        attack="connect",
        given={"family": "AF_INET"},
        needs=("tcp",),
        fences=(Fence("network", partial=True),),
    ),
    Check(
        title="call the broker through its own port",
        attack="call_broker",
        needs=("own_port",),
        always=True,
        as_broker=True,
        network=True,
        fences=(NETWORK,),
    ),
    Check(
        title="connect to an abstract socket",
        attack="connect",
        given={"family": "AF_UNIX"},
        needs=("abstract",),
        fences=(Fence("process_tree"), NETWORK),
    ),
    Check(
        title="connect to a socket in the file system",
        attack="connect",
        given={"family": "AF_UNIX"},
        needs=("named",),
        fences=(MOUNTS,),
    ),
    Check(
        title="make a program that runs as the session's user (set-user-ID)",
        attack="set_user_id",
        needs=("lock",),
        fences=(SECCOMP,),
    ),
    Check(title="make a user namespace", attack="namespace", fences=(SECCOMP,)),
    Check(title="set up io_uring", attack="ring", fences=(SECCOMP,)),
    Check(title="keep a key in the kernel", attack="key", fences=(SECCOMP,)),
    *CHECKS_AROUND,
)

NAMES = MappingProxyType(
    {
        **dict.fromkeys(("outside_new", "outside_file", "blocked_file", "audit_file", "lock"), "path"),
        **dict.fromkeys(("code_file", "code_folder", "code_above", "module_new", "pth_new"), "path"),
        **dict.fromkeys(("config_file", "config_new", "next_config", "log_new", "kept_new", "state_new"), "path"),
        **dict.fromkeys(("beside_interpreter", "dot_new", "dot_file", "git_config", "hook_new"), "path"),
        **dict.fromkeys(("beside_code", "beside_above"), "beside"),
        **dict.fromkeys(("program", "own_program"), "program"),
        **dict.fromkeys(("tcp", "own_port", "abstract", "named"), "address"),
    }
)
"""The name of a fact of the fixtures as an argument of its attack; others keep their name."""


def judge(check: Check, attempt: Attempt, layers: Sequence[LayerReport], *, as_root: bool) -> Line:
    """Say what an attempt inside means, given that the same one succeeded outside."""
    reports = {layer.name: layer for layer in layers}
    claims = ["the sandbox itself"] if check.always else []
    claims += [fence.layer for fence in check.fences if fence.holds(reports, as_root=as_root)]
    if not attempt.through:
        partly = [f"{name} in part" for name in _own_names(check, as_root=as_root) if reports[name].state == "partial"]
        by = ", ".join(claims or partly) or "no layer claims it"
        return Line(title=check.title, state="pass", detail=f"{by}: {attempt.said}")
    if claims:
        return Line(title=check.title, state="FAIL", detail=f"{claims[0]} claims to hold, but {attempt.said}")
    missing = [
        f"{name} is {reports[name].state}: {reports[name].detail}" for name in _own_names(check, as_root=as_root)
    ]
    return Line(title=check.title, state="not fenced", detail="; ".join(missing))


def _own_names(check: Check, *, as_root: bool) -> list[str]:
    return [fence.layer for fence in check.fences if fence.layer != "user" or as_root]


def skipped(check: Check, why: str) -> Line:
    """Say why an attack was not tried."""
    return Line(title=check.title, state="skipped", detail=why)
