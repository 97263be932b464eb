"""The policy under which the attacks run: the shipped one, verbatim, and what an operator could add to it.

For the way `walls` every command line gets a rule of its own that lets any arguments pass and undoes what the
environment does for git, so that only the kernel is left to decide.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from .attack import Attack
from .scene import Ground, filled, round_name

SHIPPED = Path(__file__).parent.parent.parent / "config" / "policy.yaml"
ADDED: Mapping[str, dict[str, Any]] = {
    "tar": {"executable": "/usr/bin/tar"},
    "awk": {"executable": "/usr/bin/awk", "may_run": []},
    "sed": {"executable": "/usr/bin/sed", "may_run": []},
    "ssh": {"executable": "/usr/bin/ssh", "may_run": []},
    "rsync": {"executable": "/usr/bin/rsync", "may_run": []},
    "curl": {"executable": "/usr/bin/curl", "may_run": []},
    "perl": {"executable": "/usr/bin/perl", "may_run": []},
}
SMALL = {"memory_max": 256 << 20, "pids_max": 32, "file_size_max": 1 << 20}
WITHOUT_HELP = {"GIT_CONFIG_COUNT": "0"}


def write_configuration(ground: Ground, attacks: Iterable[Attack], *, namespaces: bool = True) -> Path:
    """Write both files and return their folder; without *namespaces* as on a host that gives none."""
    shipped = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))["policy"]
    commands = {name: {**rule, "examples": None} for name, rule in shipped["allowed_commands"].items()}
    for rule in commands.values():
        del rule["examples"]
    python3, npm = commands["python3"], commands["npm"]
    commands |= ADDED
    commands["npx"] = {**npm, "executable": "/usr/bin/npx"}
    commands["python-small"] = {**python3, "resource_override": SMALL}
    commands["suid"] = {"executable": str(ground.suid), "may_run": []}
    commands |= {
        walls_rule(attack): _any_arguments(ground, attack, commands) for attack in attacks if has_walls(attack)
    }
    policy = {
        **shipped,
        "allowed_commands": commands,
        "allowed_paths": ["~/**", f"{ground.work}/**", f"{ground.library}/**"],
    }
    server = {"sessions": {"max_concurrent": 4}, "sandbox": {"enable_cgroups": True, "enable_namespaces": namespaces}}
    folder = ground.base / "config"
    for name, section in (("policy", policy), ("server", server)):
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps({name: section}), encoding="utf-8")  # which is YAML, too
        path.chmod(0o600)
    return folder


def has_walls(attack: Attack) -> bool:
    """Whether there is a second way: a command line that the kernel alone could stop as well."""
    return attack.argv is not None and bool(attack.kernel_fences) and "/" not in attack.argv[0]


def walls_rule(attack: Attack) -> str:
    """The name of the rule under which *attack* meets the walls alone."""
    return f"rule-{round_name(attack, 'walls')}"


def _any_arguments(ground: Ground, attack: Attack, commands: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    rule = {name: value for name, value in commands[attack.program].items() if name != "allowed_prefixes"}
    words = ground.words(round_name(attack, "walls"))
    environment = {name: filled(value, words) for name, value in attack.operator_env.items()}
    return {
        **rule,
        "max_args": 100,
        "denied_args": [],
        "env": {**rule.get("env", {}), **WITHOUT_HELP, **environment},
    }
