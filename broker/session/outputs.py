"""The output of a command as a resource: `command://{session}/{id}/{stdout|stderr|both}`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import attrs

from broker.calls import OutputResource
from broker.session.resources import SessionResources
from broker.session.session import Session
from sandbox.commands.transcript import View

TEMPLATE = "command://{session_id}/{command_id}/{stream}"
SHOWN_CHARACTERS = 100
_URI = re.compile(r"command://(?P<session>[A-Za-z0-9._-]{1,64})/(?P<command>c[0-9]{1,18})/(?P<view>stdout|stderr|both)")


@attrs.frozen
class OutputName:
    """The output that a URI names."""

    session_id: str
    command_id: str
    view: View

    @property
    def arguments(self) -> dict[str, object]:
        """The same, as the tools' arguments."""
        return {"session_id": self.session_id, "command_id": self.command_id, "stream": self.view}


def parse_uri(uri: str) -> OutputName:
    """Return what *uri* names; raises LookupError if it names no output."""
    found = _URI.fullmatch(uri)
    if found is None:
        raise LookupError(f"a resource here is {TEMPLATE}, with stream stdout, stderr or both")
    return OutputName(found["session"], found["command"], found["view"])  # type: ignore[arg-type]  # the pattern names the views


def outputs_of(session: Session[SessionResources], shown: Callable[[Sequence[str]], str]) -> Iterator[OutputResource]:
    """Yield the outputs of every command that the session remembers; *shown* is a command line without its secrets."""
    for command in session.own.commands.all():
        views: tuple[View, ...] = ("stdout",) if command.has_terminal else ("stdout", "stderr", "both")
        line = shown(command.argv)[:SHOWN_CHARACTERS]
        for view in views:
            yield OutputResource(
                uri=f"command://{session.id}/{command.id}/{view}",
                name=f"{command.id}/{view}",
                description=f"{view} of: {line}",
                size_bytes=command.spill.total(view),
            )
