"""Starts that must not be, because sessions could do nothing, or could change what the next start executes.

Nothing switches these off. Each says which path, which pattern, and the ways out. Blocking, at start.
"""

from __future__ import annotations

import os
import sys

import attrs

from broker.trusted.places import Origin, TrustedPlaces, holds_only, is_in
from config.load import Config
from policy.decision import Allow, PathDecision
from policy.path import PathRules, decide_beneath, kernel_roots
from sandbox.plan.plan import Plan, SessionUser
from sandbox.plan.spaces import NAMESPACES_REMEDY

TRUNCATION_ABI = 3  # before it, Landlock lets files be emptied that may only be read


class Untenable(Exception):
    """The broker must not start with this policy from here; the text is for the operator."""


def refuse_untenable(
    config: Config, trusted: TrustedPlaces, user: SessionUser, plan: Plan, started_in: str | None
) -> None:
    """Let the start go on only where the trusted places can be kept and leave sessions something to do.

    Args:
        config: of the operator.
        trusted: the places.
        user: of the sessions.
        plan: of the walls.
        started_in: the folder from which modules were taken because of how the broker was started; see `module_folder`.

    Raises:
        Untenable: it cannot go on.
    """
    rules = PathRules.of(config.policy, user.home)
    if not (user.dedicated or plan.spaces or plan.landlock_abi >= TRUNCATION_ABI):
        _refuse_unfenced(rules, trusted)
    _refuse_lost_home(rules, trusted, user)
    _refuse_lost_roots(rules, trusted)
    _refuse_shared_log_folder(config, rules, trusted)
    if started_in is not None:
        _refuse_module_folder(rules, trusted, started_in)


def _refuse_unfenced(rules: PathRules, trusted: TrustedPlaces) -> None:
    granted = attrs.evolve(rules, blocked=(), guarded=())  # what the kernel would be told
    for origin in trusted.origins:
        if allowed := _allowed(granted, origin.path):
            raise Untenable(
                f"{origin.path} is {origin.reason}, and sessions, which run as the same user, may write there "
                f"({allowed}): this machine has neither namespaces for them nor Landlock ABI {TRUNCATION_ABI} (Linux "
                f"6.2), so nothing would keep them from it. Do one of these: {NAMESPACES_REMEDY}; start the broker as "
                "root, which gives sessions another user; or allow less in allowed_paths"
            )


def module_folder() -> str | None:
    """The current folder, if this process was started by `python -m broker`, which takes modules from there."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None or spec.name != "broker.__main__" or sys.flags.safe_path:
        return None
    try:
        return os.getcwd()
    except FileNotFoundError:  # it is gone, and with it all modules
        return None


def _refuse_lost_home(rules: PathRules, trusted: TrustedPlaces, user: SessionUser) -> None:
    for home in dict.fromkeys((user.home, os.path.realpath(user.home))):
        pattern = _allowed(rules, home)
        place = next((place for place in trusted.origins if _takes(place, home, trusted)), None)
        if pattern and place:
            raise Untenable(
                f"{place.path} is {place.reason}, which no session may change, and so none could work in the home "
                f"{home}, which allowed_paths opens ({pattern}). Keep that in a folder of its own, or give sessions "
                "another home (started as root: sandbox.unprivileged_user)"
            )


def _takes(place: Origin, home: str, trusted: TrustedPlaces) -> bool:
    """Tell whether a place leaves nothing of a home; if the broker keeps that, only the home or what is in it."""
    return is_in(place.path, (home,)) if is_in(home, trusted.holes) else is_in(home, (place.path,))


def _refuse_lost_roots(rules: PathRules, trusted: TrustedPlaces) -> None:
    roots = kernel_roots(rules)
    closed = [root for root in roots if is_in(root.prefix, trusted.hidden) and not is_in(root.prefix, trusted.holes)]
    if roots and len(closed) == len(roots):
        patterns = ", ".join(root.pattern for root in closed)
        raise Untenable(
            f"allowed_paths ({patterns}) opens nothing but what the broker itself obeys and keeps, which no session "
            "may read or write: allow a folder beside it"
        )


def _refuse_shared_log_folder(config: Config, rules: PathRules, trusted: TrustedPlaces) -> None:
    logs = (config.server.logging.audit_log, config.server.logging.error_log)
    for log in logs:
        folder = os.path.realpath(log.parent)
        open_to_sessions = not is_in(folder, (*trusted.sealed, *trusted.hidden)) and _allowed(rules, folder)
        if open_to_sessions and not holds_only(log.parent, logs):
            raise Untenable(
                f"{log} lies among other files in a folder that sessions may write ({open_to_sessions}): one could put "
                "a file into the place of a log that is rotated. Name a folder of its own in logging.audit_log and "
                "error_log, or allow less in allowed_paths"
            )


def _refuse_module_folder(rules: PathRules, trusted: TrustedPlaces, folder: str) -> None:
    allowed = _allowed(rules, folder)
    if allowed and not is_in(folder, trusted.sealed):
        raise Untenable(
            f"`python -m broker` takes modules from the folder it is started in, {folder}, and sessions may write "
            f"there ({allowed}): the next start would execute what they wrote. Start it by its script, oc-broker, or "
            "by `python -P -m broker`, or in another folder, or allow less in allowed_paths"
        )


def _allowed(rules: PathRules, folder: str) -> str:
    """The pattern by which sessions may write in a real folder, under whatever name it is reached; or nothing."""
    names = [folder]
    for root in kernel_roots(rules):
        real = os.path.realpath(root.prefix)
        if is_in(folder, (real,)):
            names.append(root.prefix + folder[len(real) :])
    decisions = (decide_beneath(rules, name) for name in names)
    return next((_pattern(decision) for decision in decisions if isinstance(decision, Allow)), "")


def _pattern(decision: PathDecision) -> str:
    return decision.reason.rpartition(" matches ")[2].rstrip(".")
