"""Tries, in a throw-away process, the namespaces a session would get: a plan believes this and no setting.

Whether a host allows them is decided in many places (sysctls, AppArmor, the filter of a container, masks over
/proc), and the last of them may only show when the new root is built. Child side, stdlib only; run by an
interpreter of its own, it prints one line of JSON: the stage that failed and why, or what else was found out.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource

from sandbox.kernel import namespaces, root
from sandbox.kernel.mounting import NO_DEV, NO_SUID, READ_ONLY

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from sandbox.protocol.commands import TrialVerdict

# Of the machine's tree and of private directories: what is tried is the way, not the place.
ENOUGH = (("/usr", READ_ONLY),)
_IN_HERE = 3  # tasks
PRIVATE = (("/private", NO_SUID | NO_DEV),)


def main(flags: int, uid: int, gid: int) -> NoReturn:
    """Try *flags*, as somebody else if they hold a user namespace and we are root; say how far it went.

    As at a birth, who moves into the namespaces leaves process 1 of them to its own parent: here that is us.
    """
    if os.fork() == 0:
        _try(flags, uid, gid)
    os._exit(reap_all())


def reap_all() -> int:
    """Wait until this process has no child any more; return the first exit code that is not 0, as a shell would."""
    code = 0
    with contextlib.suppress(ChildProcessError):  # none is left
        while True:
            _, status = os.wait()
            code = code or os.waitstatus_to_exitcode(status) & 0xFF
    return code


def _try(flags: int, uid: int, gid: int) -> NoReturn:
    stages: list[tuple[str, Callable[[], object]]] = [
        ("namespaces", lambda: _unshare(flags, uid, gid)),
        ("pid_namespace", lambda: namespaces.clone_first(lambda _pidfd: None)),
        ("mount_namespace", lambda: root.build(root.RootPlan(binds=ENOUGH, private=PRIVATE))),
    ]
    if flags & namespaces.NET:
        stages.insert(2, ("network", namespaces.raise_loopback))
    for name, stage in stages:
        try:
            stage()
        except OSError as error:
            _say({"stage": name, "why": error.strerror or str(error)})
    _say({"own_task_count": bool(flags & namespaces.USER) and _counts_by_itself()})


def _counts_by_itself() -> bool:
    """Tell whether RLIMIT_NPROC counts the tasks of our user namespace alone: ourselves and our child.

    And, until it is reaped, the process that started us. The user has two more on the machine, the broker and who
    reaps. Root would not be refused either way.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (_IN_HERE, hard))
    try:
        pid = os.fork()
    except BlockingIOError:
        return False
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return True


def _unshare(flags: int, uid: int, gid: int) -> None:
    if flags & namespaces.USER and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    namespaces.unshare(flags)


def _say(verdict: TrialVerdict) -> NoReturn:
    os.write(1, json.dumps(verdict).encode("ascii") + b"\n")
    os._exit(0)
