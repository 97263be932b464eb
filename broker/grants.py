"""From the policy to what the kernel can be told: the real files and directories behind names and patterns.

Looks at this machine once, at the start. Where the two differ the kernel gets less: a program that is not there is not
granted, a pattern with wildcards grants what exists now.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from types import MappingProxyType

import attrs

from broker.scope import Grants
from policy.command import executables
from policy.decision import Allow
from policy.known import may_run_of
from policy.path import PathRules, Root, decide_beneath, decide_path, kernel_roots
from policy.pattern import ANY_DEPTH, Pattern, components, is_glob
from policy.rules import CommandRule, Policy, ResourceLimits, ResourceOverride
from sandbox.machine.programs import Program, resolve_program
from sandbox.paths import is_beneath_any
from sandbox.plan.limits import Limits
from sandbox.plan.plan import ClosedPaths, Names, SessionUser

BENEATH = "/**"


def resolve_programs(policy: Policy) -> Mapping[str, Program]:
    """The facts about every executable that the policy names, as far as it is on this machine."""
    named = {rule.executable for rule in policy.allowed_commands.values()}
    named |= {entry for rule in policy.allowed_commands.values() for entry in _single_programs(rule)}
    found = {path: resolve_program(path) for path in sorted(named)}
    return MappingProxyType({path: program for path, program in found.items() if not program.problem})


def find_grants(
    policy: Policy, rules: PathRules, programs: Mapping[str, Program], user: SessionUser, links: tuple[str, ...] = ()
) -> Grants:
    """Return what a session of *user* may write, what it and its commands may execute, what it must not see or change.

    *links*: symbolic links that must not be replaced, wherever they lead.
    """
    rule_paths = {name: tuple(_exec_paths(rule, programs)) for name, rule in policy.allowed_commands.items()}
    everything = dict.fromkeys(path for paths in rule_paths.values() for path in paths)
    narrowed = {
        name: rule_paths[name] for name, rule in policy.allowed_commands.items() if may_run_of(rule) is not None
    }
    return Grants(
        write_paths=tuple(dict.fromkeys(path for root in kernel_roots(rules) for path in _existing(rules, root))),
        exec_paths=tuple(everything),
        of_command=MappingProxyType(narrowed),
        named_programs=tuple(entry.removesuffix(BENEATH) for entry in executables(policy)),
        closed=closed_by(rules, (os.path.realpath(user.own_home),), links),
    )


def closed_by(rules: PathRules, opened: tuple[str, ...] = (), links: tuple[str, ...] = ()) -> ClosedPaths:
    """Return what the kernel closes to commands: blocked and guarded patterns, and where those begin that say it.

    A pattern without wildcards closes a name that is not there yet as well, and one with wildcards in its last name
    closes such names in a directory: those take no new ones. Not so for the pack of secrets: what a session itself puts
    where a secret would lie is nobody's.
    """
    expressions = rules.tree
    patterns = (pattern for pattern in (*rules.blocked, *rules.guarded) if pattern.pack != "secrets")
    stems = dict.fromkeys(_stem(pattern.parts) for pattern in patterns)
    return ClosedPaths(
        blocked=Names(from_root=expressions.blocked_from_root, anywhere=expressions.blocked_anywhere),
        guarded=Names(from_root=expressions.guarded_from_root, anywhere=expressions.guarded_anywhere),
        last_names=expressions.last_names,
        places=_beginnings(rules.blocked),
        guarded_places=_beginnings(rules.guarded),
        names=(*(name for stem in stems for name in _names(stem) if not is_beneath_any(name, opened)), *links),
        folders=tuple(path for path in _folders(stems) if not is_beneath_any(path, opened)),
        opened=opened,
    )


def _beginnings(patterns: Iterable[Pattern]) -> tuple[str, ...]:
    beginnings = (takewhile(lambda part: not is_glob(part), pattern.parts) for pattern in patterns)
    places = dict.fromkeys("/" + "/".join(parts) for parts in beginnings)
    return tuple(place for place in places if place != "/")


def _stem(parts: tuple[str, ...]) -> tuple[str, ...]:
    while parts and parts[-1] == ANY_DEPTH:
        parts = parts[:-1]
    return parts


def _names(stem: tuple[str, ...]) -> Iterator[str]:
    if stem and not any(map(is_glob, stem)):
        yield "/" + "/".join(stem)


def _folders(stems: Iterable[tuple[str, ...]]) -> dict[str, None]:
    """The directories there are in which a pattern closes names: `/home/*` for `/home/*/.*`; none for `**/.env`."""
    patterns = ("/" + "/".join(stem[:-1]) for stem in stems if stem and ANY_DEPTH not in stem and is_glob(stem[-1]))
    found = (path for pattern in patterns for path in glob.glob(pattern, include_hidden=True) if os.path.isdir(path))
    return dict.fromkeys(map(os.path.realpath, found))


def without_own_files(
    rules: PathRules, hidden: Iterable[str], sealed: Iterable[str] = (), own_home: str = ""
) -> PathRules:
    """The rules with what is the broker's own closed, by its names and by where it really is.

    Args:
        hidden: absolute paths that no session may see; a `*` in a component is a wildcard.
        sealed: those that none may change.
        own_home: what commands have as their home, which stays open wherever it lies; empty: there is none.
    """
    homes = _named(filter(None, (own_home,)))
    return attrs.evolve(
        rules,
        blocked=(*rules.blocked, *_named(hidden, ANY_DEPTH, why="the broker's own")),
        guarded=(*rules.guarded, *_named(sealed, ANY_DEPTH, why="part of the broker's program")),
        opened=(*rules.opened, *homes),
    )


def _named(paths: Iterable[str], *end: str, why: str = "") -> Iterator[Pattern]:
    texts = dict.fromkeys(name for path in paths for name in (path, os.path.realpath(path)))
    return (Pattern(text=text, parts=(*components(text), *end), why=why) for text in texts)


def _single_programs(rule: CommandRule) -> Iterator[str]:
    return (entry for entry in may_run_of(rule) or () if not entry.endswith(BENEATH))


def _exec_paths(rule: CommandRule, programs: Mapping[str, Program]) -> Iterator[str]:
    """The files and directories that a command of this rule may execute: itself, its helpers, their loaders."""
    for path in (rule.executable, *_single_programs(rule)):
        if program := programs.get(path):
            yield from program.exec_paths
    for entry in may_run_of(rule) or ():
        directory = os.path.realpath(entry.removesuffix(BENEATH))
        if entry.endswith(BENEATH) and os.path.isdir(directory):
            yield directory


def _existing(rules: PathRules, root: Root) -> Iterator[str]:
    """The real directories (or single files) that a pattern stands for now; a link leads only to what is allowed."""
    for path in [root.prefix] if root.literal else glob.iglob(root.glob, recursive=True, include_hidden=True):
        if os.path.isdir(path) if root.beneath else os.path.isfile(path):
            real = os.path.realpath(path)
            decisions = [decide_path(rules, real, "enter")]
            if root.beneath and real != path:
                decisions.append(decide_beneath(rules, real))
            if all(isinstance(decision, Allow) for decision in decisions):
                yield real


def limits_of(limits: ResourceLimits | ResourceOverride) -> Limits:
    """Return what the policy says, as the sandbox says it."""
    return Limits(
        memory_max_bytes=limits.memory_max,
        swap_max_bytes=limits.memory_swap_max,
        pids_max=limits.pids_max,
        file_size_max_bytes=limits.file_size_max,
        open_files_max=limits.open_files_max,
        cpu_max_cores=limits.cpu_max,
        io_weight=limits.io_weight,
    )
