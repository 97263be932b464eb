"""Which calls stop or free something. They need no log: their records are owed where it cannot be written.

Else a log that cannot be written would keep a runaway alive, and a disk that a session filled could not be freed.
Everything else is refused then. What is no call (a client that leaves, a task that is cancelled, the end of a session,
of an upload, of the broker) begins nothing and has only end records, which are owed anyway.
"""

from __future__ import annotations

import signal

from broker.contract.command_requests import SignalCommand
from broker.contract.requests import DeletePath, KillProcess, KillSession, Request
from broker.contract.transfer_requests import CancelTransfer

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
