"""edit_file: replace a text that is exactly there, exactly as often as expected, at once or not at all."""

from __future__ import annotations

import hashlib

import attrs

from broker.contract.errors import BrokerError, ErrorCode
from broker.contract.names import shown_path
from broker.contract.trees import EditFile, EditFileResult
from broker.scope import Host, Scope
from broker.tools.edit_text import SHOWN_LINES, Edited, lines_of, replace_exactly
from broker.tools.rules import held, require_size, require_writable, sha256_of, told_what_it_makes, written
from sandbox.files.errors import Changed, NotFound
from sandbox.files.files import FileFacts, Files
from sandbox.threads import run_in_thread


@attrs.frozen(kw_only=True)
class _Outcome:
    edited: Edited
    size_bytes: int
    sha256: str


async def perform_edit_file(scope: Scope, request: EditFile, path: str) -> EditFileResult:
    """Edit the file that was decided on; what is there when the edit is put in place must still be that.

    From the look to the replacement it is the only one of this broker who changes the name.
    """
    host, files = scope.host, scope.own.files
    async with held(scope, files.place, (path, "write")) as (place,):
        await require_writable(scope, place)
        existing = place.existing
        if existing is None:
            raise NotFound(path, f"{path}: No such file or directory", "ENOENT")
        require_size(host, existing.size_bytes, "the file")
        data = await _read_all(files, path, existing)
        # Several megabytes to look through and to hash: not in the thread that serves everybody.
        outcome = await run_in_thread(_edit, host, request, data, place.name)
        async with written(scope, place.fd, outcome.size_bytes), await files.part(place) as part:
            await part.fill(*outcome.edited.pieces)
            with told_what_it_makes(*outcome.edited.pieces, sha256=outcome.sha256):
                await part.commit(expect=existing)
        return EditFileResult(
            path=shown_path(place.path),
            replacements=request.expected_count,
            diff=outcome.edited.diff,
            diff_truncated=outcome.edited.diff_truncated,
            size_bytes=outcome.size_bytes,
            sha256=outcome.sha256,
        )


async def _read_all(files: Files, path: str, decided: FileFacts) -> bytes:
    """The content of the very file that was decided on."""
    with await files.resolve(decided.path, read=True) as found:
        data = await files.read(found, 0, decided.size_bytes)
        if found.facts.identity != decided.identity or len(data) != decided.size_bytes:
            raise Changed(path, f"{path}: it was changed meanwhile; read it again", "ESTALE")
        return data


def _edit(host: Host, request: EditFile, data: bytes, name: str) -> _Outcome:
    """Check what the client expects and replace; for a thread."""
    if request.expected_sha256 is not None:
        _require_digest(data, request.expected_sha256.lower())
    old, new = request.old_text.encode(), request.new_text.encode()
    if old == new:
        raise BrokerError(ErrorCode.INVALID_ARGUMENTS, "old_text and new_text are the same: nothing to edit")
    count = data.count(old)
    if count != request.expected_count:
        raise _mismatch(data, request, count)
    require_size(host, len(data) + count * (len(new) - len(old)), "the edited file")  # before it takes that memory
    edited = replace_exactly(data, old, new, shown_path(name))
    return _Outcome(edited=edited, size_bytes=sum(map(len, edited.pieces)), sha256=sha256_of(*edited.pieces))


def _require_digest(data: bytes, expected: str) -> None:
    actual = hashlib.sha256(data).hexdigest()  # here: it is in memory, to be edited, and no more than may be written
    if actual != expected:
        raise BrokerError(
            ErrorCode.FILE_CHANGED,
            f"the file has SHA-256 {actual}, not the expected {expected}: read it again",
            sha256=actual,
        )


def _mismatch(data: bytes, request: EditFile, count: int) -> BrokerError:
    lines = lines_of(data, request.old_text.encode())
    if lines:
        more = ", ..." if count > SHOWN_LINES else ""
        where = f" (lines {', '.join(map(str, lines))}{more}); take more of the text around the right place"
    elif b"\n" in request.old_text.encode() and b"\r\n" in data:
        where = "; the lines of this file end in CRLF"
    else:
        where = "; read the file again, blanks and line ends count"
    return BrokerError(
        ErrorCode.FILE_EDIT_MISMATCH,
        f"old_text occurs {count} times, not {request.expected_count}{where}",
        occurrences=count,
        expected_count=request.expected_count,
        lines=lines,
    )
