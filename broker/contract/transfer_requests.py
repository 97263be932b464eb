"""What a client may ask of transfers over a URL: opening one, and what becomes of it. Values only."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import attrs

from broker.contract.fields import MAX_OFFSET, Path, RawTransferId, SessionId
from broker.contract.schema import About

Sha256Hex: TypeAlias = Annotated[str, About(pattern="^[0-9a-f]{64}$")]


@attrs.frozen(kw_only=True)
class OpenTransfer:
    """open_transfer."""

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
class StatTransfer:
    """stat_transfer."""

    session_id: SessionId
    transfer_id: RawTransferId


@attrs.frozen(kw_only=True)
class FinishTransfer:
    """finish_transfer."""

    session_id: SessionId
    transfer_id: RawTransferId


@attrs.frozen(kw_only=True)
class CancelTransfer:
    """cancel_transfer."""

    session_id: SessionId
    transfer_id: RawTransferId


TransferRequest: TypeAlias = OpenTransfer | StatTransfer | FinishTransfer | CancelTransfer
