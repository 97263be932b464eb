"""The host's ends of the guest's ports: output passed on as it comes, up to its mark, and the control port's lines."""

from __future__ import annotations

import os

import attrs
import trio

CHUNK_BYTES = 1 << 16


@attrs.define(eq=False)
class Marked:
    """Lets a stream's bytes pass until its mark; holds back only what may be the beginning of the mark."""

    mark: bytes
    ended: bool = False
    _held: bytes = b""

    def feed(self, data: bytes) -> bytes:
        """Return what of *data* may be passed on now; after the mark that is nothing, ever."""
        if self.ended:
            return b""
        seen, found, _ = (self._held + data).partition(self.mark)
        if found:
            self.ended, self._held = True, b""
            return seen
        keep = _beginning(seen, self.mark)
        self._held = seen[len(seen) - keep :]
        return seen[: len(seen) - keep]


def _beginning(data: bytes, mark: bytes) -> int:
    """How many of the last bytes of *data* are a beginning of *mark*."""
    longest = min(len(data), len(mark) - 1)
    return next((count for count in range(longest, 0, -1) if data.endswith(mark[:count])), 0)


async def pass_on(port: trio.abc.ReceiveStream, mark: bytes, descriptor: int, done: trio.Event) -> None:
    """Copy the port to *descriptor* until its mark or its end, then set *done*."""
    passing = Marked(mark=mark)
    try:
        while not passing.ended and (data := await port.receive_some(CHUNK_BYTES)):
            # In a thread that may be left behind: a reader of ours that stops reading must not stop our deadlines.
            await trio.to_thread.run_sync(_write_all, descriptor, passing.feed(bytes(data)), abandon_on_cancel=True)
    except trio.BrokenResourceError:
        pass  # QEMU died; the control port says so too, and says it better
    finally:
        done.set()


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@attrs.define(eq=False)
class Lines:
    """The control port, line by line."""

    _port: trio.abc.ReceiveStream
    _rest: bytes = b""

    async def receive(self) -> str | None:
        """Return the next line, or None once the guest is gone."""
        while b"\n" not in self._rest:
            try:
                data = await self._port.receive_some(CHUNK_BYTES)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="replace")
