"""From the policy to what the kernel can be told: the real files and directories behind names and patterns.

Looks at this machine once, at the start. Where the two differ the kernel gets less: a program that is not there is not
granted, a pattern with wildcards grants what exists now.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from itertools import takewhile
from types import MappingProxyType

import attrs

from broker.host import Grants
from policy.command import executables
from policy.decision import Allow, Deny
from policy.known import may_run_of
from policy.path import PathRules, Pattern, Root, decide_beneath, decide_path, kernel_roots
from policy.pattern import ANY_DEPTH, components, is_glob
from policy.rules import CommandRule, Policy, ResourceLimits, ResourceOverride
from policy.treefilter import tree_filter
from sandbox.limits import Limits
from sandbox.plan import Hidden, SessionUser
from sandbox.programs import Program, resolve_program

BENEATH = "/**"


def resolve_programs(policy: Policy) -> Mapping[str, Program]:
    """The facts about every executable that the policy names, as far as it is on this machine."""
    named = {rule.executable for rule in policy.allowed_commands.values()}
    named |= {entry for rule in policy.allowed_commands.values() for entry in _single_programs(rule)}
    found = {path: resolve_program(path) for path in sorted(named)}
    return MappingProxyType({path: program for path, program in found.items() if not program.problem})


def find_grants(policy: Policy, rules: PathRules, programs: Mapping[str, Program], user: SessionUser) -> Grants:
    """What a session of *user* may write, what it and each of its commands may execute, what it must not see."""
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
        hidden=hidden_by(rules),
        private_home=not user.dedicated and isinstance(decide_path(rules, user.home, "enter"), Deny),
    )


def hidden_by(rules: PathRules) -> Hidden:
    """What to cover in a session's own root: the blocked patterns, and where those begin that say it."""
    expressions = tree_filter(rules)
    beginnings = (takewhile(lambda part: not is_glob(part), pattern.parts) for pattern in rules.blocked)
    places = dict.fromkeys("/" + "/".join(parts) for parts in beginnings)
    return Hidden(
        from_root=expressions.blocked_from_root,
        anywhere=expressions.blocked_anywhere,
        places=tuple(place for place in places if place != "/"),
    )


def without_own_files(rules: PathRules, own_files: tuple[str, ...]) -> PathRules:
    """The rules with the broker's own files blocked, by their names and by where they really are.

    Args:
        own_files: absolute paths; a `*` in a component is a wildcard.
    """
    texts = dict.fromkeys(path for own in own_files for path in (own, os.path.realpath(own)))
    blocked = (Pattern(text=text, parts=(*components(text), ANY_DEPTH)) for text in texts)
    return attrs.evolve(rules, blocked=(*rules.blocked, *blocked))


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
    """What the policy says, as the sandbox says it."""
    return Limits(
        memory_max_bytes=limits.memory_max,
        swap_max_bytes=limits.memory_swap_max,
        pids_max=limits.pids_max,
        file_size_max_bytes=limits.file_size_max,
        open_files_max=limits.open_files_max,
        cpu_max_cores=limits.cpu_max,
        io_weight=limits.io_weight,
    )
