"""Reports on a command while somebody waits for it: its newest lines, at a bounded rate, and a sign of life."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from broker.calls import Report
from broker.session.commands import SessionCommand
from broker.session.resources import SessionResources
from broker.session.session import Session
from broker.tools.ansi import strip_ansi

INTERVAL_S = 1.0
"""Between two reports: a client shows them to a person, or gives them to a model."""
HEARTBEAT_S = 15.0
"""At most, between two signs of life: clients and proxies give a silent call up."""
SHOWN_LINES = 5
SHOWN_BYTES = 2000


@asynccontextmanager
async def narrated(
    session: Session[SessionResources], command: SessionCommand, report: Report | None
) -> AsyncIterator[None]:
    """Tell *report* what *command* says while this block lasts; without one, or when the session ends, do nothing.

    The teller is a child of the session, not of a nursery here: this block's errors are its caller's as they are.
    """
    if report is None or session.closed:
        yield
        return
    telling = session.start(tell, command, report)
    try:
        yield
    finally:
        telling.scope.cancel(reason="nobody waits any more")
        with trio.move_on_after(INTERVAL_S, shield=True):  # the answer is the last word, so let the teller finish
            await telling.done.wait()


async def tell(command: SessionCommand, report: Report) -> None:
    """Report until the command is done."""
    heard = 0
    while True:
        with trio.move_on_after(HEARTBEAT_S - INTERVAL_S):
            await command.spill.wait_said(heard)
        if not command.running:
            return
        said = command.spill.said
        await report(command.duration_ms / 1000, newest_lines(command) if said > heard else still_running(command))
        heard = said
        await trio.sleep(INTERVAL_S)


def newest_lines(command: SessionCommand) -> str:
    """Return the last few lines of the stream that spoke last."""
    text = strip_ansi(command.spill.newest.tail(SHOWN_BYTES).decode("utf-8", "replace"))
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-SHOWN_LINES:]) or still_running(command)


def still_running(command: SessionCommand) -> str:
    """Return a sign of life."""
    return (
        f"{command.id} has been running for {command.duration_ms / 1000:.0f} s and has said {command.spill.said} bytes"
    )
