"""The life of a worker: take one job, do it, say how it ended (child side, stdlib only)."""

from __future__ import annotations

import errno
import os
from types import MappingProxyType

from sandbox import wire
from sandbox.inside.worker import aftermath, change, look, pack, search, unpack, walk
from sandbox.inside.worker.hash import digest
from sandbox.inside.worker.job import Job, Stop, limit_worker
from sandbox.kernel.files import Refused, ReserveReached
from sandbox.protocol.files import TO_WORKER

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping
    from typing import Any

    from sandbox.inside.blocked_paths import Search
    from sandbox.protocol.files import TO_WORKER, AnyJob, Finished, Outcome, Refusal

    Operation = Callable[[Job, Any, list[int]], Outcome]

TABLE: Mapping[str, Operation] = MappingProxyType(
    {
        "search": search.search,
        "find": look.find,
        "list": look.listing,
        "survey": look.survey,
        "remove": change.remove,
        "copy_file": change.copy_file,
        "copy_tree": change.copy_tree,
        "move_tree": change.move_tree,
        "sweep": look.sweep,
        "judge_names": walk.judge_names,
        "pack": pack.pack,
        "unpack": unpack.unpack,
        "aftermath": aftermath.look,
        "hash": digest,
    }
)
"""By name, what does a job of `TO_WORKER`; any other is refused."""


def serve(sock: socket.socket, search: Search | None = None) -> None:
    """Do the one job that *sock* brings; *search* is that of the session's birth."""
    received = wire.receive(sock)
    if received is None:
        return
    spec: Any
    spec, fds = received
    limit_worker(spec["timeout_s"], spec["grace_s"])
    job = Job(sock, spec, search)
    job.finish(_outcome(job, spec, fds))


def _outcome(job: Job, spec: AnyJob, fds: list[int]) -> Finished | Refusal:
    try:
        return {"done": _accepted(spec, fds)(job, spec, fds), "stopped": ""}
    except Stop as stop:
        return {"done": {}, "stopped": stop.why}
    except (Refused, OSError) as error:
        return refusal_of(error)
    except (MemoryError, RecursionError, OverflowError):
        return refusal_of(Refused("too_large", errno.ENOMEM, "it needs more memory than a search may take"))


def _accepted(spec: AnyJob, fds: list[int]) -> Operation:
    if len(fds) not in TO_WORKER["new"].get(spec["op"], ()):
        raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
    return TABLE[spec["op"]]


def refusal_of(error: Refused | OSError) -> Refusal:
    """Return what the broker is told of an error."""
    if isinstance(error, Refused):
        return {"refused": error.kind, "errno": error.number, "why": error.why}
    number = error.errno or errno.EIO
    if isinstance(error, ReserveReached):
        return {"refused": "no_space", "errno": number, "why": error.strerror or ""}
    return {"refused": "", "errno": number, "why": ""}
