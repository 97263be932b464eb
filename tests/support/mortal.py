"""A session's files and transfers in a process that may be killed at any step: the real store over a real opener.

Started as a program it is a nursery of such processes: each request on its socket forks one, which costs
milliseconds instead of an interpreter's start. `Mortal` is the test's side of one of them.
"""

from __future__ import annotations

import base64
import functools
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import attrs
import trio

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from broker.session.resources import PartDestination, sweep_leftovers  # noqa: E402
from sandbox import wire  # noqa: E402
from sandbox.files.errors import FileError  # noqa: E402
from sandbox.files.files import Files, open_files  # noqa: E402
from tests.support.door import start_opener  # noqa: E402  started as a program, it finds its own tree first
from transfers.refusals import TransferError  # noqa: E402
from transfers.settings import TransferSettings  # noqa: E402
from transfers.store import Transfers, open_transfers  # noqa: E402

END_BOUND_S = 30
SETTINGS = TransferSettings(
    max_open=3,
    max_chunk_bytes=1 << 20,
    max_upload_bytes=1 << 20,
    max_session_bytes=1 << 40,
    reserve_bytes=0,
    upload_idle_s=600,
    download_idle_s=600,
)


# --- the side that dies


@attrs.define(eq=False)
class AtStep(trio.abc.Instrument):
    """Does something when *task* is about to be stepped for the nth time."""

    task: trio.lowlevel.Task
    step: int
    what: Any
    seen: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.seen += 1
            if self.seen == self.step:
                self.what()


@attrs.frozen
class InPlace:
    """What no upload should do: write to the destination itself."""

    fd: int

    @classmethod
    def open(cls, path: str) -> InPlace:
        return cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def in_turn(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def commit(self) -> None:
        await trio.lowlevel.checkpoint()

    async def discard(self) -> None:
        await trio.lowlevel.checkpoint()


@attrs.frozen
class Session:
    """What one request may use."""

    files: Files
    transfers: Transfers
    opener: subprocess.Popen[bytes]
    in_place: bool

    async def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what is asked, struck by the fault that is asked for at the step that is asked for."""
        with trio.CancelScope() as scope:
            strikes = {
                "cancel": scope.cancel,
                "kill the opener": self.opener.kill,
                "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
                "": lambda: None,
            }
            instrument = AtStep(trio.lowlevel.current_task(), request["step"], strikes[request["fault"]])
            trio.lowlevel.add_instrument(instrument)
            try:
                return await getattr(self, request["op"])(request)
            except (TransferError, FileError) as error:
                return {"error": type(error).__name__, "text": str(error)}
            finally:
                trio.lowlevel.remove_instrument(instrument)
        for _ in range(2):  # what the cancelled work left to discard is asked for with the first answer
            (await self.files.resolve("/")).close()
        return {"error": "cancelled"}

    async def upload(self, request: Mapping[str, Any]) -> dict[str, Any]:
        chunk = {
            "offset": request["offset"],
            "data": base64.b64decode(request["data"]),
            "is_last": request["is_last"],
        }
        path, uploads = request["path"], self.transfers.uploads
        if request["transfer_id"]:
            progress = await uploads.resume(request["transfer_id"], path, **chunk)
        else:
            with await self.files.place(path) as place:
                destination = (
                    InPlace.open(path) if self.in_place else PartDestination(await self.files.part(place), nullcontext)
                )
            progress = await uploads.begin(path, destination, **chunk)
        return attrs.asdict(progress)

    async def download(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with await self.files.resolve(request["path"], read=True) as found:

            async def open_file() -> int:
                await trio.lowlevel.checkpoint()
                return os.dup(found.file())

            chunk = await self.transfers.downloads.read(
                found.path, offset=request["offset"], chunk_bytes=request["length"], open_file=open_file
            )
        return {**attrs.asdict(chunk), "data": base64.b64encode(chunk.data).decode()}

    async def overwrite(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with await self.files.place(request["path"]) as place:
            await self.files.overwrite(place, base64.b64decode(request["data"]))
        return {}


async def live(sock: socket.socket, folder: str, *, tmpfile: bool, in_place: bool) -> None:
    """Answer until the test hangs up; begin as a session does, with a sweep of its directory."""
    ours, opener = start_opener(tmpfile=tmpfile)
    try:
        async with (
            open_files(ours, answer_s=20) as files,
            open_transfers(SETTINGS, limiter=trio.CapacityLimiter(2), on_discard=lambda _: None) as transfers,
        ):
            with await files.resolve(folder, read=True) as found:
                await sweep_leftovers(files, found)
            wire.send(sock, {"opener": opener.pid})
            session = Session(files, transfers, opener, in_place)
            while True:
                await trio.lowlevel.wait_readable(sock)
                if (received := wire.receive(sock)) is None:
                    break
                wire.send(sock, await session.answer(received[0]))
    finally:
        opener.wait(END_BOUND_S)


def nursery(sock: socket.socket) -> None:
    """Fork a process for each request, and tell its number."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while (received := wire.receive(sock)) is not None:
        request, (theirs,) = received
        if pid := os.fork():
            os.close(theirs)
            wire.send(sock, {"pid": pid})
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sock.close()
        with socket.socket(fileno=theirs) as own:
            trio.run(functools.partial(live, own, **request))
        os._exit(0)


# --- the test's side


@attrs.define(eq=False)
class Mortal:
    """One living process with its opener."""

    _sock: socket.socket
    _pidfds: list[int]

    def ask(self, op: str, *, fault: str = "", step: int = 0, **fields: object) -> dict[str, Any] | None:
        """Its answer; None when it died of the question."""
        try:
            wire.send(self._sock, {"op": op, "fault": fault, "step": step, **fields})
            received = wire.receive(self._sock)
        except (BrokenPipeError, ConnectionResetError):
            return None
        return received[0] if received else None

    def kill(self) -> None:
        """End it as the kernel does when memory is short."""
        signal.pidfd_send_signal(self._pidfds[0], signal.SIGKILL)

    def leave(self) -> None:
        """Hang up, and wait until it and its opener are gone."""
        self._sock.close()
        for pidfd in self._pidfds:
            ended, _, _ = select.select([pidfd], [], [], END_BOUND_S)
            os.close(pidfd)
            assert ended, "it did not end"


@attrs.define(eq=False)
class Nursery:
    """Where they come from."""

    _sock: socket.socket

    def bear(self, folder: Path, *, tmpfile: bool, in_place: bool) -> Mortal:
        """A new one, which has swept *folder*."""
        ours, theirs = wire.pair()
        ours.settimeout(END_BOUND_S)
        with theirs:
            wire.send(self._sock, {"folder": str(folder), "tmpfile": tmpfile, "in_place": in_place}, (theirs.fileno(),))
        mortal = Mortal(ours, [os.pidfd_open(_told(self._sock)["pid"])])
        mortal._pidfds.append(os.pidfd_open(_told(ours)["opener"]))
        return mortal


def _told(sock: socket.socket) -> dict[str, Any]:
    received = wire.receive(sock)
    assert received, "it died at birth"
    return received[0]


@contextmanager
def open_nursery() -> Iterator[Nursery]:
    """Start the program above; it ends with the context."""
    ours, theirs = wire.pair()
    ours.settimeout(END_BOUND_S)
    with ours:
        with theirs:
            process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        try:
            yield Nursery(ours)
        finally:
            ours.close()
            process.wait(END_BOUND_S)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt), socket.socket(fileno=int(sys.argv[1])) as started_with:
        nursery(started_with)
