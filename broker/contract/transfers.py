"""Transfers over a URL: what a client may ask, and what is answered.

Values only, one class each way for each tool, with exactly the names on the wire. The text of a request class is what
the documents say of its tool.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import attrs

from broker.contract.fields import MAX_OFFSET, Path, RawTransferId, SessionId, Success
from broker.contract.schema import About

Sha256Hex: TypeAlias = Annotated[str, About(pattern="^[0-9a-f]{64}$")]
TransferState: TypeAlias = Annotated[
    Literal["open", "active", "complete", "failed", "cancelled", "expired"],
    About(description="open: the URL waits to be used, or used again after a cut; active: a request is at work."),
]
Expiry: TypeAlias = Annotated[
    str, About(description="UTC, ISO 8601. A request that began before may finish; a cut one has its time again.")
]


@attrs.frozen(kw_only=True)
class OpenTransfer:
    """Make a URL and a `curl` line for one download or upload of any size, of a directory with `archive`."""

    session_id: SessionId
    direction: Annotated[
        Literal["download", "upload"],
        About(description="download: GET the file from the session. upload: PUT a file to path."),
    ]
    path: Path
    size_bytes: Annotated[
        int | None,
        About(
            description="Upload: size of the whole file, if you know it; then it must be so.",
            minimum=0,
            maximum=MAX_OFFSET,
        ),
    ] = None
    sha256: Annotated[
        Sha256Hex | None,
        About(
            description="Upload: SHA-256 of the whole file, lower-case hexadecimal; other bytes are not put in place."
        ),
    ] = None
    archive: Annotated[
        Literal["tar", "tar.gz"] | None,
        About(
            description="path is a directory and goes through the URL as a tar stream. Upload: path must be free or an "
            "empty directory; plain files and directories only, all of it is put in place at the end, or nothing."
        ),
    ] = None


@attrs.frozen(kw_only=True)
class OpenTransferResult:
    """open_transfer."""

    success: Success = True
    transfer_id: Annotated[str, About(description="Names this transfer in the other tools; it is not the URL.")]
    url: Annotated[str, About(description="Whoever knows it may make this one transfer: do not publish it.")]
    method: Literal["GET", "PUT"]
    expires_at: Expiry
    curl: Annotated[str, About(description="A line for a shell where the local file is, or is to be.")]
    path: Annotated[str, About(description="The real path that is read or will be written.")]
    size_bytes: Annotated[int | None, About(description="Of the whole; null if it is not known.")]


@attrs.frozen(kw_only=True)
class StatTransfer:
    """Tell how far a transfer over a URL is, and its SHA-256 when it is complete."""

    session_id: SessionId
    transfer_id: RawTransferId


@attrs.frozen(kw_only=True)
class LeftOut:
    """One path of a directory that is not in its archive."""

    path: Annotated[str, About(description="Relative to the directory.")]
    reason: str


@attrs.frozen(kw_only=True)
class StatTransferResult:
    """The state of a transfer; finish_transfer and cancel_transfer answer it as well."""

    success: Success = True
    transfer_id: str
    direction: Literal["download", "upload"]
    path: str
    state: TransferState
    bytes_done: Annotated[int, About(description="Bytes received, or different bytes sent.")]
    next_offset: Annotated[int, About(description="The first byte that is missing: where to go on after a cut.")]
    size_bytes: Annotated[int | None, About(description="Of the whole; null if it is not known.")]
    sha256: Annotated[str | None, About(description="Of the whole file, hexadecimal, when it is complete.")]
    expires_at: Expiry
    error: Annotated[str | None, About(description="Why it failed, or was cut last.")]
    archive_entries: Annotated[int | None, About(description="Files and directories of a complete archive.")] = None
    left_out_count: Annotated[
        int | None, About(description="Links, devices, closed and unreadable paths that are not in the archive.")
    ] = None
    left_out: Annotated[tuple[LeftOut, ...], About(description="The first of them.")] = ()
    sha256_missing: Annotated[str | None, About(description="Why a complete transfer has no sha256.")] = None


@attrs.frozen(kw_only=True)
class FinishTransfer:
    """Put an upload over a URL in place with what was received."""

    session_id: SessionId
    transfer_id: RawTransferId


@attrs.frozen(kw_only=True)
class FinishTransferResult(StatTransferResult):
    """finish_transfer."""


@attrs.frozen(kw_only=True)
class CancelTransfer:
    """Close the URL of a transfer and throw away what was received."""

    session_id: SessionId
    transfer_id: RawTransferId


@attrs.frozen(kw_only=True)
class CancelTransferResult(StatTransferResult):
    """cancel_transfer."""
