"""Capabilities of this kernel and this user, as one frozen value.

Only looks, and has one thing tried by a process of its own; nothing here changes this one. Each feature carries the
sentence that says why it is missing, because `plan` and the operator need the reason and not only the fact.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

import sandbox
from sandbox.kernel import landlock, namespaces, syscalls

if TYPE_CHECKING:
    from sandbox.protocol.commands import TrialVerdict

CAP_SETGID_BIT = 6
CAP_SETUID_BIT = 7
CAP_SYS_ADMIN_BIT = 21
TRIAL = "import sys; sys.path.append({parent!r}); from sandbox.inside.init.trial import main; main({flags}, 0, 0)"
PACKAGE_PARENT = str(Path(sandbox.__file__ or "").resolve().parent.parent)
TRIAL_S = 60.0  # it takes about 50 ms, and seconds on a busy emulated machine
HINTS = (
    ("user.max_user_namespaces", "0"),
    ("kernel.unprivileged_userns_clone", "0"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1"),
)


@attrs.frozen(kw_only=True)
class Feature:
    """One thing a kernel may offer: present, or absent for a stated reason."""

    present: bool
    detail: str


@attrs.frozen(kw_only=True)
class Capabilities:
    """Facts that `plan` decides on."""

    landlock_abi: int
    landlock_detail: str
    is_root: bool
    may_switch_user: bool
    seccomp: Feature
    namespaces: Feature
    network_namespace: Feature
    own_task_count: bool
    """True where the kernel counts the tasks of a user namespace by themselves, if sessions have one."""


def probe() -> Capabilities:
    """Look at the running kernel and at the rights of this process."""
    abi, why_not = landlock.abi()
    is_root = os.geteuid() == 0
    spaces, network, counted = _namespaces(is_root=is_root)
    return Capabilities(
        landlock_abi=abi,
        landlock_detail=f"ABI {abi}" if abi else why_not,
        is_root=is_root,
        may_switch_user=_may_switch_user(),
        seccomp=_seccomp(),
        namespaces=spaces,
        network_namespace=network,
        own_task_count=counted,
    )


def _may_switch_user() -> bool:
    return all(_effective() >> bit & 1 for bit in (CAP_SETGID_BIT, CAP_SETUID_BIT))


def _effective() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _seccomp() -> Feature:
    try:
        syscalls.this_machine()
    except syscalls.UnknownMachine as error:
        return Feature(present=False, detail=str(error))
    actions = _read("/proc/sys/kernel/seccomp/actions_avail")
    if "errno" in actions.split():
        return Feature(present=True, detail="filters")
    return Feature(present=False, detail="this kernel has no seccomp filters")


def _namespaces(*, is_root: bool) -> tuple[Feature, Feature, bool]:
    """Try them: the many settings that forbid them only serve to explain a failure."""
    flags = namespaces.MOUNT | namespaces.PID | namespaces.IPC | namespaces.UTS
    flags |= 0 if is_root else namespaces.USER
    tried = Feature(present=True, detail="tried")
    why_not, counted = _attempt(flags | namespaces.NET)
    if not why_not:
        return tried, tried, counted
    without_network = Feature(present=False, detail=why_not + _hint(is_root=is_root))
    why, counted = _attempt(flags)
    if not why:
        return tried, without_network, counted
    return Feature(present=False, detail=why + _hint(is_root=is_root)), without_network, False


def _attempt(flags: int) -> tuple[str, bool]:
    """Try *flags* in a process of its own.

    Returns:
        Why that failed, or nothing; and whether the kernel counts the tasks in there by themselves.
    """
    try:
        tried = subprocess.run(
            [sys.executable, "-I", "-S", "-c", TRIAL.format(parent=PACKAGE_PARENT, flags=flags)],
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TRIAL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the trial of namespaces did not end within {TRIAL_S:g} s", False
    try:
        verdict: TrialVerdict = json.loads(tried.stdout)
    except ValueError:
        return f"the trial of namespaces ended without a word (status {tried.returncode})", False
    return (f"{verdict['stage']}: {verdict['why']}", False) if "stage" in verdict else ("", verdict["own_task_count"])


def _hint(*, is_root: bool) -> str:
    """Name the setting that is known to forbid what failed, if there is one."""
    if is_root:
        return " (root without CAP_SYS_ADMIN)" if not _effective() >> CAP_SYS_ADMIN_BIT & 1 else ""
    for setting, forbids in HINTS:
        if _read(f"/proc/sys/{setting.replace('.', '/')}").strip() == forbids:
            return f" ({setting} is {forbids})"
    return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:  # an absent file is the kernel's way to say that it has no such feature
        return ""
