"""Which calls stop or free something. They need no log: their records are owed where it cannot be written.

Else a log that cannot be written would keep a runaway alive, and a disk that a session filled could not be freed.
Everything else is refused then. What is no call (a client that leaves, a task that is cancelled, the end of a session,
of an upload, of the broker) begins nothing and has only end records, which are owed anyway.
"""

from __future__ import annotations

import signal

from broker.contract.commands import SignalCommand
from broker.contract.sessions import KillProcess, KillSession
from broker.contract.table import Request
from broker.contract.transfers import CancelTransfer
from broker.contract.trees import DeletePath

ENDING = frozenset({"END", "SIGTERM", "SIGKILL", "SIGINT", "SIGQUIT", "SIGHUP", "SIGSTOP"})
"""Signals by which something stops. Any other may make a program do something, which needs its record."""
_ENDING_NUMBERS = frozenset({signal.Signals[name].value for name in ENDING if name != "END"})


def frees(request: Request) -> bool:
    """Whether *request* does nothing but stop or free something."""
    match request:
        case KillSession() | DeletePath() | CancelTransfer():
            return True
        case SignalCommand():
            return request.signal in ENDING
        case KillProcess():
            return request.signal in _ENDING_NUMBERS
    return False
