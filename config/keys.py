"""The grammar as a list: every key that a class tree accepts, for documents and for "did you mean".

Types and units come from the classes, defaults from defaults.yaml, meanings from the comments of the shipped
YAML file, so that nothing is written twice. Structures no values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from config.checks import Between
from config.settings import ServerSettings
from config.yamlnodes import Node, parse_yaml
from policy.rules import Policy

SHIPPED_DIR = Path(__file__).parent
ANY_NAME = "<name>"  # the step of a dotted key where the operator chooses the name


@attrs.frozen(kw_only=True)
class Key:
    """One key of a configuration file. `default` is what defaults.yaml gives, None where it gives nothing."""

    name: str
    type: str
    unit: str
    doc: str
    default: str | None


@attrs.frozen(kw_only=True)
class ServerFile:
    """server.yaml as a whole."""

    server: ServerSettings


@attrs.frozen(kw_only=True)
class PolicyFile:
    """policy.yaml as a whole."""

    policy: Policy


def all_keys() -> tuple[Key, ...]:
    """List every key of both files with type, unit, default and meaning, in the order of the classes."""
    return (*_described(ServerFile, "server.yaml"), *_described(PolicyFile, "policy.yaml"))


def _described(file_class: type, shipped_file: str) -> Iterator[Key]:
    """Yield every key that is no section, as the operator would write it: `server.logging.level`."""
    text = (SHIPPED_DIR / shipped_file).read_text()
    root = parse_yaml(text, shipped_file).root
    defaults = parse_yaml((SHIPPED_DIR / "defaults.yaml").read_text(), "defaults.yaml").root
    for path, hint, unit in leaves(file_class):
        shown = _find(root, path)
        yield Key(
            name=".".join(path),
            type=_type_name(hint),
            unit=unit,
            doc=_comment_at(text.splitlines(), shown.line) if shown else _comment_about(text.splitlines(), path),
            default=_default(defaults, path),
        )


def leaves(cls: type, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """Yield (path, type, unit) of each key beneath `cls` that holds a value and not more keys."""
    hints = get_type_hints(cls)
    for field in attrs.fields(cls):
        path = (*above, field.name)
        section, named = _section(hints[field.name])
        if section is None:
            unit = field.validator.unit if isinstance(field.validator, Between) else ""
            yield path, hints[field.name], unit
        else:
            yield from leaves(section, (*path, ANY_NAME) if named else path)


def _section(hint: Any) -> tuple[type | None, bool]:
    """Return the class whose fields are the keys below, and whether names the operator chose lie between."""
    if attrs.has(hint):
        return hint, False
    if get_origin(hint) is Mapping:
        inner = get_args(hint)[1]
        return (inner, True) if attrs.has(inner) else (None, False)
    inside = [each for each in get_args(hint) if attrs.has(each)]
    return (inside[0], False) if inside else (None, False)


def _type_name(hint: Any) -> str:
    """Name a type as the operator knows it."""
    simple = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
    if hint in simple:
        return simple[hint]
    origin, inside = get_origin(hint), get_args(hint)
    if attrs.has(hint):
        return "mapping"
    if origin is Literal:
        return "one of " + ", ".join(inside)
    if origin is tuple:
        return f"list of {_type_name(inside[0])}"
    if origin is Mapping:
        return f"mapping of {_type_name(inside[1])}"
    if origin is Union or inside:
        return " or ".join(_type_name(each) for each in inside if each is not type(None))
    raise TypeError(f"no name for {hint}")


def _find(root: Node, path: tuple[str, ...]) -> Node | None:
    node: Node | None = root
    for step in path:
        node = node.child(step) if node else None
    return node


def _default(defaults: Node, path: tuple[str, ...]) -> str | None:
    node = _find(defaults, path)
    return str(node.plain()) if node else None


def _comment_at(lines: list[str], line_number: int) -> str:
    """Join the comment lines right above a key, and the one at the end of its line."""
    start = line_number - 1
    while start > 0 and _is_comment(lines[start - 1]):
        start -= 1
    at_end = re.search(r"\s#\s(.*)$", lines[line_number - 1])
    return _joined([*lines[start : line_number - 1], at_end[1] if at_end else ""])


def _comment_about(lines: list[str], path: tuple[str, ...]) -> str:
    """Find what comments say of a key that the file does not set: a table's row, or the block that names it.

    A row is `#   key   meaning`, continued on lines that are indented further. Keys of a section that the
    table explains in one row (`examples`) share it.
    """
    for name in reversed(path):
        for number, line in enumerate(lines):
            row = re.fullmatch(rf" *# +{re.escape(name)} {{2,}}(.*)", line)
            if row:
                more = takewhile(lambda each: re.match(r" *# {8,}\S", each), lines[number + 1 :])
                return _joined([row[1], *more])
    named = re.compile(rf"\b{re.escape(path[-1])}\b")
    at = next((number for number, line in enumerate(lines) if _is_comment(line) and named.search(line)), None)
    if at is None:
        return ""
    above = list(takewhile(_is_comment, reversed(lines[:at])))
    return _joined([*reversed(above), *takewhile(_is_comment, lines[at:])])


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def _joined(lines: list[str]) -> str:
    return " ".join(line.strip().lstrip("#").strip() for line in lines).strip()
