"""The server's settings: one frozen class per section of server.yaml, field names as in the file.

Every limit of the broker that an operator may move has its one home here, with its bounds and its unit. The
classes have no defaults, so that a limit nobody chose cannot load: those are in defaults.yaml. What a key
means is said once, in the comment beside it in server.yaml; `keys.all_keys()` joins the two for documents.

The rooms of the broker take these very values; nobody copies them. They are pure: no file is read here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import attrs

from config.checks import (
    PORT_MAX,
    Between,
    KeyFault,
    check_allowed_hosts,
    check_allowed_origins,
    check_bind_host,
    check_file_path,
    check_public_url,
    lowered,
)
from sandbox.plan.plan import SandboxSettings

MIB = 1024 * 1024
KEPT_FILES = 1000  # of one log, however small they are: each rotation renames them all
BODY_ENVELOPE_BYTES = 64 * 1024  # JSON-RPC around a chunk: names, path, ids

_DURATION = Between(0.001, 7 * 24 * 3600, "seconds")
_GRACE = Between(0, 3600, "seconds")


def errors_beside(audit_log: Path) -> Path:
    """Name the error log that belongs to an audit log: `audit.log` -> `audit-errors.log`."""
    return audit_log.with_name(f"{audit_log.stem}-errors{audit_log.suffix}")


@attrs.frozen(kw_only=True)
class LoggingSettings:
    """The audit log (files) and the operational log (stderr: `level`, `format`)."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
    format: Literal["json", "text"]
    audit_log: Path = attrs.field(validator=check_file_path)
    error_log: Path = attrs.field(validator=check_file_path)
    max_size_mb: float = attrs.field(validator=Between(0.001, 1024 * 1024, "MiB"))
    backup_count: int = attrs.field(validator=Between(1, KEPT_FILES, "files"))
    keep_days: float = attrs.field(validator=Between(0, 3650, "days"))
    max_total_mb: float = attrs.field(validator=Between(0.001, 1024 * 1024, "MiB"))

    @error_log.default
    def _beside_the_audit_log(self) -> Path:
        return errors_beside(self.audit_log)

    @property
    def max_size_bytes(self) -> int:
        """Return the size at which a log file is rotated."""
        return int(self.max_size_mb * MIB)

    @property
    def keep_s(self) -> float:
        """Return the age in seconds up to which rotated files are kept, whatever their number."""
        return self.keep_days * 24 * 3600

    @property
    def most_backups(self) -> int:
        """Return how many rotated files of one log there can be at most."""
        return max(self.backup_count, min(KEPT_FILES, int(self.max_total_mb / self.max_size_mb) - 1))

    def __attrs_post_init__(self) -> None:
        if self.error_log == self.audit_log:
            raise KeyFault("error_log", "must be another file than audit_log")


@attrs.frozen(kw_only=True)
class SessionSettings:
    """Numbers of sessions and commands that there may be, and seconds that an idle session lives."""

    max_session_age: float = attrs.field(validator=_DURATION)
    max_concurrent: int = attrs.field(validator=Between(1, 10_000, "sessions"))
    cleanup_interval: float = attrs.field(validator=_DURATION)
    max_concurrent_commands: int = attrs.field(validator=Between(1, 10_000, "commands"))


@attrs.frozen(kw_only=True)
class TimeoutSettings:
    """Times that things may take, in seconds."""

    command_default: float = attrs.field(validator=_DURATION)
    command_max: float = attrs.field(validator=_DURATION)
    kill_grace: float = attrs.field(validator=_GRACE)
    output_drain: float = attrs.field(validator=_GRACE)
    upload_idle: float = attrs.field(validator=_DURATION)

    def __attrs_post_init__(self) -> None:
        if self.command_default > self.command_max:
            raise KeyFault(
                "command_default",
                f"must be at most command_max ({self.command_max:g} seconds), is {self.command_default:g}",
            )


@attrs.frozen(kw_only=True)
class OutputSettings:
    """Amounts of output of commands: what an answer carries, and what is kept to be read."""

    inline_bytes: int = attrs.field(validator=Between(1024, 64 * MIB, "bytes"))
    spill_bytes: int = attrs.field(validator=Between(MIB, 1024 * 1024 * MIB, "bytes"))


@attrs.frozen(kw_only=True)
class TransferSettings:
    """Bounds of uploads and downloads."""

    max_open: int = attrs.field(validator=Between(1, 10_000, "transfers"))
    max_chunk_bytes: int = attrs.field(validator=Between(1024, 256 * MIB, "bytes"))
    url_ttl_s: float = attrs.field(validator=_DURATION)
    idle_s: float = attrs.field(validator=_DURATION)
    max_streams: int = attrs.field(validator=Between(1, 10_000, "requests"))
    public_url: str = attrs.field(validator=check_public_url)


@attrs.frozen(kw_only=True)
class HttpSettings:
    """The place to listen at and the limits there: what the HTTP endpoint takes. `ServerSettings` are such settings.

    Without bounds: those are for operators, and stand there. Names are checked by `host_rules` as well.
    """

    host: str
    port: int
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_body_bytes: int
    body_timeout_s: float
    max_calls_in_flight: int
    max_connections: int = 256
    """Each costs a descriptor, which the sessions need too."""
    max_bodies_bytes: int = 64 * MIB
    max_answers_bytes: int = 64 * MIB
    max_mcp_sessions: int = 64


@attrs.frozen(kw_only=True)
class ServerSettings(HttpSettings):
    """Everything under `server:`. The keys of `HttpSettings` have their bounds here, and no default."""

    host: str = attrs.field(validator=check_bind_host)
    port: int = attrs.field(validator=Between(0, PORT_MAX, ""))
    allowed_hosts: tuple[str, ...] = attrs.field(converter=lowered, validator=check_allowed_hosts)
    allowed_origins: tuple[str, ...] = attrs.field(converter=lowered, validator=check_allowed_origins)
    max_body_bytes: int = attrs.field(validator=Between(64 * 1024, 1024 * MIB, "bytes"))
    body_timeout_s: float = attrs.field(validator=_DURATION)
    max_calls_in_flight: int = attrs.field(validator=Between(1, 100_000, "calls"))
    max_connections: int = attrs.field(validator=Between(8, 100_000, "connections"))
    max_bodies_bytes: int = attrs.field(validator=Between(64 * 1024, 64 * 1024 * MIB, "bytes"))
    max_answers_bytes: int = attrs.field(validator=Between(64 * 1024, 64 * 1024 * MIB, "bytes"))
    max_mcp_sessions: int = attrs.field(validator=Between(1, 100_000, "MCP sessions"))
    drain_s: float = attrs.field(validator=_GRACE)
    logging: LoggingSettings
    sessions: SessionSettings
    timeouts: TimeoutSettings
    output: OutputSettings
    transfers: TransferSettings
    sandbox: SandboxSettings

    def __attrs_post_init__(self) -> None:
        chunk = self.transfers.max_chunk_bytes
        needed = body_bytes_for(chunk)
        if self.max_body_bytes < needed:
            raise KeyFault(
                "max_body_bytes",
                f"must be at least {needed}, since a chunk of transfers.max_chunk_bytes ({chunk} bytes) "
                f"comes in base64; is {self.max_body_bytes}",
            )

        if self.max_bodies_bytes < self.max_body_bytes:
            raise KeyFault(
                "max_bodies_bytes",
                f"must be at least max_body_bytes ({self.max_body_bytes} bytes), is {self.max_bodies_bytes}",
            )

    def anchored(self, base_dir: Path) -> ServerSettings:
        """Return these settings with every relative path made absolute against `base_dir`."""
        logs = attrs.evolve(
            self.logging,
            audit_log=base_dir / self.logging.audit_log,
            error_log=base_dir / self.logging.error_log,
        )
        # Not sandbox.cgroup_base: a folder beside the configuration is no cgroup, so a relative one names none.
        return attrs.evolve(self, logging=logs)


def body_bytes_for(content_bytes: int) -> int:
    """Return the size of a request body that carries so many bytes in base64."""
    return (content_bytes + 2) // 3 * 4 + BODY_ENVELOPE_BYTES
