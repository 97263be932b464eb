"""Everything that can be wrong with the arguments of a call, and how it is said.

Values only. A fault names the argument, what it is and what it should be, for an agent that will correct it and call
again. It quotes no value that may be a secret, because faults also go to the audit log.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable

import attrs

from broker.contract.errors import BrokerError, ErrorCode
from broker.contract.long_text import LongText

SHOWN_CHARACTERS = 80
"""Of a wrong value or name that a fault quotes."""
SHOWN_FAULTS = 50
"""A thousand wrong items make a thousand faults; the first ones suffice to correct them."""
SHOWN_NUMBER = 10**30
"""Python refuses to print integers of thousands of digits, and nobody reads them."""


@attrs.frozen(kw_only=True)
class Fault:
    """One thing wrong with the arguments. `name` is a path such as `argv[3]`, empty for the whole object."""

    name: str
    got: str
    expected: str
    nearest: str | None = None

    def __str__(self) -> str:
        hint = f"; did you mean {self.nearest}?" if self.nearest else ""
        return f"{self.name or 'arguments'}: expected {self.expected}, got {self.got}{hint}"


class InvalidArguments(BrokerError):
    """The arguments do not make a request; `faults` has all that is wrong with them."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        shown = faults[:SHOWN_FAULTS]
        message = "; ".join(str(fault) for fault in shown)
        if len(faults) > len(shown):
            message += f"; and {len(faults) - len(shown)} more"
        super().__init__(
            ErrorCode.INVALID_ARGUMENTS,
            f"invalid arguments: {message}",
            faults=[attrs.asdict(fault, filter=lambda _, value: value is not None) for fault in shown],
        )
        self.faults = faults


def unknown(name: str, known: tuple[str, ...], expected: str) -> Fault:
    """Return the fault of an argument that does not exist, with the name that was probably meant."""
    return Fault(name=quoted(name), got="an unknown argument", expected=expected, nearest=nearest(name, known))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is probably meant, if one is near."""
    return next(iter(difflib.get_close_matches(word[:SHOWN_CHARACTERS], known, n=1)), None)


def quoted(text: str) -> str:
    """*text* as one line of ASCII, cut: control, bidi and foreign characters show as escapes."""
    cut = "..." if len(text) > SHOWN_CHARACTERS else ""
    return json.dumps(text[:SHOWN_CHARACTERS]) + cut


def shown(value: object, *, secret: bool) -> str:
    """Name a wrong value: itself where it is short and not secret, else its kind."""
    match value:
        case str() if not secret:
            return quoted(value)
        case LongText() if not secret:
            return quoted(value.head(SHOWN_CHARACTERS + 1))
        case bool() if not secret:
            return str(value).lower()
        case int() | float() if not secret and abs(value) < SHOWN_NUMBER:
            return str(value)
    return kind(value)


def kind(value: object) -> str:
    """Name the JSON kind of a value, for a person."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str() | LongText():
            return f"a string of {len(value)} characters"
        case list():
            return f"an array of {len(value)}"
        case _:
            return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"
