"""The resources of one session: its init process, its files, its transfers, its commands and what they said.

`open_session_resources` is what a session opens first and closes last. It knows sandbox and transfers, no tool
and no rule.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, closing, contextmanager, suppress
from typing import TYPE_CHECKING

import attrs
import trio

from broker.session.aftermath import LAST_LOOK_S, STOP_BOUND_S, Aftermath, Listeners
from broker.session.commands import SessionCommands
from broker.session.urls import SessionTransfers, TransferRegistry
from config.settings import OutputSettings, SessionSettings
from sandbox.files.disk import Disk
from sandbox.files.errors import FileError, OutcomeUnknown
from sandbox.files.files import Files, Part, Resolved, open_files
from sandbox.files.hashes import FileHash, Hashes
from sandbox.files.trees import SWEEP
from sandbox.init.init import Init
from sandbox.init.launcher import Launcher
from sandbox.plan.plan import Walls
from transfers.settings import TransferSettings
from transfers.store import Transfers, open_transfers
from transfers.upload import Discarded, ReplacementUnknown

if TYPE_CHECKING:
    from sandbox.protocol.files import SweepTrees

SWEPT_NAMES = 10_000
SWEEP_S = 5.0
DISK_THREADS = 4
"""Of one session's transfers: its slow disk must not take the threads of the others."""


@attrs.define(eq=False, kw_only=True)
class SessionResources:
    """A session's own; borrowed by the tools inside `Session.call`. `working_dir` becomes the real path when known."""

    init: Init
    files: Files
    transfers: Transfers
    hashes: HashesInside
    raw: SessionTransfers
    commands: SessionCommands
    aftermath: Aftermath
    working_dir: str
    environment: Mapping[str, str]
    sweep_s: float


@attrs.frozen(kw_only=True)
class ResourceSettings:
    """The limits of a session. `output_dir` is where the output of its commands goes."""

    transfers: TransferSettings
    sessions: SessionSettings
    output: OutputSettings
    output_dir: str


@asynccontextmanager
async def open_session_resources(
    launcher: Launcher,
    walls: Walls,
    settings: ResourceSettings,
    *,
    environment: Mapping[str, str],
    on_discard: Callable[[Discarded], None],
    listeners: Listeners,
    registry: TransferRegistry,
) -> AsyncIterator[SessionResources]:
    """Bring the session's init to life and open its files and transfers.

    Raises:
        BirthFailed: the init could not be born; nothing is left of it.
    Ownership: closed names are looked for a last time, then URLs close, then transfers (an unfinished upload is
        discarded), then files, then everything below the init is ended and gone, and with it every change that was
        still to come; then the commands' output.
    """
    limiter = trio.CapacityLimiter(DISK_THREADS)
    aftermath = Aftermath(listeners)
    commands = SessionCommands(
        settings.sessions.max_concurrent_commands, settings.output, settings.output_dir, aftermath.command_ended
    )
    with closing(commands), ExitStack() as when_gone:
        async with (
            launcher.open_init(walls) as init,
            open_files(init.files_socket, disk=Disk(reserve_bytes=settings.transfers.reserve_bytes)) as files,
            open_transfers(
                settings.transfers,
                limiter=limiter,
                on_discard=on_discard,
                hashes=(hashes := HashesInside(files.hashes)),
            ) as transfers,
        ):
            when_gone.callback(files.settle)
            with closing(SessionTransfers(registry, limiter)) as raw:
                own = SessionResources(
                    init=init,
                    files=files,
                    transfers=transfers,
                    hashes=hashes,
                    raw=raw,
                    commands=commands,
                    aftermath=aftermath,
                    working_dir=walls.working_dir,
                    environment=environment,
                    sweep_s=settings.sessions.cleanup_interval,
                )
                try:
                    yield own
                finally:
                    with trio.move_on_after(LAST_LOOK_S + STOP_BOUND_S, shield=True):
                        await aftermath.look_at_the_end(files.trees, own.working_dir)


async def tend(own: SessionResources) -> None:
    """Look for abandoned transfers now and then, and for what commands leave; return when the init has ended."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own.init.rest)
        nursery.start_soon(_sweep, own)
        nursery.start_soon(own.aftermath.run, own.files.trees, lambda: own.working_dir)
        await own.init.wait_exited()
        nursery.cancel_scope.cancel(reason="the init ended")


async def _sweep(own: SessionResources) -> None:
    while True:
        await trio.sleep(own.sweep_s)
        await own.raw.sweep()
        await own.transfers.sweep()


async def sweep_leftovers(files: Files, directory: Resolved) -> None:
    """Remove what a crashed broker left where a session begins; see docs/files.md."""
    with suppress(FileError):  # whatever stands against it, the session can begin
        if await files.names.sweep(directory):
            fds = (directory.directory(),)
            spec: SweepTrees = {"limit": SWEPT_NAMES}
            await files.trees.run(SWEEP, directory.asked, spec, fds, timeout_s=SWEEP_S)


class PartDestination:
    """An upload's private part file, as the transfers see it: a descriptor of their own, commit, discard.

    What the sandbox says in its vocabulary becomes the OSError that transfers understand.
    """

    def __init__(self, part: Part, in_turn: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        """Take the part over; *in_turn* is for whoever replaces what is at its place."""
        self._part = part
        self.in_turn = in_turn
        self.fd = os.dup(part.fd)  # theirs to close; the part closes its own

    async def commit(self) -> None:
        """Replace the destination by the part, atomically and durably. Raises: OSError, ReplacementUnknown."""
        with _as_os_error():
            await self._part.commit()

    async def discard(self) -> None:
        """Throw the part away. Raises: OSError."""
        with _as_os_error():
            await self._part.discard()


@attrs.frozen
class HashesInside:
    """The place inside the walls where a session's files are hashed, as the transfers see it."""

    _hashes: Hashes

    def of(self, path: str) -> HashingInside:
        """Begin the hash of one file."""
        return HashingInside(self._hashes.of(path))


@attrs.frozen
class HashingInside:
    """The hash of one file; what the sandbox says in its vocabulary becomes an OSError."""

    _hashing: FileHash

    async def upto(self, fd: int, length: int) -> tuple[int, str]:
        """As `FileHash.upto`. Raises: OSError."""
        with _as_os_error():
            return await self._hashing.upto(fd, length)

    def close(self) -> None:
        """End it."""
        self._hashing.close()


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except FileError as fault:
        number = getattr(errno, fault.errno_name, errno.EIO)
        kind = ReplacementUnknown if isinstance(fault, OutcomeUnknown) else OSError
        raise kind(number, fault.sentence) from fault
