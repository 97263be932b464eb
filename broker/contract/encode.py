"""Python values as JSON values, and as text that is safe to show; time as text.

Knows JSON and attrs classes, no tool and no error. Results are encoded here for the wire, details of errors and
audit records for their lines; there is no schema check at run time, because the classes are the schema.

A name in Linux is bytes. Where it is not UTF-8, Python carries each odd byte as a lone surrogate, which JSON cannot
carry: strict readers refuse the whole answer. Each becomes one U+FFFD, in paths as in text. Such a name can be seen
but not addressed by a client.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from enum import Enum
from pathlib import PurePath

import attrs

_PLAIN = frozenset({int, bool, type(None)})
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def safe_text(text: str) -> str:
    """*text* as Unicode that any JSON reader takes: each lone surrogate becomes one U+FFFD."""
    return text if is_unicode(text) else _LONE_SURROGATE.sub("\ufffd", text)


def printable(text: str) -> str:
    """*text* as a terminal shows it: control characters and bytes that are no text become underscores."""
    return "".join(c if c.isprintable() else "_" for c in text)


def is_unicode(text: str) -> bool:
    """Tell whether *text* has no lone surrogates."""
    if text.isascii():  # a flag of the string, so that the usual megabyte of output is not even looked at
        return True
    try:
        text.encode()  # several times faster than searching
    except UnicodeEncodeError:
        return False
    return True


def utc_now() -> str:
    """Return the time of day in UTC, as results and records have it."""
    return utc_text(datetime.now(UTC))


def utc_text(moment: datetime, timespec: str = "milliseconds") -> str:
    """Return *moment*, which is in UTC, as text that ends in Z; *timespec* as of `datetime.isoformat`."""
    return moment.isoformat(timespec=timespec).replace("+00:00", "Z")


def encode(value: object) -> dict[str, object]:
    """The JSON object of an attrs instance: every field by its name, nested classes as objects, bytes as base64."""
    cls = type(value)
    if not attrs.has(cls):
        raise TypeError(f"{cls.__name__} is not an attrs class")
    return {field.name: json_value(getattr(value, field.name)) for field in attrs.fields(cls)}


def json_value(value: object) -> object:
    """*value* as something `json.dumps` takes and strict readers accept.

    What has no JSON form of its own is named by its type and never shown by `repr`, which could carry secrets.
    """
    cls = type(value)
    if cls is str or cls in _PLAIN:  # nearly everything; the questions below are slow
        return safe_text(value) if isinstance(value, str) else value
    match value:
        case Mapping():
            return {safe_text(str(key)): json_value(item) for key, item in value.items()}
        case list() | tuple() | AbstractSet():
            return [json_value(item) for item in value]
        case _:
            return encode(value) if attrs.has(cls) else _json_scalar(value)


def _json_scalar(value: object) -> object:
    match value:
        case Enum():  # before str and int: an enum may be one of them as well
            return json_value(value.value)
        case str() | PurePath():
            return safe_text(str(value))
        case float():
            return value if math.isfinite(value) else None  # NaN and Infinity are not JSON
        case int():  # of a class of its own, such as a signal
            return int(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode("ascii")
        case _:
            return f"<{type(value).__name__}>"
