"""The one table of failures: which exception becomes which wire code.

Every package has its own small vocabulary of exceptions; only this module knows which code each of them has. An
exception that is not in the table never reaches the wire as text: the client gets an incident id, the error log the
rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from broker.audit.logfile import AuditUnavailable
from broker.contract.errors import BrokerError, ErrorCode, Failure
from broker.memory.answers import NoRoomForAnswer
from broker.session.commands import CommandNotFound, NotTaken, TooManyCommands
from broker.session.session import SessionClosed
from broker.session.supervisor import CreationCut, CreationFailed, SessionExpired, SessionLimitReached, SessionNotFound
from sandbox.errors import ProcessNotFound, SpawnFailed
from sandbox.files import errors
from sandbox.shortage import shortage_of
from transfers import refusals

FAILURES: Mapping[type[Exception], ErrorCode] = MappingProxyType(
    {
        SessionNotFound: ErrorCode.SESSION_NOT_FOUND,
        SessionExpired: ErrorCode.SESSION_EXPIRED,
        SessionLimitReached: ErrorCode.SESSION_LIMIT_REACHED,
        CreationFailed: ErrorCode.SESSION_CREATION_FAILED,
        SessionClosed: ErrorCode.SESSION_CLOSED,
        TooManyCommands: ErrorCode.POLICY_RESOURCE_EXCEEDED,
        CommandNotFound: ErrorCode.CMD_NOT_FOUND,
        NotTaken: ErrorCode.CMD_NOT_TAKEN,
        AuditUnavailable: ErrorCode.AUDIT_UNAVAILABLE,
        NoRoomForAnswer: ErrorCode.SYSTEM_BUSY,
        SpawnFailed: ErrorCode.CMD_EXEC_FAILED,
        ProcessNotFound: ErrorCode.PROC_NOT_FOUND,
        errors.NotFound: ErrorCode.FILE_NOT_FOUND,
        errors.AccessDenied: ErrorCode.FILE_ACCESS_DENIED,
        errors.WrongKind: ErrorCode.FILE_ACCESS_DENIED,
        errors.BadPath: ErrorCode.INVALID_ARGUMENTS,
        errors.NoSpace: ErrorCode.FILE_WRITE_ERROR,
        errors.TooLarge: ErrorCode.FILE_TOO_LARGE,
        errors.Changed: ErrorCode.FILE_CHANGED,
        errors.Exists: ErrorCode.FILE_EXISTS,
        errors.NotEmpty: ErrorCode.FILE_ACCESS_DENIED,
        errors.HoldsClosedPaths: ErrorCode.POLICY_PATH_VIOLATION,
        errors.BadPattern: ErrorCode.INVALID_ARGUMENTS,
        errors.BadArchive: ErrorCode.INVALID_ARGUMENTS,
        errors.TookTooLong: ErrorCode.FILE_TIMEOUT,
        errors.WriteFailed: ErrorCode.FILE_WRITE_ERROR,
        errors.Unanswered: ErrorCode.FILE_WRITE_ERROR,
        errors.RanShort: ErrorCode.SYSTEM_SHORTAGE,
        errors.OpenerGone: ErrorCode.SESSION_CLOSED,
        errors.OutcomeUnknown: ErrorCode.FILE_OUTCOME_UNKNOWN,
        refusals.TransferNotFound: ErrorCode.TRANSFER_NOT_FOUND,
        refusals.PathMismatch: ErrorCode.TRANSFER_NOT_FOUND,
        refusals.OffsetMismatch: ErrorCode.TRANSFER_OFFSET_MISMATCH,
        refusals.OffsetBeyondEnd: ErrorCode.INVALID_ARGUMENTS,
        refusals.TooLarge: ErrorCode.FILE_TOO_LARGE,
        refusals.TooManyTransfers: ErrorCode.POLICY_RESOURCE_EXCEEDED,
        refusals.QuotaExceeded: ErrorCode.POLICY_RESOURCE_EXCEEDED,
        refusals.NoRoom: ErrorCode.FILE_WRITE_ERROR,
        refusals.RanShort: ErrorCode.SYSTEM_SHORTAGE,
        refusals.UploadLost: ErrorCode.FILE_WRITE_ERROR,
        refusals.UploadInDoubt: ErrorCode.FILE_OUTCOME_UNKNOWN,
        refusals.SizeMismatch: ErrorCode.TRANSFER_MISMATCH,
        refusals.DigestMismatch: ErrorCode.TRANSFER_MISMATCH,
        refusals.TransferBusy: ErrorCode.TRANSFER_BUSY,
        refusals.TransferOver: ErrorCode.TRANSFER_OVER,
        refusals.SourceChanged: ErrorCode.FILE_CHANGED,
        refusals.SourceUnreadable: ErrorCode.FILE_ACCESS_DENIED,
        refusals.ArchiveTooLarge: ErrorCode.FILE_TOO_LARGE,
        refusals.UnsizedSource: ErrorCode.FILE_ACCESS_DENIED,
        refusals.TransfersClosed: ErrorCode.SESSION_CLOSED,
    }
)
"""The packages' vocabularies. Their messages are written for people and go to the wire as they are."""

PASSING = (CreationCut,)
"""Of them the same call may succeed, though their rows say no: they say it of what is refused each time."""
_ON_DISK = (refusals.RanShort, refusals.UploadLost, refusals.SourceUnreadable)
"""What transfers say of a failed system call, which is its cause."""


def failure_of(error: Exception, incident_id: str) -> Failure:
    """Return the failure that a client is told for *error*; a subclass has the row of its nearest listed ancestor."""
    if isinstance(error, BrokerError):
        return Failure(code=error.code, message=error.message, details=error.details, partial=error.partial)
    short = shortage_of(error.__cause__ if isinstance(error, _ON_DISK) and error.__cause__ else error)
    for ancestor in type(error).__mro__:
        if code := FAILURES.get(ancestor):
            message = str(error) if not short or short in str(error) else f"{error}. {short}"
            row = ErrorCode.SYSTEM_SHORTAGE if short else code
            passing = isinstance(error, PASSING)
            return Failure(code=row, message=message, details=_public_facts(error), passing=passing)
    if short := shortage_of(error, of_own_file=True):  # where nobody expected it, perhaps in the middle of something
        return Failure(
            code=ErrorCode.SYSTEM_SHORTAGE,
            message=f"the broker ran short. {short}. What this call had begun may be done in part: look first",
        )
    return Failure(
        code=ErrorCode.SYSTEM_INTERNAL_ERROR,
        message=f"the broker failed on this call; it is incident {incident_id} in the error log",
        details={"incident_id": incident_id},
    )


def _public_facts(error: Exception) -> dict[str, object]:
    """Return the plain values that the exception carries as attributes, such as a path or an expected offset."""
    return {
        name: value
        for name, value in vars(error).items()
        if not name.startswith("_") and isinstance(value, str | int | float | Enum) and value != str(error)
    }
