"""The share of one answer in the memory of all answers, from before it is made until it is sent.

Who makes a large answer reserves room for it first, or the answers that clients leave unread would be more than the
machine has. What turns out large without having said so is counted when it is sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import attrs
import trio

from broker.memory.budget import SMALL_BYTES, ByteBudget, Hold

ANSWER_ROOM_KEY = "broker.answer_room"
"""Where the room of a request is found in its ASGI scope."""
WAIT_S = 10.0
"""Seconds a call waits for room: longer than those that keep others waiting have."""

Reserve: TypeAlias = Callable[[int], Awaitable[None]]
"""Waits for room for an answer of so many bytes."""


class NoRoomForAnswer(Exception):
    """Too many large answers wait for their clients."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"an answer of about {size_bytes} bytes found no room in {WAIT_S:g} s: large answers that "
            f"are made or not yet read may have {limit_bytes} bytes together (server.max_answers_bytes)"
        )
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        self.retry_after_s = 5


@attrs.define(eq=False)
class AnswerRoom:
    """Of one request. `_abort` breaks its connection."""

    _budget: ByteBudget
    _abort: Callable[[], None]
    _hold: Hold | None = attrs.field(default=None, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    async def reserve(self, size: int) -> None:
        """Wait for room for *size* bytes; what is small needs none. Raises: NoRoomForAnswer."""
        if size <= SMALL_BYTES or self._hold is not None:
            await trio.lowlevel.checkpoint()
            return
        hold = await self._budget.reserve(size, wait_s=WAIT_S)
        if hold is None:
            raise NoRoomForAnswer(size, self._budget.limit_bytes)
        self._hold = hold
        if self._closed:  # the client has left; in the handshake era its call goes on
            hold.release()

    def sends(self, size: int) -> None:
        """Note that *size* bytes are on their way: from now on it depends on the client how long they are held."""
        if size <= SMALL_BYTES or self._closed:
            return
        if self._hold is None:
            self._hold = self._budget.take(size)
        else:
            self._hold.resize(size)
        self._hold.keeps_pace(self._abort)

    def close(self) -> None:
        """Hold nothing any more."""
        self._closed = True
        if self._hold is not None:
            self._hold.release()
