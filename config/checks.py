"""Validators of single settings: bounds, choices, names of hosts and origins.

Each says in its message what is allowed and what was found. They look at the value alone, never at the
instance, so that config/structure.py can run all of them before any object exists and report every fault.
Checks between two settings are `__attrs_post_init__` methods that raise `KeyFault`.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any

import attrs

from config.faults import printable

if TYPE_CHECKING:
    from pathlib import Path

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)
_PORT = re.compile(r"[0-9]{1,5}")
PORT_MAX = 65535


class KeyFault(ValueError):
    """A setting that is impossible beside another one; `key` is the one to point at."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@attrs.frozen
class Between:
    """A number within bounds, both allowed. `unit` is a plural, or empty where the number counts nothing."""

    low: float
    high: float
    unit: str

    def __call__(self, _instance: object, _attribute: object, value: Any) -> None:
        """Refuse a number outside."""
        if not self.low <= value <= self.high:
            limits = f"{self.low} and {self.high} {self.unit}".rstrip()
            raise ValueError(f"must be between {limits}, is {value}")


def check_file_path(_instance: object, _attribute: object, value: Path) -> None:
    """Refuse a path that cannot be a file's."""
    if not value.name or value.name == "..":
        raise ValueError("must be the path of a file")


def check_bind_host(_instance: object, _attribute: object, value: str) -> None:
    """Accept an IP address or a host name, without a port."""
    if not (_is_address(value) or _is_name(value)):
        raise ValueError(f"must be an IP address or a host name without a port, is {printable(value)!r}")


def check_allowed_hosts(_instance: object, _attribute: object, value: tuple[str, ...]) -> None:
    """Accept what a Host header may say: `name`, `name:port`, `name:*`, IPv6 in brackets."""
    for entry in value:
        if not _is_authority(entry):
            raise ValueError(f"{printable(entry)!r} is not host, host:port or host:* (IPv6 addresses in brackets)")


def check_allowed_origins(_instance: object, _attribute: object, value: tuple[str, ...]) -> None:
    """Accept what an Origin header may say: `http://name`, `https://name:port`, `http://name:*`."""
    for entry in value:
        scheme, separator, authority = entry.partition("://")
        if scheme.casefold() not in {"http", "https"} or not separator or not _is_authority(authority):
            raise ValueError(f"{printable(entry)!r} is not scheme://host, scheme://host:port or scheme://host:*")


def check_public_url(_instance: object, _attribute: object, value: str) -> None:
    """Accept nothing, or what URLs of this server begin with: `https://name`, `http://name:port/path`."""
    scheme, separator, rest = value.partition("://")
    authority, _, path = rest.partition("/")
    plain = all(c.isascii() and (c.isalnum() or c in "/._~-") for c in path)
    if value and not (scheme in {"http", "https"} and separator and _is_authority(authority) and plain):
        raise ValueError(f"must be empty, or like https://name/path, is {printable(value)!r}")


def _is_authority(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, "*"
    if host.startswith("[") and host.endswith("]"):
        return _is_address(host[1:-1], version=6) and _is_port(port)
    return (_is_address(host, version=4) or _is_name(host)) and _is_port(port)


def _is_port(text: str) -> bool:
    return text == "*" or (_PORT.fullmatch(text) is not None and 1 <= int(text) <= PORT_MAX)


def _is_address(text: str, version: int | None = None) -> bool:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return False
    return version in {None, found.version}


def _is_name(text: str) -> bool:
    labels = text.removesuffix(".").split(".")
    # A last label of digits only is a mistyped address: 300.1.1.1, 127.0.0
    return len(text) < 254 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()


def lowered(values: Any) -> tuple[str, ...]:
    """Write host names in lower case, as they are compared."""
    return tuple(value.lower() for value in values)
