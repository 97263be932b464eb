"""Types of content, asked of the sniffer: one process for a whole broker (broker side).

Owns that process: starts it when somebody asks for the first time, gives it one question after the other, ends it
when a question is not answered in time, starts it anew for the next. Every question has a deadline that includes the
wait for its turn, so that content on which libmagic hangs costs others at most that; the same content is not asked
about again. `inside/sniffer.py` is the other side.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
from collections import OrderedDict
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from sandbox.errors import BirthFailed
from sandbox.init.spare import END_S, PACKAGE_PARENT, SOCKET_FD, Interpreter, start_interpreter
from sandbox.protocol.commands import FROM_SNIFFER, PACKET_BYTES, READY
from sandbox.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LOOK_S = 2.0
"""Seconds that a question may take in all: the start of the process (about 0.1), its turn (about 0.001 for each that
is ahead), the answer."""
ANSWER_S = 1.0
"""Seconds for the answer alone (and `sniffer.CPU_S` of a processor): less than LOOK_S, so that one that hangs does not
cost the next one its own."""
START_S = 10.0
RESTART_S = 10.0
"""Seconds after a failed start before the next attempt."""
END_BOUND_S = 3 * END_S
"""For the end of the process; see `Interpreter.end`."""
STUCK_HEADS = 1024
"""Contents without an answer that are remembered, by their digests."""
BOOTSTRAP = (
    "import sys; sys.path.append({parent!r}); from sandbox.inside.sniffer import main; "
    "main({fd}, {broker_pid}, {folder!r}, {module_name!r})"
)
UNASKED = "types were not asked for yet"


@attrs.define(eq=False)
class _Question:
    head: bytes
    found: str | None = None
    done: trio.Event = attrs.field(factory=trio.Event)


@asynccontextmanager
async def open_sniffing(
    *, say: Callable[[str], None], module_name: str = "magic", look_s: float = LOOK_S, answer_s: float = ANSWER_S
) -> AsyncIterator[Sniffing]:
    """Answer for one broker; the process, if there is one by then, ends with this block.

    Args:
        say: told once what the answers rest on, and each time that there is none in time.
        module_name: of python-magic.
        look_s: see LOOK_S.
        answer_s: see ANSWER_S.
    """
    sniffing = Sniffing(say, module_name, look_s, answer_s)
    async with trio.open_nursery() as nursery:
        await nursery.start(sniffing.serve)
        try:
            yield sniffing
        finally:
            nursery.cancel_scope.cancel(reason="nobody asks for types any more")


class Sniffing:
    """Any number of tasks may ask; one task has the process. The thread that runs it must outlive it."""

    def __init__(self, say: Callable[[str], None], module_name: str, look_s: float, answer_s: float) -> None:
        """Start nothing yet."""
        self._say = say
        self._module_name = module_name
        self._look_s = look_s
        self._answer_s = answer_s
        self._ask, self._asked = trio.open_memory_channel[_Question](0)  # who asks first is first
        self._interpreter: Interpreter | None = None
        self._report = UNASKED
        self._unable = False
        self._rest_until = -math.inf
        self._stuck: OrderedDict[bytes, None] = OrderedDict()

    @property
    def report(self) -> str:
        """The ground of the answers: libmagic, its database and its walls; or why there are none."""
        return self._report

    @property
    def pid(self) -> int | None:
        """The number of the process, while there is one."""
        return self._interpreter.pid if self._interpreter else None

    async def look(self, head: bytes) -> str | None:
        """Return the MIME type of a file that begins with *head*, or None where libmagic has none to say in time.

        Args:
            head: at most PACKET_BYTES.
        Cancellation: the process answers to nobody; the next question is not disturbed.
        """
        if not 0 < len(head) <= PACKET_BYTES:
            raise ValueError(f"a beginning has 1 to {PACKET_BYTES} bytes, not {len(head)}")
        question = _Question(head)
        with trio.move_on_after(self._look_s):
            await self._ask.send(question)
            await question.done.wait()
        return question.found

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer questions one by one, until cancelled."""
        task_status.started()
        try:
            async for question in self._asked:
                question.found = await self._answer(question.head)
                question.done.set()
        finally:
            with trio.move_on_after(END_BOUND_S, shield=True):
                await self._end()

    async def _answer(self, head: bytes) -> str | None:
        if self._stuck and _digest(head) in self._stuck:
            return None
        if self._interpreter is not None and self._interpreter.exited():  # somebody killed it
            await self._end()
        interpreter = self._interpreter or await self._start()
        if interpreter is None:
            return None
        with trio.move_on_after(self._answer_s), suppress(OSError):
            answer = await _converse(interpreter, head)
            return answer or None  # libmagic gives up on some malformed files
        await self._end()
        self._avoid(head)
        return None

    def _avoid(self, head: bytes) -> None:
        """Remember not to ask about this again."""
        self._say(f"libmagic crashed on a file or had no answer within {self._answer_s:g} s: its name tells its type")
        self._stuck[_digest(head)] = None
        if len(self._stuck) > STUCK_HEADS:
            self._stuck.popitem(last=False)

    async def _start(self) -> Interpreter | None:
        """Have a process that is ready; None: there is none now, or there never will be."""
        if self._unable or trio.current_time() < self._rest_until:
            return None
        try:
            folder = await run_in_thread(_folder_of, self._module_name)
            self._interpreter = start_interpreter(self._code(folder))
            with trio.fail_after(START_S):
                report = await _hear(self._interpreter, "starting")
        except (ImportError, ValueError) as fault:
            self._unable = True
            self._tell(f"types are guessed from names: {fault}")
            return None
        except (BirthFailed, OSError, trio.TooSlowError) as fault:
            await self._end()
            self._rest_until = trio.current_time() + RESTART_S
            self._tell(f"types are guessed from names for now: {str(fault) or 'the process did not start in time'}")
            return None
        if not report.startswith(READY):
            await self._end()
            self._unable = True
            self._tell(f"types are guessed from names: {_text(report[1:])}")
            return None
        self._tell(_text(report[1:]))
        return self._interpreter

    def _code(self, folder: str) -> str:
        return BOOTSTRAP.format(
            parent=PACKAGE_PARENT,
            fd=SOCKET_FD,
            broker_pid=os.getpid(),
            folder=folder,
            module_name=self._module_name,
        )

    def _tell(self, report: str) -> None:
        if report != self._report:
            self._report = report
            self._say(report)

    async def _end(self) -> None:
        interpreter, self._interpreter = self._interpreter, None
        if interpreter is not None:
            interpreter.kill()
            await interpreter.end()


def _folder_of(module_name: str) -> str:
    """Find a module or package without executing it; return its folder. Raises ModuleNotFoundError."""
    spec = importlib.util.find_spec(module_name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {module_name!r}")
    origin = Path(spec.origin)
    return str(origin.parent.parent if spec.submodule_search_locations else origin.parent)


async def _converse(interpreter: Interpreter, head: bytes) -> str:
    """Ask; return the answer. Raises ConnectionError: the process has ended."""
    interpreter.sock.send(head)  # into an empty buffer: it never blocks
    return _text((await _hear(interpreter, "asked"))[1:])


async def _hear(interpreter: Interpreter, state: str) -> bytes:
    """Wait for a packet that is legal in *state*. Raises ConnectionError: the process has ended, or says another."""
    while True:
        await trio.lowlevel.wait_readable(interpreter.sock)
        with suppress(BlockingIOError):
            packet = interpreter.sock.recv(PACKET_BYTES)
            if packet.startswith(FROM_SNIFFER[state]):
                return packet
            raise ConnectionResetError("the process ended without a word")


def _text(told: bytes) -> str:
    """Turn what the process said into one line of printable text: it parses what sessions write."""
    return "".join(letter if letter.isprintable() else "?" for letter in told.decode(errors="replace"))


def _digest(head: bytes) -> bytes:
    return hashlib.blake2b(head, digest_size=16).digest()
