"""The environment of a command: built from nothing, never inherited.

Three layers, a later one wins: a fixed base, the session's variables whose names the policy allows, the
rule's `env`. The rule comes last because it is the operator's word and the session's variables are the
agent's. A variable can be a program: `LD_PRELOAD`, `GIT_SSH_COMMAND`, `BASH_ENV`; hence names are decided.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import attrs

from policy.decision import Allow, Deny, VariableDecision, shown
from policy.grammar import VARIABLE_NAME
from policy.pattern import matches_name
from policy.variables import NEVER_SET

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policy.rules import Policy

# A repository's configuration can name programs, and git starts some of them on a plain `git status`. These
# keys are read last and therefore win over the repository's. What has a free name (filters, textconv, diff
# drivers, a submodule's own configuration) no variable can reach: the kernel's list of programs holds there.
_GIT_CONFIG: Final = (
    ("core.fsmonitor", "false"),
    ("core.hooksPath", "/dev/null"),
    ("core.alternateRefsCommand", "true"),
    ("credential.helper", ""),  # an empty entry forgets all helpers before it, those of single hosts too
    ("commit.gpgSign", "false"),
    ("gpg.format", "openpgp"),
    ("gpg.ssh.defaultKeyCommand", "false"),  # git splits it into words and runs it without a shell
    ("gpg.openpgp.program", "gpg"),
    ("gpg.ssh.program", "ssh-keygen"),
    ("gpg.x509.program", "gpgsm"),
    ("log.showSignature", "false"),
    ("gc.auto", "0"),  # no helper that lives on in the background
    ("maintenance.auto", "false"),
    ("safe.bareRepository", "explicit"),  # a repository hidden in a directory of another one is none
    ("submodule.recurse", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("diff.submodule", "short"),  # `diff` would run git in the submodule, without these variables
    ("status.submoduleSummary", "false"),
    ("init.templateDir", ""),  # a clone gets no hooks of a template
)

# git may be started by any command (make, npm, pip), so its part holds for all of them, not only for its rule.
BASE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",  # noqa: S108  (a command's own choice of names there; the kernel fences the rest)
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",  # ~/.gitconfig is a file that a session may write
        "GIT_CONFIG_COUNT": str(len(_GIT_CONFIG)),
        **{f"GIT_CONFIG_KEY_{number}": key for number, (key, _) in enumerate(_GIT_CONFIG)},
        **{f"GIT_CONFIG_VALUE_{number}": value for number, (_, value) in enumerate(_GIT_CONFIG)},
        "GIT_ALLOW_PROTOCOL": "https:ssh",  # `file` would start the program that remote.*.uploadpack names
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",  # these win over core.askPass, core.sshCommand, core.editor, core.pager
        "GIT_SSH_COMMAND": "ssh",
        "GIT_EDITOR": ":",
        "GIT_SEQUENCE_EDITOR": ":",
        "GIT_PAGER": "cat",
    }
)


@attrs.frozen(kw_only=True)
class User:
    """The user that a session's commands run as."""

    name: str
    home: str  # absolute


def build_environment(
    policy: Policy, *, user: User, rule_env: Mapping[str, str], session_env: Mapping[str, str]
) -> dict[str, str]:
    """Return the whole environment of a command.

    A session's variable that the policy denies is left out; `create_session` refused it already.
    """
    account = {"HOME": user.home, "USER": user.name, "LOGNAME": user.name}
    wanted = {
        name: value for name, value in session_env.items() if isinstance(decide_variable(policy, name, value), Allow)
    }
    return {**BASE, **account, **wanted, **rule_env}


def decide_variable(policy: Policy, name: str, value: str = "") -> VariableDecision:
    """Decide whether a session may set the variable *name* to *value*."""
    if not VARIABLE_NAME.fullmatch(name):
        return Deny(
            rule="environment",
            reason=f"Variable {shown(name)} cannot be set: a name is letters, digits and '_', no digit first.",
        )
    if "\0" in value:
        return Deny(
            rule="environment",
            reason=f"The value of {shown(name)} holds a NUL character, which no environment can: leave it out.",
        )
    denial = _denied(policy, name)
    if denial:
        return denial
    if policy.allowed_env is not None and not any(matches_name(p, name) for p in policy.allowed_env):
        return Deny(
            rule="allowed_env",
            reason=f"Variable {shown(name)} is not one of the allowed ones: "
            f"{', '.join(policy.allowed_env) or 'there are none'}.",
        )
    return Allow(rule="allowed_env", reason=f"Variable {shown(name)} may be set.", subject=name)


def _denied(policy: Policy, name: str) -> Deny | None:
    for pattern in NEVER_SET:
        if matches_name(pattern, name.upper()):
            return Deny(
                rule="environment.never_set",
                reason=f"Variable {shown(name)} must not be set by a session ({shown(pattern)}): it changes "
                "which program runs, or what it loads or obeys. Leave it out; an operator can set it in the "
                "env of a command.",
            )
    for pattern in policy.denied_env:
        if matches_name(pattern, name):
            return Deny(
                rule="denied_env",
                reason=f"Variable {shown(name)} must not be set: denied_env lists {shown(pattern)}. Leave it out.",
            )
    return None


def decide_environment(policy: Policy, variables: Mapping[str, str]) -> Deny | None:
    """Return the first denial among a session's *variables*; None: all may be set."""
    for name, value in variables.items():
        decision = decide_variable(policy, name, value)
        if isinstance(decision, Deny):
            return decision
    return None
