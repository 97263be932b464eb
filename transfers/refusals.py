"""The refusals of transfers: the package's error vocabulary. `broker/failures.py` gives it wire codes.

Every message names the value, the limit and what to do. Paths are shown with repr(), so that control
characters and undecodable bytes in a name cannot reach a terminal or a log line.
"""

from __future__ import annotations


class TransferError(Exception):
    """Something a client asked of a transfer that cannot be done. Never raised itself.

    `is_final`: the transfer is over by it; after any other it can go on.
    """

    is_final = False


class TransferNotFound(TransferError):
    """No such transfer here: never opened, expired, or another session's (which is told the same)."""

    is_final = True

    def __init__(self, transfer_id: str) -> None:
        super().__init__(
            f"no transfer {transfer_id!r} in this session: it may have expired, or its result is too old; "
            "start again (upload_file: without transfer_id at chunk_offset 0)"
        )
        self.transfer_id = transfer_id


class PathMismatch(TransferError):
    """A chunk named another path than its upload was opened for."""

    def __init__(self, transfer_id: str, path: str, opened_for: str) -> None:
        super().__init__(f"upload {transfer_id!r} was opened for {opened_for!r}, not for {path!r}")
        self.transfer_id = transfer_id
        self.path = path
        self.opened_for = opened_for


class OffsetMismatch(TransferError):
    """A chunk does not continue its upload; nothing was changed."""

    def __init__(self, offset: int, expected_offset: int, why: str) -> None:
        super().__init__(f"the chunk at offset {offset} {why}; the upload expects offset {expected_offset}")
        self.offset = offset
        self.expected_offset = expected_offset
        self.why = why


class OffsetBeyondEnd(TransferError):
    """A download was asked for bytes outside the file."""

    def __init__(self, path: str, offset: int, size_bytes: int) -> None:
        super().__init__(f"offset {offset} is outside {path!r}, which has {size_bytes} bytes")
        self.path = path
        self.offset = offset
        self.size_bytes = size_bytes


class TooLarge(TransferError):
    """A chunk or an uploaded file exceeds its limit. *what* is "chunk" or "upload"."""

    def __init__(self, what: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"the {what} would have {size_bytes} bytes; the limit is {limit_bytes}")
        self.what = what
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class TooManyTransfers(TransferError):
    """The session has as many transfers open as it may."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} transfers are open, the limit of a session: finish one, or try again later")
        self.limit = limit


class QuotaExceeded(TransferError):
    """The session has written as much as it may."""

    def __init__(self, needed_bytes: int, used_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"{needed_bytes} bytes are to be written, and this session has written {used_bytes} of the {limit_bytes} "
            "bytes it may (file_limits.max_session_bytes): write less, or go on in a new session"
        )
        self.needed_bytes = needed_bytes
        self.used_bytes = used_bytes
        self.limit_bytes = limit_bytes


class NoRoom(TransferError):
    """A chunk does not fit on the file system; nothing changed, the upload goes on where it was."""

    def __init__(self, path: str, needed_bytes: int, free_bytes: int, reserve_bytes: int) -> None:
        super().__init__(
            f"no room for the chunk of the upload to {path!r}: it has {needed_bytes} bytes, the file system has "
            f"{free_bytes} bytes free, of which {reserve_bytes} stay free (file_limits.min_free_bytes). Nothing was "
            "lost: make room, then send the chunk again"
        )
        self.path = path
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        self.reserve_bytes = reserve_bytes


class RanShort(TransferError):
    """There is no thread for a chunk; nothing changed, the upload goes on where it was."""

    def __init__(self, path: str) -> None:
        super().__init__(f"no thread for the upload to {path!r}. Nothing was lost: send the chunk again")
        self.path = path


class UploadLost(TransferError):
    """The upload cannot go on and its part file is discarded; the destination is untouched."""

    is_final = True

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"the upload to {path!r} was lost ({why}); start again at chunk_offset 0")
        self.path = path
        self.why = why


class UploadInDoubt(TransferError):
    """The upload is over, and nobody knows whether it replaced the destination, or for how long."""

    is_final = True

    def __init__(self, path: str, why: str, size_bytes: int, sha256: str) -> None:
        super().__init__(
            f"whether the upload replaced {path!r} is not known ({why}): it did if that has {size_bytes} bytes and the "
            f"SHA-256 {sha256}; else start again at chunk_offset 0"
        )
        self.path = path
        self.why = why
        self.size_bytes = size_bytes
        self.sha256 = sha256


class SizeMismatch(TransferError):
    """The upload has more or fewer bytes than were declared; what was received is kept."""

    def __init__(self, path: str, size_bytes: int, declared_bytes: int | None, expected_offset: int) -> None:
        super().__init__(
            f"the upload to {path!r} would have {size_bytes} bytes, and {declared_bytes} were declared; "
            f"{expected_offset} are kept, go on behind them or cancel it"
        )
        self.path = path
        self.size_bytes = size_bytes
        self.declared_bytes = declared_bytes
        self.expected_offset = expected_offset


class DigestMismatch(TransferError):
    """The upload has other bytes than were declared; it was discarded."""

    is_final = True

    def __init__(self, path: str, sha256: str, declared_sha256: str | None) -> None:
        super().__init__(
            f"the SHA-256 of the upload to {path!r} is {sha256}, and {declared_sha256} was declared; it was discarded "
            "and the destination is as it was: open another transfer"
        )
        self.path = path
        self.sha256 = sha256
        self.declared_sha256 = declared_sha256


class TransferBusy(TransferError):
    """Another request is using the transfer."""

    def __init__(self, transfer_id: str) -> None:
        super().__init__(f"another request is at work on transfer {transfer_id!r}: wait until it ends, then ask again")
        self.transfer_id = transfer_id


class TransferOver(TransferError):
    """The transfer has ended; *state* says how."""

    is_final = True

    def __init__(self, transfer_id: str, state: str, why: str) -> None:
        super().__init__(f"transfer {transfer_id!r} is {state}{why and f' ({why})'}; open another one")
        self.transfer_id = transfer_id
        self.state = state
        self.why = why


class SourceChanged(TransferError):
    """The file changed while it was downloaded; chunks from before and after would not fit together."""

    is_final = True

    def __init__(self, path: str) -> None:
        super().__init__(f"{path!r} changed while it was downloaded; start again at offset 0")
        self.path = path


class SourceUnreadable(TransferError):
    """The file system failed while the file was read."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path!r} could not be read ({why})")
        self.path = path
        self.why = why


class ArchiveTooLarge(TransferError):
    """The directory holds more than an archive may."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path!r} is too much for one archive ({why}); transfer a directory in it instead")
        self.path = path
        self.why = why


class UnsizedSource(TransferError):
    """The file says it is empty and yet yields bytes, as files of /proc and /sys do."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path!r} has no size of its own (a kernel file?); use read_file for it")
        self.path = path


class TransfersClosed(TransferError):
    """The session is ending; its transfers are gone."""

    is_final = True

    def __init__(self) -> None:
        super().__init__("the session is ending and its transfers are discarded")
