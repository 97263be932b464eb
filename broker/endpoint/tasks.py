"""The tasks extension of 2026-07-28: a command that outlives its `wait_seconds`, as a handle that a client polls.

A task is another name for a command of a session: an id that cannot be guessed, bound to who started it. What it has
to say it asks the gateway, by the same tools that any client has, so it is decided and audited as they are. It lasts
as long as its session remembers the command. Knows the extension's words, no SDK.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import attrs

from broker.calls import Answer, Call, Handler
from broker.contract.encode import utc_now
from broker.endpoint.tool_result import tool_result

TASKS = "io.modelcontextprotocol/tasks"
SINCE = "2026-07-28"
REMEMBERED = 1024
"""Tasks that can be asked for; the oldest is forgotten first, its command is not."""
TASK_ID_BYTES = 24
POLL_MS = 1000
TOOL = "execute_command"


class TaskNotFound(Exception):
    """There is no such task for this principal."""

    def __init__(self) -> None:
        super().__init__("Task not found: it was never created, or its session has ended long ago")


@attrs.frozen(kw_only=True)
class Task:
    """One handle. `cancelled`: the client wants no result any more."""

    id: str
    principal: str
    session_id: str
    command_id: str
    created_at: str
    cancelled: bool = False


@attrs.define(eq=False)
class Tasks:
    """Every handle that was given out."""

    _handler: Handler
    _tasks: OrderedDict[str, Task] = attrs.field(factory=OrderedDict, init=False)

    def instead_of(self, call: Call, answer: Answer) -> dict[str, Any] | None:
        """The task to answer *call* with; None if its own answer is better, as when the command is done."""
        told, asked = answer.structured, call.arguments
        left = call.tool == TOOL and told.get("running") is True
        if not left or asked.get("background") or asked.get("wait_seconds") is None:
            return None
        task = Task(
            id=secrets.token_urlsafe(TASK_ID_BYTES),
            principal=call.principal,
            session_id=str(asked["session_id"]),
            command_id=told["command_id"],
            created_at=utc_now(),
        )
        self._tasks[task.id] = task
        if len(self._tasks) > REMEMBERED:
            self._tasks.popitem(last=False)
        return {"resultType": "task", **_shape(task, "working", _progress(told))}

    async def get(self, call: Call, task_id: str, version: str) -> dict[str, Any]:
        """The task as it is now, with its result if there is one.

        Args:
            call: who asks; tool and arguments are filled in here.
            task_id: as the client gave it.
            version: of the protocol, for the result's form.

        Raises:
            TaskNotFound: there is none.
        """
        task = self._find(call.principal, task_id)
        answer = await self._ask(call, task, "wait_command", wait_seconds=0)
        if answer.structured.get("running") is True:
            shape = _shape(task, "working", _progress(answer.structured))
        elif task.cancelled:
            shape = _shape(task, "cancelled", "the client cancelled it")
        else:
            shape = _shape(task, "completed", None) | {"result": tool_result(answer, bulk=(), version=version)}
        return {"resultType": "complete", **shape}

    def update(self, principal: str, task_id: str) -> dict[str, Any]:
        """Take in answers to questions; commands ask none, and what nobody asked is to be ignored.

        Raises:
            TaskNotFound: there is none.
        """
        self._find(principal, task_id)
        return {"resultType": "complete"}

    async def cancel(self, call: Call, task_id: str) -> dict[str, Any]:
        """End the command and all it started, if it runs.

        Raises:
            TaskNotFound: there is none.
        """
        task = self._find(call.principal, task_id)
        answer = await self._ask(call, task, "signal_command", signal="END")
        if answer.structured.get("was_running") is True:
            self._tasks[task_id] = attrs.evolve(task, cancelled=True)
        return {"resultType": "complete"}

    async def _ask(self, call: Call, task: Task, tool: str, **arguments: object) -> Answer:
        named = {"session_id": task.session_id, "command_id": task.command_id, **arguments}
        return await self._handler.handle(attrs.evolve(call, tool=tool, arguments=named))

    def _find(self, principal: str, task_id: str) -> Task:
        task = self._tasks.get(task_id)
        if task is None or task.principal != principal:
            raise TaskNotFound
        return task


def _shape(task: Task, status: str, message: str | None) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "taskId": task.id,
        "status": status,
        "createdAt": task.created_at,
        "lastUpdatedAt": utc_now(),
        "ttlMs": None,
        "pollIntervalMs": POLL_MS,
    }
    return shape | ({"statusMessage": message} if message else {})


def _progress(told: Mapping[str, Any]) -> str:
    seconds = told["duration_ms"] / 1000
    return f"command {told['command_id']} has been running for {seconds:.0f} s and has said {told['next_cursor']} bytes"
