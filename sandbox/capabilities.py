"""What this kernel and this user can do, as one frozen value.

Only looks; nothing here changes the process. Each feature carries the sentence that says why it is missing,
because `plan` and the operator need the reason and not only the fact.
"""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from sandbox import landlock, syscalls

CAP_SETGID_BIT = 6
CAP_SETUID_BIT = 7


@attrs.frozen(kw_only=True)
class Feature:
    """One thing a kernel may offer: present, or absent for a stated reason."""

    present: bool
    detail: str


@attrs.frozen(kw_only=True)
class Capabilities:
    """The facts `plan` decides on."""

    landlock_abi: int
    landlock_detail: str
    is_root: bool
    may_switch_user: bool
    seccomp: Feature
    user_namespaces: Feature


def probe() -> Capabilities:
    """Look at the running kernel and at the rights of this process."""
    abi, why_not = landlock.abi()
    return Capabilities(
        landlock_abi=abi,
        landlock_detail=f"ABI {abi}" if abi else why_not,
        is_root=os.geteuid() == 0,
        may_switch_user=_may_switch_user(),
        seccomp=_seccomp(),
        user_namespaces=_user_namespaces(),
    )


def _may_switch_user() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return all(effective >> bit & 1 for bit in (CAP_SETGID_BIT, CAP_SETUID_BIT))
    return False


def _seccomp() -> Feature:
    try:
        syscalls.this_machine()
    except syscalls.UnknownMachine as error:
        return Feature(present=False, detail=str(error))
    actions = _read("/proc/sys/kernel/seccomp/actions_avail")
    if "errno" in actions.split():
        return Feature(present=True, detail="filters")
    return Feature(present=False, detail="this kernel has no seccomp filters")


def _user_namespaces() -> Feature:
    if _read("/proc/sys/user/max_user_namespaces").strip() in {"", "0"}:
        return Feature(present=False, detail="user.max_user_namespaces is 0 or missing")
    if _read("/proc/sys/kernel/unprivileged_userns_clone").strip() == "0":
        return Feature(present=False, detail="kernel.unprivileged_userns_clone is 0")
    if _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").strip() == "1":
        return Feature(present=False, detail="kernel.apparmor_restrict_unprivileged_userns is 1")
    return Feature(present=True, detail="allowed")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:  # an absent file is the kernel's way to say that it has no such feature
        return ""
