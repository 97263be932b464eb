"""The broker's knowledge of programs: arguments that act, helpers that they need, the words that mean the network.

It holds for a rule that says nothing itself (`denied_args`, `may_run`, `network` left out), so that a file which only
names `/usr/bin/git` is not a way to write files or to start programs by an option. A rule that gives its own
list, even an empty one, replaces what stands here: the operator has the last word.

The network is denied where nobody says anything. A rule that allows `git fetch` means that git may reach its remote, so
the subcommands whose work is the network have it, and no others of the same program.

Entries are those of `denied_args` (see `arguments.py`). Options that only read are not listed: reading is
fenced by paths, in the kernel.
"""

from __future__ import annotations

import posixpath
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

import attrs

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from policy.rules import CommandRule, Policy

NetworkUse = Literal["none", "some", "all"]


@attrs.frozen(kw_only=True)
class Known:
    """One program: the arguments it must not get, the other programs it starts in honest use.

    `network`: the words after its name with which its work is the network.
    """

    denied_args: tuple[str, ...]
    may_run: tuple[str, ...] | None = None
    network: tuple[str, ...] = ()


_GIT_DENIED: Final = (
    # start a program that the argument names
    *("--upload-pack", "--receive-pack", "--exec", "--exec-path", "--open-files-in-pager", "grep -O"),
    *("clone -u", "rebase -x", "submodule foreach", "bisect run"),
    # start a program that the repository's configuration names (`--help`: a viewer of manual pages)
    *("--ext-diff", "--textconv", "cat-file --filters", "--help"),
    # configuration and hooks by argument
    *("--config-env", "clone --config", "clone -c", "--template"),
    # files written beside the repository
    *("--output", "--output-directory", "format-patch -o", "archive -o", "bundle create"),
    "--separate-git-dir",
    # take back the option that makes a subcommand a reading one: `branch --list --no-list x` makes a branch
    *("branch --no-list", "branch --no-show-current", "tag --no-list", "config --no-get", "config --no-list"),
    # files read that are in no repository
    "--no-index",
    # repositories in the repository, whose configuration no environment variable reaches
    *("clone --recurse-submodules", "clone --recursive", "fetch --recurse-submodules"),
    "pull --recurse-submodules",
    # take back the options that git.py inserts, or run git in a submodule all the same
    *("--ignore-submodules", "--submodule", "describe --dirty", "describe --broken"),
)

# git starts itself, its transport helpers and ssh. No shell: with none, a command that the configuration of a
# hostile repository names (filters, textconv, credential helpers, aliases) has nothing to run in.
_GIT_MAY_RUN: Final = (
    *("/usr/bin/git", "/usr/lib/git-core/**", "/usr/libexec/git-core/**"),
    "/usr/bin/ssh",
)

_GIT_NETWORK: Final = ("clone", "fetch", "ls-remote", "pull", "push", "remote show", "remote update")

KNOWN: Final[Mapping[str, Known]] = MappingProxyType(
    {
        "git": Known(denied_args=_GIT_DENIED, may_run=_GIT_MAY_RUN, network=_GIT_NETWORK),
        "find": Known(
            denied_args=(
                *("-exec", "-execdir", "-ok", "-okdir", "-delete"),
                *("-fprint", "-fprint0", "-fprintf", "-fls", "-files0-from"),
            ),
            may_run=(),
        ),
        "sort": Known(
            denied_args=(*("-o", "--output", "-T", "--temporary-directory", "--compress-program", "--files0-from"),),
            may_run=(),
        ),
        "diff": Known(denied_args=("-l", "--paginate"), may_run=()),  # they start `pr`
        "file": Known(
            # write a compiled magic file, start decompressors, switch its own sandbox off
            denied_args=(
                *("-C", "--compile", "-z", "-Z", "--uncompress", "--uncompress-noreport"),
                *("-S", "--no-sandbox", "-m", "--magic-file"),
            ),
            may_run=(),
        ),
        "rg": Known(
            denied_args=("--pre", "--pre-glob", "--hostname-bin", "-z", "--search-zip"),
            may_run=(),
        ),
        "tree": Known(denied_args=("-o", "-R"), may_run=()),  # both write files
        "tar": Known(
            denied_args=(
                *("--checkpoint-action", "--to-command", "--info-script", "--new-volume-script", "-F"),
                *("-I", "--use-compress-program", "--rsh-command", "--rmt-command"),
            ),
            may_run=("/usr/bin/gzip", "/usr/bin/bzip2", "/usr/bin/xz", "/usr/bin/zstd"),
        ),
    }
)


def known_of(rule: CommandRule) -> Known | None:
    """Return what is known of the program of *rule*, by the name of its executable."""
    return KNOWN.get(posixpath.basename(rule.executable))


def denied_args_of(rule: CommandRule) -> tuple[tuple[str, ...], bool]:
    """Return the denied arguments that hold for *rule*, and whether they are the built-in ones."""
    if rule.denied_args is not None:
        return rule.denied_args, False
    known = known_of(rule)
    return (known.denied_args, True) if known else ((), False)


def may_run_of(rule: CommandRule) -> tuple[str, ...] | None:
    """Return the programs that the program of *rule* may start; None: whatever its session may."""
    if rule.may_run is not None:
        return rule.may_run
    known = known_of(rule)
    return known.may_run if known else None


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
