"""Plain YAML values to frozen classes, strictly, with every fault at once.

The stock converter is a hole here: "false" becomes True, "/srv" becomes ("/", "s", "r", "v"), unknown keys
vanish. This one takes exactly what is written, and turns what cattrs raises into faults with key paths.
Validators run per field, before any object exists, so that a class with three impossible values says three.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs
from cattrs import BaseConverter, ClassValidationError, Converter, ForbiddenExtraKeysError, IterableValidationError
from cattrs.cols import homogenous_tuple_structure_factory, mapping_structure_factory
from cattrs.gen import make_dict_structure_fn, override

from config.checks import KeyFault
from config.faults import Fault, KeyPath, nearest, printable
from config.keys import leaves
from config.yamlnodes import Document
from policy.rules import ResourceLimits, ResourceOverride

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]

# The customer's file writes `memory_max: "536870912"`, as cgroup files do; nowhere else is text a number.
_DIGITS_ALLOWED: frozenset[type] = frozenset((ResourceLimits, ResourceOverride))

_DIGITS = re.compile(r"[0-9]{1,20}")

_SPOKEN = MappingProxyType(
    {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        list: "a list",
        dict: "a mapping",
        type(None): "nothing",
    }
)


def structure(document: Document, defaults: object, cls: type[T]) -> tuple[T | None, tuple[Fault, ...]]:
    """Build a `cls` from a document, taking from `defaults` what the document leaves out.

    Returns: the value, or None and what is wrong with it; values the parser already found faulty are not
    reported twice.
    """
    unread = {fault.path for fault in document.faults if document.root.at(fault.path).value is None}
    try:
        return _strict_converter().structure(_merged(defaults, document.root.plain()), cls), ()
    except (ClassValidationError, TypeError) as exc:  # TypeError: the file as a whole is no mapping
        found = tuple(_faults(exc, (), document, cls))
    return None, tuple(fault for fault in found if fault.path not in unread)


def _merged(default: object, own: object) -> object:
    """Lay own keys over default ones, section by section; lists and values replace.

    A section with nothing under it (every key commented out) counts as left out.
    """
    if isinstance(default, dict):
        if own is None:
            return default
        if isinstance(own, dict):
            both = default | own
            return {k: _merged(default[k], own[k]) if k in default and k in own else both[k] for k in both}
    return own


# -- what is accepted


def exactly(value: object, *types: type) -> Any:
    """Return `value` if its type is one of `types`: True is no number here, and 3 is no text."""
    if type(value) in types:
        return value
    wanted = " or ".join(_SPOKEN[each] for each in types)
    hint = "; put it in quotes" if types == (str,) and isinstance(value, (bool, int, float)) else ""
    hint = "; without a value, leave the key out" if value is None else hint
    raise TypeError(f"expected {wanted}, found {_spoken(value)}{hint}")


def _spoken(value: object) -> str:
    kind = _SPOKEN[type(value)]
    match value:
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            return f"{kind} ({printable(str(value))!r})" if isinstance(value, str) else f"{kind} ({value})"
    return kind


def _strict_converter() -> Converter:
    converter = Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind in (bool, int, str):
        converter.register_structure_hook(kind, lambda value, _, kind=kind: exactly(value, kind))
    converter.register_structure_hook(float, lambda value, _: float(exactly(value, int, float)))
    converter.register_structure_hook(Path, _path)
    converter.register_structure_hook_func(_made_from(Literal), _choice)
    converter.register_structure_hook_factory(_made_from(tuple), _tuple_hook)
    converter.register_structure_hook_factory(_made_from(Mapping), _mapping_hook)
    converter.register_structure_hook_factory(_made_from(Union, UnionType), _union_hook)
    converter.register_structure_hook_factory(attrs.has, _class_hook)
    return converter


def _made_from(*origins: Any) -> Callable[[Any], bool]:
    return lambda hint: get_origin(hint) in origins


def _path(value: object, _: object) -> Path:
    try:
        return Path(exactly(value, str)).expanduser()
    except RuntimeError as exc:  # "~" without a home, or another user's that does not exist
        raise ValueError(f"{printable(str(value))}: that home directory is not known") from exc


def _choice(value: object, hint: Any) -> Any:
    choices: tuple[str, ...] = get_args(hint)
    if exactly(value, str) not in choices:
        raise ValueError(f"must be one of {', '.join(choices)}, is {printable(str(value))!r}")
    return value


def _tuple_hook(hint: Any, converter: BaseConverter) -> Hook:
    inner = homogenous_tuple_structure_factory(hint, converter)
    return lambda value, _: inner(exactly(value, list), hint)


def _mapping_hook(hint: Any, converter: BaseConverter) -> Hook:
    inner = mapping_structure_factory(hint, converter)
    return lambda value, _: MappingProxyType(inner(exactly(value, dict), hint))


def _union_hook(hint: Any, converter: BaseConverter) -> Hook:
    """Accept the alternatives of a union by the shape of what is written: nothing, text, a list, a section."""
    alternatives = [each for each in get_args(hint) if each is not type(None)]
    listed = [each for each in alternatives if get_origin(each) is tuple]
    sections = [each for each in alternatives if attrs.has(each)]
    others = [each for each in alternatives if each not in listed and each not in sections]

    def structure_union(value: Any, _: Any) -> Any:
        if value is None and len(alternatives) < len(get_args(hint)):
            return None
        if sections and (isinstance(value, dict) or not others):
            return converter.structure(value, sections[0])
        chosen = listed if listed and (isinstance(value, list) or not others) else others
        return converter.structure(value, chosen[0])

    return structure_union


def _class_hook(cls: Any, converter: BaseConverter) -> Hook:
    hints = get_type_hints(cls)
    per_field: dict[str, Any] = {
        field.name: override(struct_hook=_checked(field, hints[field.name], cls, converter))
        for field in attrs.fields(cls)
    }
    inner = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True, **per_field)
    return lambda value, _: inner({} if value is None else exactly(value, dict), cls)


def _checked(field: attrs.Attribute[Any], hint: Any, cls: type, converter: BaseConverter) -> Hook:
    def structure_field(value: Any, _: Any) -> Any:
        if cls in _DIGITS_ALLOWED and isinstance(value, str) and _DIGITS.fullmatch(value):
            value = int(value)
        value = converter.structure(value, hint)
        if field.validator:
            field.validator(None, field, value)
        return value

    return structure_field


# -- what cattrs raises, as faults


def _faults(exc: Exception, path: KeyPath, document: Document, cls: type) -> Iterator[Fault]:
    if isinstance(exc, ClassValidationError):
        named, rest = exc.group_exceptions()
        for inner, note in named:
            yield from _faults(inner, (*path, note.name), document, cls)
    elif isinstance(exc, IterableValidationError):
        listed, rest = exc.group_exceptions()
        for inner, item in listed:
            yield from _faults(inner, (*path, item.index), document, cls)
    else:
        yield from _leaf_faults(exc, path, document, cls)
        return
    for inner in rest:
        yield from _leaf_faults(inner, path, document, cls)


def _leaf_faults(exc: Exception, path: KeyPath, document: Document, cls: type) -> Iterator[Fault]:
    def fault(at: KeyPath, message: str, meant: str | None = None) -> Fault:
        line = document.root.at(at).line
        return Fault(file=document.file, line=line, path=at, message=message, nearest=meant)

    match exc:
        case ForbiddenExtraKeysError():
            known = [field.name for field in attrs.fields(exc.cl)]
            for key in sorted(exc.extra_fields):
                meant = nearest(key, known) or _elsewhere(key, cls)
                said = "unknown key" if meant else f"unknown key; known here: {', '.join(known)}"
                yield fault((*path, key), said, meant)
        case KeyFault():
            yield fault((*path, exc.key), str(exc))
        case KeyError():
            yield fault(path, "missing, and there is no default")
        case ValueError() | TypeError():
            yield fault(path, str(exc))
        case _:
            raise exc  # a bug in this room, not a fault in the file


def _elsewhere(key: str, cls: type) -> str | None:
    """Find a key that exists, but under another section."""
    homes = [".".join(path[: path.index(key) + 1]) for path, _, _ in leaves(cls) if key in path]
    return min(homes, key=len, default=None)
