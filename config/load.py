"""Two files to one `Config`, or every reason why not.

`load_config` is called once, before trio runs. It reads (config/sources.py), parses (yamlnodes.py) and
structures (structure.py); here is what needs both files or the machine: paths, programs, proofs of examples.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import attrs

from config.faults import ConfigFaults, Fault
from config.keys import SHIPPED_DIR, PolicyFile, ServerFile
from config.places import default_place, place_of
from config.settings import ServerSettings
from config.sources import Source, read_sources
from config.structure import structure
from config.yamlnodes import Document, parse_yaml
from policy.command import prove_examples
from policy.rules import Policy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@attrs.frozen(kw_only=True)
class Config:
    """All that the operator decided. Every path in it is absolute.

    `sources` are the files it came from; `warnings` are sentences for the operator, none of which stops the start.
    """

    server: ServerSettings
    policy: Policy
    base_dir: Path
    sources: tuple[Path, ...]
    warnings: tuple[str, ...]


def load_config(config_dir: Path | None = None) -> Config:
    """Read the configuration in `config_dir`, or in `default_place()`.

    Raises:
        ConfigFaults: it cannot be used; names every fault of both files.
    """
    place = place_of(config_dir) if config_dir else default_place()
    server_source, policy_source = read_sources(place.config_dir)
    defaults = _defaults()
    server_file, server_faults = structure(server_source.document, _part(defaults, "server"), ServerFile)
    policy_file, policy_faults = structure(policy_source.document, _part(defaults, "policy"), PolicyFile)
    faults = [*server_source.document.faults, *policy_source.document.faults, *server_faults, *policy_faults]
    server = server_file.server.anchored(place.base_dir) if server_file else None
    policy = policy_file.policy if policy_file else None
    if server:
        faults += _log_faults(server, server_source.document)
    if policy:
        faults += _disproved_examples(policy, policy_source.document)
    if faults or server is None or policy is None:
        raise ConfigFaults(faults)
    sources = (server_source, policy_source)
    return Config(
        server=server,
        policy=policy,
        base_dir=place.base_dir,
        sources=tuple(source.path for source in sources if source.path),
        warnings=tuple(_warnings(policy, sources)),
    )


def _defaults() -> dict[str, Any]:
    file = SHIPPED_DIR / "defaults.yaml"
    plain: dict[str, Any] = parse_yaml(file.read_text(), str(file)).root.plain()
    return plain


def _part(defaults: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: defaults[name]}


def _log_faults(server: ServerSettings, document: Document) -> Iterator[Fault]:
    """Find log paths that can never become files."""
    for name, path in (("audit_log", server.logging.audit_log), ("error_log", server.logging.error_log)):
        if path.is_dir():
            where = ("server", "logging", name)
            line = document.root.at(where).line
            yield Fault(file=document.file, line=line, path=where, message=f"{path} is a directory")


def _disproved_examples(policy: Policy, document: Document) -> Iterator[Fault]:
    """Find examples that the policy decides otherwise than the file says."""
    # No facts about programs: an example names the command by its key or by the path the rule pins.
    for disproved in prove_examples(policy, {}):
        where = ("policy", *disproved.path)
        line = document.root.at(where).line
        yield Fault(file=document.file, line=line, path=where, message=disproved.message)


def _warnings(policy: Policy, sources: tuple[Source, ...]) -> Iterator[str]:
    for source in sources:
        yield from source.warnings
    if not policy.allowed_commands:
        yield "the policy allows no command (policy.allowed_commands is empty)"
    if not policy.allowed_paths:
        yield "the policy allows no path (policy.allowed_paths is empty)"
    missing = [
        f"{name} ({rule.executable})"
        for name, rule in policy.allowed_commands.items()
        if not os.access(rule.executable, os.X_OK)
    ]
    if missing:
        yield f"programs that are not on this machine: {', '.join(missing)}"
