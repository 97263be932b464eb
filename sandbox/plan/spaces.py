"""Choose the namespaces that sessions get, and say what that makes of their layers: pure, no IO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from sandbox.kernel import namespaces

if TYPE_CHECKING:
    from sandbox.machine.capabilities import Capabilities

NetworkUse = Literal["none", "some", "all"]
"""Commands that the policy allows to use the network."""

Words = tuple[Literal["enforced", "partial", "unavailable"], str]
SIGNAL_SCOPE_ABI = 6  # Linux 6.12: a Landlock domain may not signal what lies outside of it

NAMESPACES_REMEDY = (
    "set sandbox.enable_namespaces: true; for a plain user, allow user namespaces (sysctl user.max_user_namespaces "
    "above 0, kernel.unprivileged_userns_clone=1 where it exists, and on Ubuntu 23.10 and newer "
    "kernel.apparmor_restrict_unprivileged_userns=0 or an AppArmor profile with `userns`); for root in a container, "
    "start that with CAP_SYS_ADMIN and without masks over /proc"
)
NETWORK_REMEDY = "let the policy allow the network to no command, or allow namespaces: " + NAMESPACES_REMEDY

_SOCKETS = "sockets in it that the session's user may write to (tmux, ssh-agent, X11) can be connected to"
_OWN_PORT = "the broker's own port refuses them all, but not a proxy outside that they ask"
_LATER = (
    "one that appears later where it is not kept away (a new repository's .git/hooks) is looked for after commands and "
    "at the session's end, in so many names and seconds, and is recorded and told by get_system_info, but not closed "
    "to commands before the next session"
)
_SWITCHED_OFF = "switched off (sandbox.enable_namespaces)"
_ALWAYS = namespaces.PID | namespaces.IPC | namespaces.UTS


@attrs.frozen(kw_only=True)
class Spaces:
    """Namespaces of sessions, and what the layers say of them.

    `ahead`: flags of what is unshared before a birth, 0 for no namespaces at all; mounts are at the birth.

    `internet`: the session's own filter lets it through.
    """

    ahead: int
    internet: bool
    layers: tuple[tuple[str, Words], ...]


def choose_spaces(capabilities: Capabilities, *, enabled: bool, private_tmp: bool, network: NetworkUse) -> Spaces:
    """Decide what is unshared, and what stands in for it where that cannot be."""
    why_not = _SWITCHED_OFF if not enabled else capabilities.namespaces.detail
    flags = 0
    if enabled and capabilities.namespaces.present:
        flags = _ALWAYS | (0 if capabilities.is_root else namespaces.USER)
        if network == "none" and capabilities.network_namespace.present:
            flags |= namespaces.NET
    layers = (
        ("pid_namespace", _pid(flags, why_not)),
        ("mount_namespace", _mount(flags, why_not, private_tmp=private_tmp)),
        ("network", _network(capabilities, flags, why_not, network)),
        ("blocked_paths", _blocked(flags, capabilities.landlock_abi)),
        ("process_tree", _process_tree(capabilities, flags)),
    )
    filtered = network == "none" and not flags & namespaces.NET
    return Spaces(ahead=flags, internet=not filtered, layers=layers)


def _pid(flags: int, why_not: str) -> Words:
    if not flags:
        return "unavailable", f"{why_not}; commands see the ids of all processes"
    return "enforced", "commands see the processes of their session only, and all of them end with its first one"


def _mount(flags: int, why_not: str, *, private_tmp: bool) -> Words:
    if not flags:
        return "unavailable", f"{why_not}; /tmp is the machine's own, and {_SOCKETS}"
    root = (
        "a root of its own that holds the system read-only and what the policy allows, without set-user-ID programs, "
        "without devices but those that every program knows, and without execution where the policy names no program; "
        "/tmp is"
    )
    if private_tmp:
        return "enforced", f"{root} the session's own"
    where = "the machine's where the policy allows that (sandbox.private_tmp is false)"
    return "partial", f"{root} {where}, and then {_SOCKETS} if they appear after the birth"


def _network(capabilities: Capabilities, flags: int, why_not: str, network: NetworkUse) -> Words:
    if network == "all":
        return "unavailable", f"the policy allows the network to every command; {_OWN_PORT}"
    if flags & namespaces.NET:
        return "enforced", "a network of its own: loopback, and nobody else"
    if not capabilities.seccomp.present:
        why = capabilities.network_namespace.detail if flags else why_not
        why = why if network == "none" else "the policy allows the network to some command lines"
        return "unavailable", f"{why}, and {capabilities.seccomp.detail}"
    words = "all commands get no internet sockets, not even for loopback"
    if network == "some":
        words = (
            "the policy allows the network to some command lines; the others get no internet sockets, not even for "
            "loopback, and can only have one of those do it for them"
        )
    limits = [] if network == "none" else [_OWN_PORT]
    partial = not flags or capabilities.landlock_abi < SIGNAL_SCOPE_ABI
    if not flags:
        limits.append("sockets of the machine that have a path (a resolver, a proxy) are in reach without namespaces")
    if capabilities.landlock_abi < SIGNAL_SCOPE_ABI:
        limits.append("abstract unix sockets of the machine are in reach before Landlock ABI 6")
    return "partial" if partial else "enforced", "; ".join([words, *limits])


def _blocked(flags: int, landlock_abi: int) -> Words:
    if flags:
        return "partial", (
            "enforced for the file tools; from commands those are closed that were there when the session began, and "
            f"names that the rules give without wildcards, there or not; {_LATER}"
        )
    if not landlock_abi:
        return "partial", (
            "enforced for the file tools; commands can reach them inside an allowed root, which only Landlock or a "
            "mount namespace could prevent"
        )
    return "partial", (
        "enforced for the file tools; from commands those are closed that were there when the session began, and "
        "names that the rules give without wildcards, there or not, but their names can be listed, and their modes and "
        "times changed, and what must not be changed wherever it lies (.git/config) is kept by the file tools alone: "
        f"only a mount namespace could prevent these; {_LATER}"
    )


def _process_tree(capabilities: Capabilities, flags: int) -> Words:
    if capabilities.landlock_abi >= SIGNAL_SCOPE_ABI:
        return "enforced", "one subreaper and signal scope per command"
    others = "the session's" if flags else "the user's"
    return "partial", (
        f"trees are ended in rounds and commands can signal {others} other processes; "
        f"Landlock ABI {SIGNAL_SCOPE_ABI} (Linux 6.12) closes this; here: {capabilities.landlock_detail}"
    )
