"""Which Host and Origin headers the broker answers: the fence against DNS rebinding and foreign web pages.

A page the user visits can make the browser send requests to a loopback port. What it cannot choose is the
Host header (the name it rebound) and the Origin (itself), so both are matched against a closed list. Pure:
no sockets, no ASGI.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
ANY_ADDRESS = frozenset({"", "0.0.0.0", "[::]"})  # noqa: S104 - bound to, but never a name a client may use
_HOST = re.compile(r"(\[[0-9a-f:.%a-z]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}|\*))?")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)")


def _bracketed(host: str) -> str:
    """Return *host* in the spelling of a Host header: lower case, IPv6 addresses in brackets."""
    host = host.strip().lower()
    return f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host


def _split(authority: str) -> tuple[str, str] | None:
    """Split `name[:port]` (port "" if absent); None if it is not an authority."""
    match = _HOST.fullmatch(authority)
    return (match[1], match[2] or "") if match else None


@attrs.frozen(kw_only=True)
class HostRules:
    """The closed lists, compiled. A name without a port stands for that name on every port.

    The port tells nothing about who asks (tunnels and proxies change it), so it is compared only where the
    operator wrote one.
    """

    names: frozenset[str]
    names_with_port: frozenset[str]
    origins: frozenset[str]
    origins_any_port: frozenset[str]

    def canonical_host(self, host: str) -> str | None:
        """Return the Host header in lower case if it is allowed, else None."""
        host = host.lower()
        parts = _split(host)
        if parts is None or parts[1] == "*":
            return None
        return host if parts[0] in self.names or host in self.names_with_port else None

    def origin_allowed(self, origin: str) -> bool:
        """Whether a page of this origin may call the broker. Programs that are no browser send none."""
        origin = origin.lower()
        if origin in self.origins:
            return True
        name, colon, port = origin.rpartition(":")
        return bool(colon) and port.isdigit() and name in self.origins_any_port

    def host_patterns(self) -> list[str]:
        """Return the allowed hosts as the MCP SDK spells them (`name`, `name:*`, `name:port`)."""
        any_port = [pattern for name in sorted(self.names) for pattern in (name, f"{name}:*")]
        return any_port + sorted(self.names_with_port)

    def origin_patterns(self) -> list[str]:
        """Return the allowed origins as the MCP SDK spells them."""
        return sorted(self.origins) + sorted(f"{origin}:*" for origin in self.origins_any_port)


def host_rules(bind_host: str, allowed_hosts: Iterable[str], allowed_origins: Iterable[str]) -> HostRules:
    """Compile the lists: the loopback names, the bind address, and what the operator allowed.

    Args:
        bind_host: the address the broker listens on; a wildcard address adds no name.
        allowed_hosts: `name`, `name:*` (both: any port) or `name:port`; IPv6 with or without brackets.
        allowed_origins: `scheme://name[:port]`, or `scheme://name:*` for any port.

    Raises:
        ValueError: an entry is neither; the message names it.
    """
    names, with_port = set(LOOPBACK_NAMES), set[str]()
    for entry in (bind_host, *allowed_hosts):
        host = _bracketed(entry)
        if host in ANY_ADDRESS and entry == bind_host:
            continue
        parts = _split(host)
        if parts is None:
            raise ValueError(f"{entry!r} is not a host name: write `name` or `name:port`, without a scheme")
        if parts[1] in {"", "*"}:
            names.add(parts[0])
        else:
            with_port.add(host)
    origins = {f"{scheme}://{name}" for scheme in ("http", "https") for name in LOOPBACK_NAMES}
    any_port = set(origins)
    for entry in allowed_origins:
        origin = entry.strip().lower().rstrip("/")
        match = _ORIGIN.fullmatch(origin)
        if match is None or _split(match[2]) is None:
            raise ValueError(f"{entry!r} is not an origin: write `https://name` or `https://name:port`")
        origins.add(origin.removesuffix(":*"))
        if origin.endswith(":*"):
            any_port.add(origin.removesuffix(":*"))
    return HostRules(
        names=frozenset(names),
        names_with_port=frozenset(with_port),
        origins=frozenset(origins),
        origins_any_port=frozenset(any_port),
    )
