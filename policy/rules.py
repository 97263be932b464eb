"""The grammar of `policy.yaml` as frozen values; `config/` fills them, the deciders read them.

A class here is a section of the file and a field is a key, spelled as the operator spells it. Whatever the
operator must choose has no default, so that a missing limit cannot load; what is optional for one command
has its default here and nowhere else. An impossible value raises ValueError with the value and what is
wanted, which `config/` turns into a fault with file and line.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import attrs

from policy.grammar import (
    check_command_names,
    check_extensions,
    check_flags,
    check_one_pattern,
    check_options,
    check_pack,
    check_patterns,
    check_prefixes,
    check_program_path,
    check_programs,
    check_variable_patterns,
    check_variables,
)
from policy.packs.closing import Extent

Example = str | tuple[str, ...]  # a line split as a shell would split it, or an argv word by word

Permission = Literal["allow", "deny"]

_positive = attrs.validators.ge(1)
_positive_or_none = attrs.validators.optional(_positive)
_not_negative = attrs.validators.ge(0)
_cores = attrs.validators.optional(attrs.validators.ge(0.01))  # the kernel gives no less
_weight = attrs.validators.optional([attrs.validators.ge(1), attrs.validators.le(10_000)])


def _read_only_variables(variables: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(variables))


def _read_only_commands(commands: Mapping[str, CommandRule]) -> Mapping[str, CommandRule]:
    return MappingProxyType(dict(commands))


@attrs.frozen(kw_only=True)
class Examples:
    """Command lines that a rule must allow (confirmed, where it asks for that) and must deny."""

    allow: tuple[Example, ...] = ()
    deny: tuple[Example, ...] = ()


@attrs.frozen(kw_only=True)
class ResourceOverride:
    """Limits of one command that differ from `resource_limits`; None keeps the general one."""

    memory_max: int | None = attrs.field(default=None, validator=_positive_or_none)  # bytes
    memory_swap_max: int | None = attrs.field(default=None, validator=attrs.validators.optional(_not_negative))  # bytes
    pids_max: int | None = attrs.field(default=None, validator=_positive_or_none)  # processes and threads
    file_size_max: int | None = attrs.field(default=None, validator=_positive_or_none)  # bytes
    open_files_max: int | None = attrs.field(default=None, validator=_positive_or_none)  # descriptors
    cpu_max: float | None = attrs.field(default=None, validator=_cores)  # processors
    io_weight: int | None = attrs.field(default=None, validator=_weight)


@attrs.frozen(kw_only=True)
class CommandRule:
    """One entry of `allowed_commands`: a program, and what its arguments may be.

    `denied_args`, `may_run`: None means what `known.py` knows of the program, an empty list means none. `network`:
    None means what the policy says, and where that says nothing, what `known.py` knows.
    """

    executable: str = attrs.field(validator=check_program_path)
    max_args: int = attrs.field(default=20, validator=_positive)  # counts argv[0]
    allowed_prefixes: tuple[str, ...] = attrs.field(default=(), validator=check_prefixes)
    requires_confirmation: bool = False
    resource_override: ResourceOverride | None = None
    denied_args: tuple[str, ...] | None = attrs.field(default=None, validator=check_options)
    allowed_flags: tuple[str, ...] | None = attrs.field(default=None, validator=check_flags)
    env: Mapping[str, str] = attrs.field(factory=dict, converter=_read_only_variables, validator=check_variables)
    may_run: tuple[str, ...] | None = attrs.field(default=None, validator=check_programs)
    network: Permission | None = None
    description: str = ""
    examples: Examples | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse a rule that can never allow anything: its author meant something else."""
        for prefix in self.allowed_prefixes:
            needed = 1 + len(prefix.split())
            if needed > self.max_args:
                raise ValueError(
                    f"allowed_prefixes entry {prefix!r} makes {needed} words with the program, "
                    f"more than max_args {self.max_args}: raise max_args"
                )


@attrs.frozen(kw_only=True)
class ClosedPath:
    """An entry of `blocked_paths` that says more than a pattern: a pack, or a pattern with its reason."""

    use: str | None = attrs.field(default=None, validator=check_pack)
    path: str | None = attrs.field(default=None, validator=check_one_pattern)
    close: Extent = "all"
    why: str = ""

    def __attrs_post_init__(self) -> None:
        """Refuse an entry that closes nothing, or of which nobody knows what it means."""
        if (self.use is None) == (self.path is None):
            raise ValueError("an entry has either use (the name of a pack) or path (a pattern)")
        if self.use is not None and (self.close != "all" or self.why):
            raise ValueError("close and why stand beside path; a pack has its own")


@attrs.frozen(kw_only=True)
class FileLimits:
    """Limits of what the file tools move, whatever the path."""

    max_read_size: int = attrs.field(validator=_positive)  # bytes a call
    max_write_size: int = attrs.field(validator=_positive)  # bytes a file
    max_session_bytes: int = attrs.field(validator=_positive)  # written by one session
    min_free_bytes: int = attrs.field(validator=attrs.validators.ge(0))  # of the file system written to
    archive_max_entries: int = attrs.field(validator=_positive)  # files and directories of one archive
    archive_max_bytes: int = attrs.field(validator=_positive)  # of its tar stream, headers included
    blocked_extensions: tuple[str, ...] = attrs.field(validator=check_extensions)  # for writing only


@attrs.frozen(kw_only=True)
class ResourceLimits:
    """Limits of what the processes of a session use."""

    memory_max: int = attrs.field(validator=_positive)  # bytes
    memory_swap_max: int = attrs.field(validator=_not_negative)  # bytes
    pids_max: int = attrs.field(validator=_positive)  # processes and threads
    file_size_max: int = attrs.field(validator=_positive)  # bytes of one file
    open_files_max: int = attrs.field(validator=_positive)  # descriptors of one process
    cpu_max: float | None = attrs.field(default=None, validator=_cores)  # processors; None: all there are
    io_weight: int | None = attrs.field(default=None, validator=_weight)  # None: the kernel's 100


@attrs.frozen(kw_only=True)
class Policy:
    """All of `policy.yaml`. What is not allowed here does not happen."""

    allowed_commands: Mapping[str, CommandRule] = attrs.field(
        factory=dict, converter=_read_only_commands, validator=check_command_names
    )
    allowed_paths: tuple[str, ...] = attrs.field(default=(), validator=check_patterns)
    blocked_paths: tuple[str | ClosedPath, ...] = attrs.field(validator=check_patterns)
    denied_env: tuple[str, ...] = attrs.field(validator=check_variable_patterns)  # beside variables.py
    allowed_env: tuple[str, ...] | None = attrs.field(default=None, validator=check_variable_patterns)
    network: Permission | None = None  # of commands whose rule does not say
    file_limits: FileLimits
    resource_limits: ResourceLimits
