"""May a command use the network? What its rule says, else what the policy says, else what is known of the program.

Deny where nobody says anything. A rule that allows `git fetch` means that git may reach its remote, so the subcommands
whose work is the network have it, and no others of the same program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from policy.known import known_of

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from policy.rules import CommandRule, Policy

NetworkUse = Literal["none", "some", "all"]


def may_use_network(policy: Policy, rule: CommandRule, words: Sequence[str]) -> bool:
    """Tell whether a command line of *rule*, which passed its gates, gets internet sockets."""
    said = rule.network or policy.network
    if said is not None:
        return said == "allow"
    known = known_of(rule)
    return known is not None and any(_begins(tuple(words[1:]), entry.split()) for entry in known.network)


def network_use(policy: Policy, programs: Container[str]) -> NetworkUse:
    """Tell which of all command lines that can be run may use the network.

    Args:
        policy: whose rules are asked.
        programs: the executables that there are; the rule of another one opens nothing.
    """
    there = (rule for rule in policy.allowed_commands.values() if rule.executable in programs)
    uses = [_rule_use(policy, rule) for rule in there]
    if all(use == "none" for use in uses):
        return "none"
    return "all" if all(use == "all" for use in uses) else "some"


def _rule_use(policy: Policy, rule: CommandRule) -> NetworkUse:
    said = rule.network or policy.network
    if said is not None:
        return "all" if said == "allow" else "none"
    known = known_of(rule)
    entries = [entry.split() for entry in known.network] if known else []
    prefixes = [prefix.split() for prefix in rule.allowed_prefixes] or [[]]
    if all(any(_begins(prefix, entry) for entry in entries) for prefix in prefixes):
        return "all"
    reachable = any(_begins(prefix, entry) or _begins(entry, prefix) for prefix in prefixes for entry in entries)
    return "some" if reachable else "none"


def _begins(words: Sequence[str], beginning: Sequence[str]) -> bool:
    return list(words[: len(beginning)]) == list(beginning)
