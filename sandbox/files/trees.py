"""Slow work on trees, each piece of it in a worker process of its own (broker side).

Owns a worker from its fork to its end: the job goes out, findings come back in pieces, and the process is gone soon
after its caller, also when that is cancelled. Findings from before a deadline are not lost with it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs
import trio

from sandbox import wire
from sandbox.files.errors import FileError, NoSpace, OutcomeUnknown, WriteFailed, from_refusal, is_refusal, shown
from sandbox.files.worker_client import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Never

    from sandbox.files.opener_client import Exchange
    from sandbox.protocol.files import (
        Appeared,
        Copied,
        CopyFile,
        CopyTree,
        Counted,
        Find,
        FindClosedNames,
        FromWorker,
        JudgeNames,
        ListTree,
        Matched,
        MoveTree,
        Named,
        NamesJudged,
        Nothing,
        Pack,
        Packed,
        Refusal,
        RemoveTree,
        Search,
        Surveyed,
        SurveyTree,
        SweepTrees,
        TreeMoved,
        Unpack,
    )

Spec = TypeVar("Spec", bound="Mapping[str, object]")
Done = TypeVar("Done", bound="Mapping[str, object]")
Item = TypeVar("Item")

WORKERS = 4  # of one session at a time; the others wait their turn
KERNEL_GRACE_S = 0.5  # after the deadline, for work that looks at the clock; then SIGALRM ends it
ANSWER_GRACE_S = 5.0  # more, for a machine under load
TIDY_S = 2.0  # for a worker to remove its half-made copy when its caller has left
MAX_ITEMS = 100_000  # of any job; more means that the worker is not what it was


class TreeJob(str, Generic[Spec, Done, Item]):
    """The name of a job; for the type checker, also what the worker reads, how it ends, and what it finds."""

    __slots__ = ()


SEARCH: TreeJob[Search, Nothing, Matched] = TreeJob("search")
FIND: TreeJob[Find, Nothing, Named] = TreeJob("find")
LIST: TreeJob[ListTree, Counted, Named] = TreeJob("list")
SURVEY: TreeJob[SurveyTree, Surveyed, Never] = TreeJob("survey")
REMOVE: TreeJob[RemoveTree, Nothing, Never] = TreeJob("remove")
COPY_FILE: TreeJob[CopyFile, Copied, Never] = TreeJob("copy_file")
COPY_TREE: TreeJob[CopyTree, Copied, Never] = TreeJob("copy_tree")
MOVE_TREE: TreeJob[MoveTree, TreeMoved, Never] = TreeJob("move_tree")
SWEEP: TreeJob[SweepTrees, Nothing, Never] = TreeJob("sweep")
JUDGE_NAMES: TreeJob[JudgeNames, NamesJudged, Never] = TreeJob("judge_names")
PACK: TreeJob[Pack, Packed, Never] = TreeJob("pack")
UNPACK: TreeJob[Unpack, Packed, Never] = TreeJob("unpack")
AFTERMATH: TreeJob[FindClosedNames, Nothing, Appeared] = TreeJob("aftermath")


@attrs.frozen(kw_only=True)
class Work(Generic[Done, Item]):
    """The outcome of a job. `stopped` is "" for all of it, else time, count or size: the limit that ended it.

    `done` holds nothing when it was stopped.
    """

    items: tuple[Item, ...]
    counts: dict[str, int]
    done: Done
    stopped: str


@attrs.define(eq=False)
class _Heard:
    items: list[Any] = attrs.field(factory=list)
    counts: dict[str, int] = attrs.field(factory=dict)
    last: FromWorker | None = None

    def take(self, message: FromWorker) -> None:
        self.counts = message.get("counts", self.counts)
        if "piece" in message:
            self.items.extend(message["piece"])
        else:
            self.last = message
        if len(self.items) > MAX_ITEMS:
            raise wire.WireBroken("more findings than anybody asked for")


class TreeWork:
    """Jobs of one session."""

    def __init__(self, exchange: Exchange, workers: int = WORKERS) -> None:
        self._exchange = exchange
        self._limiter = trio.CapacityLimiter(workers)

    async def run(
        self,
        job: TreeJob[Spec, Done, Item],
        asked: str,
        spec: Spec,
        fds: Sequence[int],
        *,
        timeout_s: float,
        changes: bool = False,
        tidy_s: float = TIDY_S,
    ) -> Work[Done, Item]:
        """Do one job inside the walls.

        Args:
            job: a name of the worker's table.
            asked: what the caller calls the path, for an error's text.
            spec: what that job reads; its descriptors are *fds*, which stay the caller's.
            timeout_s: seconds after which the work stops.
            changes: it changes files, and is given a moment to tidy up when it must stop: *tidy_s* seconds.
        Raises: FileError as the worker refuses; OutcomeUnknown when one that changes files ended without a word.
        Cancellation: the worker is ended first, within *tidy_s* and the exchange's own bound.
        """
        async with self._limiter:
            deadline = trio.current_time() + timeout_s
            worker = await WorkerProcess.start(self._exchange, asked)
            heard = _Heard()
            grace_s = tidy_s if changes else KERNEL_GRACE_S
            message = {**spec, "op": job, "timeout_s": timeout_s, "grace_s": grace_s}
            try:
                with trio.move_on_after(timeout_s + grace_s + ANSWER_GRACE_S):
                    await _converse(worker, message, fds, heard)
            except wire.WireBroken as broken:
                kind = OutcomeUnknown if changes else WriteFailed
                raise kind(asked, f"{shown(asked)}: {broken}", "EPROTO") from broken
            finally:
                with trio.move_on_after(tidy_s + 1, shield=True):
                    await worker.end_tidily(tidy_s if changes and heard.last is None else 0.0)
            return _work(asked, heard, late=trio.current_time() > deadline, changes=changes)


async def _converse(worker: WorkerProcess, message: Mapping[str, object], fds: Sequence[int], heard: _Heard) -> None:
    """Send the job and read what comes, until the last message or the worker's end."""
    with contextlib.suppress(ConnectionError):
        worker.send(message, *fds)
        while heard.last is None and (said := await worker.hear()) is not None:
            heard.take(said)


def _work(asked: str, heard: _Heard, *, late: bool, changes: bool) -> Work[Any, Any]:
    last = heard.last
    if last is None and changes:
        removed = heard.counts.get("removed", 0)
        known = f"; {removed} entries were removed before, at least" if removed else ""
        why = "the process that worked on it was ended" + (" at its deadline" if late else " (out of memory?)")
        sentence = f"{shown(asked)}: {why}{known}; whether the change was made is not known"
        raise OutcomeUnknown(asked, sentence, "ETIMEDOUT" if late else "ESRCH")
    if last is None and not late:
        raise WriteFailed(asked, f"{shown(asked)}: the process that worked on it was ended (out of memory?)", "ESRCH")
    if last is None:  # ended by the kernel at its deadline
        last = {"done": {}, "stopped": "time"}
    if is_refusal(last):
        raise _refusal(asked, last, heard.counts)
    return Work(items=tuple(heard.items), counts=heard.counts, done=last["done"], stopped=last["stopped"])


def _refusal(asked: str, last: Refusal, counts: dict[str, int]) -> FileError:
    error = from_refusal(asked, last)
    if isinstance(error, NoSpace):
        error.needed_bytes = counts.get("needed")
    if removed := counts.get("removed", 0):
        return type(error)(asked, f"{error.sentence}; {removed} entries were removed before", error.errno_name)
    return error
