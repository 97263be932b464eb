"""The form of single values of `policy.yaml`: the validators of `rules.py`.

Each raises ValueError with the value and what is wanted. A value that would silently match nothing (a
relative pattern, a `[` in a glob, an empty prefix) is refused here: in a security policy that is a hole.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

from policy.packs.packs import PACKS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE_PATTERN = re.compile(r"[A-Za-z_*][A-Za-z0-9_*]*")

COMPARED_CHARACTERS = 64  # comparing takes time in proportion

_Field = Any  # attrs hands validators Attribute[T] of many T; none of them looks at it


def check_program_path(_rule: object, field: _Field, path: str) -> None:
    """A program is pinned by its absolute path: no search, no `..`, no pattern."""
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ValueError(f"{field.name} must be the absolute path of a program: {path!r}")
    if not {"", ".", ".."}.isdisjoint(path.split("/")[1:]):
        raise ValueError(f"{field.name} must be a plain absolute path without '..', '.' or '//': {path!r}")


def check_programs(rule: object, field: _Field, paths: tuple[str, ...] | None) -> None:
    """`may_run`: programs, or `X/**` for every program beneath the directory X."""
    for path in paths or ():
        plain = path.removesuffix("/**")
        if "*" in plain:
            raise ValueError(f"{field.name} takes absolute paths and 'X/**' (all beneath X): {path!r}")
        check_program_path(rule, field, plain)


def check_prefixes(_rule: object, field: _Field, prefixes: tuple[str, ...]) -> None:
    """An empty prefix would allow every argument, which is spelled by leaving the key out."""
    for prefix in prefixes:
        if not prefix.split() or "\0" in prefix:
            raise ValueError(f"{field.name} entries must hold at least one word: {prefix!r}")


def check_options(_rule: object, field: _Field, options: tuple[str, ...] | None) -> None:
    """`denied_args`: an argument, alone or after the words of the subcommand it belongs to."""
    for option in options or ():
        if not option.split() or "\0" in option:
            raise ValueError(f"{field.name} entries must hold an argument: {option!r}")
        if set(option.split()[-1]) == {"-"}:
            raise ValueError(f"{field.name} cannot deny {option!r}: it names no option")


def check_flags(_rule: object, field: _Field, flags: tuple[str, ...] | None) -> None:
    """`allowed_flags`: single words that begin with a dash."""
    for flag in flags or ():
        if not flag.startswith("-") or len(flag.split()) != 1 or "\0" in flag:
            raise ValueError(f"{field.name} entries are single words that begin with '-': {flag!r}")


def check_variables(_rule: object, field: _Field, variables: Mapping[str, str]) -> None:
    """`env` of a rule: names as a shell knows them, values that execve can carry."""
    for name, value in variables.items():
        if not VARIABLE_NAME.fullmatch(name):
            raise ValueError(f"{field.name} name {name!r} must be letters, digits and '_', no digit first")
        if "\0" in value:
            raise ValueError(f"{field.name} value of {name} holds a NUL character")


def check_variable_patterns(_policy: object, field: _Field, patterns: tuple[str, ...] | None) -> None:
    """`denied_env`, `allowed_env`: variable names, `*` for any characters."""
    for pattern in patterns or ():
        if not _VARIABLE_PATTERN.fullmatch(pattern):
            raise ValueError(f"{field.name} takes variable names with '*' for any characters: {pattern!r}")


def check_extensions(_limits: object, field: _Field, extensions: tuple[str, ...]) -> None:
    """One extension an entry: `.so` or `so`; `.tar.gz` would never match, since parts are compared."""
    for extension in extensions:
        if not re.fullmatch(r"\.?[^./\0]+", extension):
            raise ValueError(f"{field.name} takes single extensions such as '.so': {extension!r}")


def check_command_names(_policy: object, field: _Field, commands: Iterable[str]) -> None:
    """A key is what an agent types as argv[0]; a path there would look like a second executable."""
    for name in commands:
        if not name or name.startswith("-") or any(c == "/" or c.isspace() or c == "\0" for c in name):
            raise ValueError(f"{field.name} key {name!r} must be a plain name; the path is its 'executable'")


def check_patterns(_policy: object, field: _Field, patterns: tuple[object, ...]) -> None:
    """`allowed_paths`, `blocked_paths`: see `check_pattern`; entries that are no text were checked by themselves."""
    for pattern in patterns:
        if isinstance(pattern, str):
            check_pattern(field.name, pattern)


def check_one_pattern(_entry: object, field: _Field, pattern: str | None) -> None:
    """`path` of an entry of `blocked_paths`."""
    if pattern is not None:
        check_pattern(field.name, pattern)


def check_pack(_entry: object, field: _Field, pack: str | None) -> None:
    """`use` of an entry of `blocked_paths`: a pack that there is."""
    if pack is None or pack in PACKS:
        return
    near = difflib.get_close_matches(pack[:COMPARED_CHARACTERS].casefold(), list(PACKS), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{field.name} names no pack: {pack[:COMPARED_CHARACTERS]!r}; there are {', '.join(PACKS)}{hint}")


def check_pattern(name: str, pattern: str) -> None:
    """Refuse a path pattern that would silently match nothing, or not what it seems to match."""
    parts = pattern.split("/")
    if parts[0] not in {"", "~", "**"} or pattern == "":
        raise ValueError(f"{name} entry {pattern!r} must begin with '/', '~/' or '**/'")
    if ".." in parts or "\0" in pattern:
        raise ValueError(f"{name} entry {pattern!r} must not hold '..' or NUL")
    if any("**" in part and part != "**" for part in parts):
        raise ValueError(f"{name} entry {pattern!r}: '**' stands alone between slashes; use '*' within a name")
    if any(c in pattern for c in "[]{}"):
        raise ValueError(f"{name} entry {pattern!r}: only '*', '?' and '**' are patterns; write one entry each")
