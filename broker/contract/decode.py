"""Strict decoding: the JSON arguments of a call in, a request value out, or every fault at once.

The hints that make the schemas (`broker/contract/schema.py`) make the cattrs hooks here, so what is announced is what
is checked; beyond what a schema can say: lengths in bytes, strict base64, no lone surrogates, finite numbers.

An integral float (30.0) is taken for an integer: JSON has one kind of number, and some clients write 30.0.
A bool is never a number, and a string of digits never either. null is "left out" where the schema says so.
"""

from __future__ import annotations

import base64
import heapq
import math
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import attrs
from cattrs import ClassValidationError, Converter, ForbiddenExtraKeysError
from cattrs.errors import AttributeValidationNote
from cattrs.gen import make_dict_structure_fn, override

from broker.contract.encode import is_unicode
from broker.contract.faults import SHOWN_FAULTS, Fault, InvalidArguments, kind, nearest, quoted, shown, unknown
from broker.contract.long_text import Bytes, LongText, Text
from broker.contract.schema import About, Hint, hints_of

R = TypeVar("R", bound=attrs.AttrsInstance)
Check = Callable[[object], Any]


class _Wrong(Exception):
    """The faults of one argument, named relative to it."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults


def make_decoder(cls: type[R]) -> Callable[[object], R]:
    """Make a function from JSON arguments to a *cls*; it raises InvalidArguments and nothing else."""
    hooks: dict[str, Any] = {name: override(struct_hook=_hook(_check(hint))) for name, hint in hints_of(cls).items()}
    structure = make_dict_structure_fn(cls, Converter(), _cattrs_forbid_extra_keys=True, **hooks)
    names = tuple(hooks)

    def decode(arguments: object) -> R:
        given = {} if arguments is None else arguments
        if not isinstance(given, Mapping):
            raise InvalidArguments((Fault(name="", got=kind(given), expected="an object"),))
        try:
            return structure(given, cls)
        except ClassValidationError as group:
            raise InvalidArguments(tuple(_faults_of(group, names))) from None

    return decode


def _hook(check: Check) -> Callable[[object, object], Any]:
    return lambda value, _: check(value)


def _faults_of(group: ClassValidationError, names: tuple[str, ...]) -> Iterator[Fault]:
    """Every leaf of what cattrs collected, as a fault with the name of its argument."""
    for error in group.exceptions:
        argument = _argument_of(error)
        match error:
            case ForbiddenExtraKeysError(extra_fields=extra):
                yield from _unknown(extra, names)
            case _Wrong(faults=faults):
                yield from (attrs.evolve(fault, name=argument + fault.name) for fault in faults)
            case _:  # cattrs looks a required argument up, so its absence is a KeyError
                yield Fault(name=argument, got="nothing", expected="a value: it is required")


def _unknown(extra: set[str], names: tuple[str, ...]) -> Iterator[Fault]:
    """No more than are shown: each looks for the name that was meant, and a caller can send a million."""
    expected = f"one of {', '.join(names)}" if names else "no arguments at all"
    if len(extra) > SHOWN_FAULTS:
        yield Fault(name="", got=f"{len(extra)} unknown arguments", expected=expected)
    yield from (unknown(name, names, expected) for name in heapq.nsmallest(SHOWN_FAULTS, map(str, extra)))


def _argument_of(error: BaseException) -> str:
    notes = getattr(error, "__notes__", ())
    return next((note.name for note in notes if isinstance(note, AttributeValidationNote)), "")


def _check(hint: Hint) -> Check:
    """The function that takes a JSON value for *hint*, or raises _Wrong."""
    check = _check_kind(hint)
    return (lambda value: None if value is None else check(value)) if hint.optional else check


def _check_kind(hint: Hint) -> Check:
    about = hint.about
    if hint.choices:
        return lambda value: _choice(value, hint.choices)
    if attrs.has(hint.type):
        return _nested(hint.type)
    if hint.item is not None:
        item = _check(hint.item)
        items = _array if hint.type is tuple else _mapping
        return lambda value: items(value, about, item)
    scalar = {str: _short_text, Text: _text, Bytes: _base64, bool: _boolean, int: _integer, float: _number}[hint.type]
    return lambda value: scalar(value, about)


def _nested(cls: type[attrs.AttrsInstance]) -> Check:
    decode = make_decoder(cls)

    def check(value: object) -> attrs.AttrsInstance:
        try:
            return decode(value)
        except InvalidArguments as invalid:
            faults = (attrs.evolve(fault, name=f".{fault.name}" if fault.name else "") for fault in invalid.faults)
            raise _Wrong(*faults) from None

    return check


def _refuse(value: object, about: About, expected: str) -> _Wrong:
    return _Wrong(Fault(name="", got=shown(value, secret=bool(about.secret)), expected=expected))


def _short_text(value: object, about: About) -> str:
    """Take a string that is bounded in length or by a pattern."""
    return str(_text(value, about))


def _text(value: object, about: About) -> Text:
    if not isinstance(value, str | LongText):
        raise _refuse(value, about, "a string")
    if isinstance(value, str) and not is_unicode(value):
        raise _Wrong(Fault(name="", got="a string with half of a surrogate pair", expected="Unicode text"))
    if about.pattern is not None and not (isinstance(value, str) and re.fullmatch(about.pattern, value)):
        raise _refuse(value, about, f"text that matches {about.pattern}")
    if len(value) < (about.min_length or 0):
        raise _refuse(value, about, f"at least {about.min_length} characters")
    if about.max_length is not None and len(value) > about.max_length:
        raise _Wrong(Fault(name="", got=kind(value), expected=f"at most {about.max_length} characters"))
    if about.max_bytes is not None and (size_bytes := len(value.encode())) > about.max_bytes:
        raise _Wrong(Fault(name="", got=f"{size_bytes} bytes", expected=f"at most {about.max_bytes} bytes of UTF-8"))
    return value


def _base64(value: object, about: About) -> Bytes:
    if not isinstance(value, str | LongText):
        raise _refuse(value, about, "a base64 string")
    try:
        return value.take_base64() if isinstance(value, LongText) else base64.b64decode(value, validate=True)
    except ValueError as error:  # binascii.Error is one; the text says what is wrong and quotes nothing
        raise _Wrong(Fault(name="", got=f"{kind(value)} ({error})", expected="base64 with padding")) from None


def _boolean(value: object, about: About) -> bool:
    if not isinstance(value, bool):
        raise _refuse(value, about, "true or false")
    return value


def _integer(value: object, about: About) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not _within(value, about):
        raise _refuse(value, about, f"an integer{_range(about)}")
    return value


def _number(value: object, about: About) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _within(value, about):
        raise _refuse(value, about, f"a number{_range(about)}")
    return float(value)


def _within(value: float, about: About) -> bool:
    # NaN compares false with everything, so each limit is asked for, never its opposite.
    return (
        (about.minimum is None or value >= about.minimum)
        and (about.maximum is None or value <= about.maximum)
        and (about.above is None or value > about.above)
        and (isinstance(value, int) or math.isfinite(value))
    )


def _range(about: About) -> str:
    above = f" above {about.above}" if about.above is not None else ""
    at_least = f" of at least {about.minimum}" if about.minimum is not None else ""
    at_most = f" and at most {about.maximum}" if about.maximum is not None else ""
    return above + at_least + at_most


def _choice(value: object, choices: tuple[str, ...]) -> str:
    if isinstance(value, str) and value in choices:
        return value
    near = nearest(value, choices) if isinstance(value, str) else None  # a LongText is near to nothing
    raise _Wrong(Fault(name="", got=shown(value, secret=False), expected=f"one of {', '.join(choices)}", nearest=near))


def _array(value: object, about: About, item: Check) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _refuse(value, about, "an array")
    _check_count(len(value), about)
    return tuple(_each(((f"[{i}]", element) for i, element in enumerate(value)), item))


def _mapping(value: object, about: About, item: Check) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _refuse(value, about, "an object")
    _check_count(len(value), about)
    names = [_short_text(name, About()) for name in value]
    items = _each(((f"[{quoted(name)}]", element) for name, element in value.items()), item)
    return MappingProxyType(dict(zip(names, items, strict=True)))


def _check_count(count: int, about: About) -> None:
    if count < (about.min_items or 0):
        raise _Wrong(Fault(name="", got=f"{count} items", expected=f"at least {about.min_items}"))
    if about.max_items is not None and count > about.max_items:
        raise _Wrong(Fault(name="", got=f"{count} items", expected=f"at most {about.max_items}"))


def _each(named: Iterator[tuple[str, object]], item: Check) -> list[Any]:
    """Every item, or every fault of every item."""
    checked: list[Any] = []
    faults: list[Fault] = []
    for name, element in named:
        try:
            checked.append(item(element))
        except _Wrong as wrong:
            faults += [attrs.evolve(fault, name=name + fault.name) for fault in wrong.faults]
    if faults:
        raise _Wrong(*faults)
    return checked
