"""The limits of transfers, from several sections of both configuration files. The defaults are in the shipped YAML."""

from __future__ import annotations

import attrs
from attrs import validators


@attrs.frozen(kw_only=True)
class TransferSettings:
    """The limits of one session's transfers.

    Attributes:
        max_open: uploads one session may have open at a time, and files it may have pinned for download.
        max_chunk_bytes: the most bytes of one chunk, before base64, either way.
        max_upload_bytes: the most bytes of one uploaded file.
        max_session_bytes: the most bytes that one session writes; what it discards does not count.
        reserve_bytes: what an upload leaves free of the file system it is for.
        upload_idle_s: seconds without a chunk after which an upload is discarded, and for which the result
            of an ended one is remembered, so that a repeated last chunk gets the same answer.
        download_idle_s: seconds without a chunk after which a pinned file is let go.
    """

    max_open: int = attrs.field(validator=validators.ge(1))
    max_chunk_bytes: int = attrs.field(validator=validators.ge(1))
    max_upload_bytes: int = attrs.field(validator=validators.ge(1))
    max_session_bytes: int = attrs.field(validator=validators.ge(1))
    reserve_bytes: int = attrs.field(validator=validators.ge(0))
    upload_idle_s: float = attrs.field(validator=validators.gt(0))
    download_idle_s: float = attrs.field(validator=validators.gt(0))
