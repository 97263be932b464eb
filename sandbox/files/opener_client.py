"""Questions to the opener, and their answers (broker side).

Owns the socket: numbers the requests, reads the answers in one task, hands each to the task that waits for
it, and closes what comes for a task that left. Knows no path and no rule; `files.py` gives it meaning.

Several tasks may ask at once. A cancelled question leaves the protocol whole: its number is forgotten, and
the descriptors of a late answer are closed by the reader.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeGuard, TypeVar

import attrs
import trio

from sandbox import wire
from sandbox.files.errors import (
    BadPath,
    FileError,
    NotFound,
    OpenerGone,
    OutcomeUnknown,
    Unanswered,
    from_errno,
    from_refusal,
    is_refusal,
    shown,
)
from sandbox.polled import closing_socket, receive_from

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from sandbox.protocol.files import (
        AnyAnswer,
        CommitPart,
        DirectoryMade,
        DiscardPart,
        EntryFound,
        Facts,
        FindEntry,
        FindPlace,
        Listed,
        ListNames,
        MakeDirectory,
        Named,
        Nothing,
        OpenAppend,
        PartsLeft,
        PartStarted,
        PlaceFound,
        Remove,
        Rename,
        Resolve,
        Resolved,
        StartPart,
    )

Asked = TypeVar("Asked", bound="Mapping[str, object]")
Said = TypeVar("Said", bound="Mapping[str, object]")

PATH_MAX_BYTES = 4096
REFUSING = ("refused", "errno", "why", "led_to")
UNHEARD = "it was done, and there were no descriptors left to hear the whole answer"


class Op(str, Generic[Asked, Said]):
    """The name of a request; for the type checker, also what is asked with it and what it answers."""

    __slots__ = ()


RESOLVE: Op[Resolve, Resolved] = Op("resolve")
PLACE: Op[FindPlace, PlaceFound] = Op("place")
ENTRY: Op[FindEntry, EntryFound] = Op("entry")
APPEND: Op[OpenAppend, Facts] = Op("append")
PART: Op[StartPart, PartStarted] = Op("part")
COMMIT: Op[CommitPart, Nothing] = Op("commit")
DISCARD: Op[DiscardPart, Nothing] = Op("discard")
LIST: Op[ListNames, Listed] = Op("list")
MAKE: Op[MakeDirectory, DirectoryMade] = Op("make")
RENAME: Op[Rename, Nothing] = Op("rename")
REMOVE: Op[Remove, Nothing] = Op("remove")
SWEEP: Op[Nothing, PartsLeft] = Op("sweep")
WORKER: Op[Nothing, Nothing] = Op("worker")


@attrs.define(eq=False)
class Answer(Generic[Said]):
    """An answer of the opener. Ownership: the descriptors belong to the caller of `Exchange.ask`."""

    body: Said
    fds: list[int]
    pieces: list[Named]

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        while self.fds:
            os.close(self.fds.pop())


@attrs.define(eq=False)
class _Waiting:
    undo: str
    changes: bool
    done: trio.Event = attrs.field(factory=trio.Event)
    asked: bool = False
    pieces: list[Named] = attrs.field(factory=list)
    answer: Answer[Any] | None = None


class Exchange:
    """One socket to one opener."""

    def __init__(self, sock: socket.socket, *, answer_s: float) -> None:
        self.answer_s = answer_s
        self._sock = sock
        self._numbers: Iterator[int] = itertools.count()
        self._waiting: dict[int, _Waiting] = {}
        self._undos: dict[int, str] = {}  # of questions whose asker left
        self._unsettled: set[int] = set()  # changes whose asker left before the answer
        self._when_settled: list[tuple[set[int], Callable[[], None]]] = []  # each with what it still waits for
        self._sending = trio.Lock()  # only one task may wait for a socket to become writable
        self._gone = False

    async def ask(
        self,
        op: Op[Asked, Said],
        path: str,
        fields: Asked,
        fds: Sequence[int] = (),
        *,
        undo: str = "",
        changes: bool = False,
    ) -> Answer[Said]:
        """Send one request and wait for its answer.

        Args:
            op: a name of the opener's table.
            path: what the caller calls the file, for the error's text.
            fields: what goes with that name, apart from descriptors.
            fds: descriptors to send along; they stay the caller's.
            undo: the request that takes back what was answered, where nobody waits for the answer any more.
            changes: it changes names, so that without an answer nobody knows whether it did.
        Raises: FileError as the opener refuses; OpenerGone; Unanswered after `answer_s` seconds; OutcomeUnknown in
            place of these two when a change was sent.
        Cancellation: the request may still be performed; its answer is then thrown away, or undone.
        """
        number, waiting = next(self._numbers), _Waiting(undo, changes)
        self._waiting[number] = waiting
        with ExitStack() as leaving:  # until the answer is the caller's
            leaving.callback(self._leave, number, waiting)
            with trio.move_on_after(self.answer_s):
                await self._send(path, {"n": number, "op": op, **fields}, fds)
                waiting.asked = True
                await waiting.done.wait()
            answer = self._checked(path, waiting)
            leaving.pop_all()
        return answer

    def when_settled(self, call: Callable[[], None]) -> None:
        """Call *call* once no change can come any more whose asker has left by now; mostly at once.

        Changes whose askers leave later are not waited for: there might be no end of them.
        """
        self._when_settled.append((self._unsettled.copy(), call))
        self._settle()

    def settle(self) -> None:
        """Learn that the opener is gone, and with it every change that was still to come."""
        self._unsettled.clear()
        self._settle()

    def _settle(self) -> None:
        waiting, self._when_settled = self._when_settled, []
        for awaited, call in waiting:
            if awaited.isdisjoint(self._unsettled):
                call()
            else:
                self._when_settled.append((awaited, call))

    def _leave(self, number: int, waiting: _Waiting) -> None:
        if self._waiting.pop(number, None) is not None and waiting.asked:
            if waiting.undo:
                self._undos[number] = waiting.undo
            if waiting.changes:
                self._unsettled.add(number)
        if waiting.answer is not None:
            self._throw_away(waiting.answer, waiting.undo)

    def _throw_away(self, answer: Answer[Any], undo: str) -> None:
        answer.close()
        if undo and "refused" not in answer.body:
            # Where the socket is full or dead, the opener tidies up at its own end.
            with suppress(BlockingIOError, ConnectionError):
                wire.send(self._sock, {**answer.body, "n": next(self._numbers), "op": undo})

    def _checked(self, path: str, waiting: _Waiting) -> Answer[Any]:
        answer = waiting.answer
        if answer is None:
            if waiting.changes and waiting.asked:
                raise self._unknown(path)
            if self._gone:
                raise _gone(path)
            raise Unanswered(path, f"{shown(path)}: no answer within {self.answer_s:g} s", "ETIMEDOUT")
        if "refused" in answer.body:
            error = from_refusal(path, answer.body)
            if isinstance(error, NotFound):
                error.led(answer.body.get("led_to", path))
            raise error
        return answer

    def _unknown(self, path: str) -> FileError:
        why = (
            "the session's file opener ended before it answered" if self._gone else f"no answer in {self.answer_s:g} s"
        )
        return OutcomeUnknown(
            path, f"{shown(path)}: {why}; whether it was changed is not known", "" if self._gone else "ETIMEDOUT"
        )

    async def _send(self, path: str, message: Mapping[str, object], fds: Sequence[int]) -> None:
        async with self._sending:
            while not self._gone:
                try:
                    wire.send(self._sock, message, fds)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._sock)
                except ConnectionError:
                    self._end()
                except OSError as fault:  # too many descriptors under way
                    raise from_errno(path, fault.errno or errno.EIO) from fault
                else:
                    return
        raise _gone(path)

    async def read_answers(self) -> None:
        """Hand every answer to its waiting task, until the opener is gone."""
        try:
            while await self._hear():
                continue
        except wire.WireBroken:
            return  # nothing after it can be trusted; every request says OpenerGone from here on
        finally:
            self._end()
        self.settle()  # its socket ended with it

    async def _hear(self) -> bool:
        """Wait for one answer and hand it over; return whether there can be more."""
        try:
            message = await receive_from(self._sock, wire.receive)
        except wire.Truncated as cut:
            part: Any = cut.message or {}
            if part and not _is_answer(part):
                raise wire.WireBroken("an answer came that no opener of ours gives") from cut
            self._cut_off(part)
            return True
        if message is None:
            return False
        body: Any
        body, fds = message
        if not _is_answer(body):
            Answer(body, fds, []).close()
            raise wire.WireBroken("an answer came that no opener of ours gives")
        self._deliver(body, fds)
        return True

    def _cut_off(self, body: AnyAnswer) -> None:
        """Refuse what was answered, for want of descriptors of ours to take the answer, and have it undone."""
        number = body.get("n")
        if number is None:  # whose answer it was, nobody knows: it is missed like one that does not come
            return
        waiting = self._waiting.get(number)
        undo = self._undos.pop(number, "") if waiting is None else waiting.undo
        done = waiting is not None and waiting.changes and "refused" not in body
        self._throw_away(Answer(body, [], []), undo)
        self._deliver({"n": number, "refused": "done" if done else "", "errno": errno.EMFILE, "why": UNHEARD}, [])

    def _deliver(self, body: AnyAnswer, fds: list[int]) -> None:
        number = body.pop("n")
        waiting = self._waiting.get(number)
        if waiting is None:
            if "piece" not in body:
                self._unsettled.discard(number)
                self._settle()
            self._throw_away(Answer(body, fds, []), "" if "piece" in body else self._undos.pop(number, ""))
        elif "piece" in body:
            waiting.pieces.extend(body["piece"])
        else:
            del self._waiting[number]
            waiting.answer = Answer(body, fds, waiting.pieces)
            waiting.done.set()

    def _end(self) -> None:
        """Say OpenerGone from here on. An opener that is not heard any more may still make what it was asked for."""
        self._gone = True
        waiting, self._waiting = self._waiting, {}
        for number, one in waiting.items():
            if one.changes and one.asked:
                self._unsettled.add(number)
            one.done.set()


def _is_answer(body: Any) -> TypeGuard[AnyAnswer]:
    """Tell whether *body* has the shape that all here rely on: a fault of the sender must be no exception of ours."""
    is_numbered = type(body.get("n")) is int and isinstance(body.get("piece", []), list)
    return is_numbered and (body.keys().isdisjoint(REFUSING) or is_refusal(body))


def checked_path(path: str) -> str:
    """Return *path* if the kernel could take it at all; keep nonsense out of the protocol."""
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        raise BadPath(path, f"{shown(path)}: not a file name in any encoding", "EILSEQ") from None
    if not encoded.startswith(b"/") or b"\0" in encoded:
        raise BadPath(path, f"{shown(path)}: an absolute path without a NUL is needed", "EINVAL")
    if len(encoded) >= PATH_MAX_BYTES:
        raise BadPath(path[:80], f"{shown(path[:80])}...: a path has at most 4095 bytes", "ENAMETOOLONG")
    return path


def _gone(path: str) -> FileError:
    return OpenerGone(path, f"{shown(path)}: the session's file opener has ended; open a new session")


@asynccontextmanager
async def open_exchange(sock: socket.socket, *, answer_s: float) -> AsyncIterator[Exchange]:
    """Own *sock* and the task that reads it.

    Ownership: the socket is closed at the end.
    Cancellation: answers are read until the end, for callers that still have something to tidy up, or to look at.
    """
    if not (math.isfinite(answer_s) and answer_s > 0):
        raise ValueError(f"answer_s must be a positive number of seconds, not {answer_s}")
    with closing_socket(sock):
        sock.setblocking(False)
        reading = trio.CancelScope(shield=True)
        exchange = Exchange(sock, answer_s=answer_s)

        async def read() -> None:
            with reading:
                await exchange.read_answers()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            try:
                yield exchange
            finally:
                reading.cancel(reason="the files are closed")
