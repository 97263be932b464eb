"""One table of codes: every exception of the packages has its row, every row somebody who raises it."""

from __future__ import annotations

import builtins
import errno
import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]  # it brings no types
import pytest

import broker
from broker.audit.logfile import AuditUnavailable
from broker.contract.commands import ExecuteCommandResult
from broker.contract.encode import encode
from broker.contract.errors import BrokerError, ErrorCode, Failure
from broker.contract.table import TOOLS, Tool
from broker.failures import FAILURES, failure_of
from broker.session.session import EndReason, SessionClosed
from broker.session.supervisor import CreationCut, CreationFailed
from sandbox.errors import SpawnFailed
from sandbox.files.errors import FileError, NotFound, from_errno
from transfers.refusals import OffsetMismatch, RanShort, TransferError, UploadLost


def subclasses(cls: type[Exception]) -> Iterator[type[Exception]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


def test_codes_and_names_are_unique_and_say_what_to_do() -> None:
    assert len({row.code for row in ErrorCode}) == len(ErrorCode)
    for row in ErrorCode:
        family, number = row.code.split("_")
        assert family.isupper()
        assert number.isdigit()
        assert len(number) == 3
        assert row.what_to_do.endswith(".")


@pytest.mark.parametrize("vocabulary", [FileError, TransferError])
def test_every_exception_of_a_package_has_a_row(vocabulary: type[Exception]) -> None:
    missing = [cls.__name__ for cls in subclasses(vocabulary) if cls not in FAILURES]
    assert not missing


def test_every_row_is_raised_by_somebody() -> None:
    """Either a listed exception has it, or the code of the broker names it."""
    rooms = Path(broker.__file__).parent.rglob("*.py")
    source = "".join(path.read_text() for path in rooms if path.name not in {"errors.py", "failures.py"})
    unraised = [row.name for row in ErrorCode if row not in FAILURES.values() and f"ErrorCode.{row.name}" not in source]
    assert not unraised


def test_no_exception_of_python_itself_is_in_the_table() -> None:
    assert not [cls for cls in FAILURES if cls.__module__ == builtins.__name__]


def test_a_failure_has_the_customers_shape() -> None:
    failure = failure_of(BrokerError(ErrorCode.POLICY_COMMAND_BLOCKED, "curl is not allowed", limit=3), "i-1")
    assert failure.to_structured() == {
        "success": False,
        "error_code": "POLICY_001",
        "error_name": "POLICY_COMMAND_BLOCKED",
        "error_message": "curl is not allowed",
        "error_details": {"what_to_do": ErrorCode.POLICY_COMMAND_BLOCKED.what_to_do, "limit": 3},
        "retryable": False,
    }


def test_confirmation_is_asked_for_by_its_name() -> None:
    row = ErrorCode.POLICY_CONFIRMATION_REQUIRED
    assert (row.code, row.name) == ("POLICY_004", "POLICY_CONFIRMATION_REQUIRED")


def test_a_timeout_carries_the_partial_result_and_is_still_a_failure() -> None:
    partial = ExecuteCommandResult(
        success=True, exit_code=None, signal=15, stdout="half", stderr="", duration_ms=1000, pid=7, timed_out=True
    )
    timeout = BrokerError(ErrorCode.CMD_TIMEOUT, "the command ran for 1 s", partial=encode(partial), timeout_seconds=1)
    structured = failure_of(timeout, "i-1").to_structured()
    assert structured["success"] is False
    assert (structured["stdout"], structured["timed_out"], structured["error_code"]) == ("half", True, "CMD_002")
    jsonschema.validate(structured, TOOLS["execute_command"].output_schema)


def test_a_packages_exception_keeps_its_message_and_facts() -> None:
    structured = failure_of(OffsetMismatch(10, 4, "leaves a gap"), "i-1").to_structured()
    assert structured["error_code"] == "TRANSFER_002"
    assert "expects offset 4" in str(structured["error_message"])
    assert structured["error_details"] == {
        "what_to_do": ErrorCode.TRANSFER_OFFSET_MISMATCH.what_to_do,
        "offset": 10,
        "expected_offset": 4,
        "why": "leaves a gap",
    }
    gone = failure_of(NotFound("a.txt", "a.txt: No such file or directory", "ENOENT"), "i-1")
    assert gone.code is ErrorCode.FILE_NOT_FOUND
    assert gone.details == {"path": "a.txt", "errno_name": "ENOENT"}
    assert failure_of(SessionClosed("s", EndReason.KILLED), "i-1").to_structured()["error_code"] == "SESSION_005"


def test_a_birth_that_was_cut_may_be_tried_again_and_one_that_was_refused_not() -> None:
    refused, cut = (failure_of(kind("why"), "i-1").to_structured() for kind in (CreationFailed, CreationCut))
    assert refused["error_code"] == cut["error_code"] == "SESSION_004"
    assert (refused["retryable"], cut["retryable"]) == (False, True)
    assert refused["error_details"] == {"what_to_do": ErrorCode.SESSION_CREATION_FAILED.what_to_do}
    assert "Call again" in str(cut["error_details"])


def test_a_subclass_has_the_row_of_its_ancestor() -> None:
    class Vanished(NotFound):
        pass

    assert failure_of(Vanished("a", "gone"), "i-1").code is ErrorCode.FILE_NOT_FOUND


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the password is hunter2"),
        ExceptionGroup("hunter2", [NotFound("hunter2", "hunter2")]),
        RuntimeError("hunter2"),
        FileError("hunter2", "hunter2"),
    ],
)
def test_an_unknown_exception_shows_its_incident_id_and_nothing_else(error: Exception) -> None:
    structured = failure_of(error, "incident-1").to_structured()
    assert structured["error_code"] == "SYS_999"
    assert structured["error_details"] == {
        "what_to_do": ErrorCode.SYSTEM_INTERNAL_ERROR.what_to_do,
        "incident_id": "incident-1",
    }
    assert "hunter2" not in json.dumps(structured)


def test_an_audit_failure_does_not_tell_where_the_log_is() -> None:
    structured = failure_of(AuditUnavailable(Path("/var/log/broker/audit.log"), "No space left on device"), "i-1")
    assert structured.code is ErrorCode.AUDIT_UNAVAILABLE
    assert "/var/log" not in json.dumps(structured.to_structured())


@pytest.mark.parametrize("tool", TOOLS.values(), ids=list(TOOLS))
def test_every_failure_fits_every_output_schema(tool: Tool) -> None:
    for row in ErrorCode:
        failure = Failure(code=row, message="\udcff broken", details={"odd": float("nan"), "at": Path("/x")})
        structured = failure.to_structured()
        jsonschema.validate(structured, tool.output_schema)
        json.dumps(structured, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (BlockingIOError(errno.EAGAIN, "hunter2", "/hunter2"), "RLIMIT_NPROC"),
        (OSError(errno.EMFILE, "hunter2"), "RLIMIT_NOFILE"),
        (OSError(errno.ENOMEM, "hunter2"), "memory"),
        (MemoryError("hunter2"), "memory"),
        (OSError(errno.ENOSPC, "hunter2", "/hunter2"), "disk"),
        (ExceptionGroup("hunter2", [MemoryError(), ExceptionGroup("", [OSError(errno.ENFILE, "")])]), "memory"),
        (from_errno("a.txt", errno.ETOOMANYREFS), "RLIMIT_NOFILE"),
        (SpawnFailed("exec", "no more", errno.EAGAIN), "RLIMIT_NPROC"),
        (CreationFailed("no more", errno.EMFILE), "RLIMIT_NOFILE"),
    ],
)
def test_a_shortage_says_which_limit_was_met_and_may_be_tried_again(error: Exception, limit: str) -> None:
    structured = failure_of(error, "i-1").to_structured()
    assert (structured["error_code"], structured["retryable"]) == ("SYS_001", True)
    assert limit in str(structured["error_message"])
    assert "hunter2" not in json.dumps(structured)


def test_what_is_no_shortage_stays_an_incident() -> None:
    mixed = ExceptionGroup("", [MemoryError(), ValueError()])
    for error in (mixed, OSError(errno.EBADF, ""), RuntimeError("can't start new thread")):
        assert failure_of(error, "i-1").code is ErrorCode.SYSTEM_INTERNAL_ERROR
    assert failure_of(SpawnFailed("exec", "no such file", errno.ENOENT), "i-1").code is ErrorCode.CMD_EXEC_FAILED


def test_a_transfer_that_ran_short_says_so() -> None:
    lost = UploadLost("a", "no thread")
    lost.__cause__ = OSError(errno.EAGAIN, "")
    assert failure_of(lost, "i-1").code is ErrorCode.SYSTEM_SHORTAGE
    lost.__cause__ = OSError(errno.EIO, "")
    assert failure_of(lost, "i-1").code is ErrorCode.FILE_WRITE_ERROR
    waits = RanShort("a")
    waits.__cause__ = OSError(errno.EAGAIN, "")
    failure = failure_of(waits, "i-1")
    assert (failure.code, "RLIMIT_NPROC" in failure.message) == (ErrorCode.SYSTEM_SHORTAGE, True)
