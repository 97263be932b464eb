"""The life of a worker: take one job, do it, say how it ended (child side, stdlib only)."""

from __future__ import annotations

import errno
from types import MappingProxyType

from sandbox import wire
from sandbox.inside.worker import aftermath, links
from sandbox.inside.worker import change as treechange
from sandbox.inside.worker import hash as filehash
from sandbox.inside.worker import look as treelook
from sandbox.inside.worker import move as moving
from sandbox.inside.worker import pack as archive_pack
from sandbox.inside.worker import search as treesearch
from sandbox.inside.worker import unpack as archive_unpack
from sandbox.inside.worker.job import Job, Stop, limit_worker
from sandbox.kernel.files import Refused, ReserveReached

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping
    from typing import Any

    from sandbox.inside.blocked_paths import Search

    Operation = Callable[[Job, dict[str, Any], list[int]], dict[str, Any]]

OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "search": treesearch.search,
        "find": treelook.find,
        "list": treelook.listing,
        "survey": treelook.survey,
        "remove": treechange.remove,
        "copy_file": treechange.copy_file,
        "copy_tree": treechange.copy_tree,
        "move_tree": moving.move_tree,
        "sweep": treelook.sweep,
        "judge_names": links.judge,
        "pack": archive_pack.pack,
        "unpack": archive_unpack.unpack,
        "aftermath": aftermath.look,
        "hash": filehash.digest,
    }
)


def serve(sock: socket.socket, search: Search | None = None) -> None:
    """Do the one job that *sock* brings; *search* is that of the session's birth."""
    message = wire.receive(sock)
    if message is None:
        return
    spec, fds = message
    limit_worker(spec["timeout_s"], spec["grace_s"])
    job = Job(sock, spec, search)
    job.finish(_outcome(job, spec, fds))


def _outcome(job: Job, spec: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    try:
        return {"done": OPERATIONS[spec["op"]](job, spec, fds), "stopped": ""}
    except Stop as stop:
        return {"done": {}, "stopped": stop.why}
    except Refused as refusal:
        return {"refused": refusal.kind, "errno": refusal.number, "why": refusal.why}
    except ReserveReached as full:
        return {"refused": "no_space", "errno": errno.ENOSPC, "why": full.strerror}
    except OSError as fault:
        return {"refused": "", "errno": fault.errno or errno.EIO, "why": ""}
    except (MemoryError, RecursionError, OverflowError):
        return {"refused": "too_large", "errno": errno.ENOMEM, "why": "it needs more memory than a search may take"}
