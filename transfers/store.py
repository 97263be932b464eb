"""One session's transfers: opened with the session's resources, closed when they close.

async with open_transfers(settings, limiter=..., on_discard=...) as transfers:
    progress = await transfers.uploads.begin(path, destination, offset=0, data=data, is_last=False)
    chunk = await transfers.downloads.read(path, offset=0, chunk_bytes=65536, open_file=...)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import trio

from transfers.downloads import Downloads, Hashes
from transfers.settings import TransferSettings
from transfers.upload import Discarded, Quota
from transfers.uploads import Uploads


@attrs.frozen(kw_only=True)
class Transfers:
    """The two tables of one session, and the count of what it writes, which other writers share."""

    uploads: Uploads
    downloads: Downloads
    quota: Quota

    async def sweep(self) -> None:
        """Discard what has expired. The session calls it on a timer."""
        self.downloads.sweep()
        await self.uploads.sweep()


@asynccontextmanager
async def open_transfers(
    settings: TransferSettings,
    *,
    limiter: trio.CapacityLimiter,
    on_discard: Callable[[Discarded], None],
    hashes: Hashes | None = None,
    clock: Callable[[], float] = trio.current_time,
) -> AsyncIterator[Transfers]:
    """Own the transfers of one session; at the end every open upload is discarded and no descriptor is left.

    *limiter* counts the threads that disk work may take; sessions may share one. *on_discard* hears of each upload
    that was given up; it must neither raise nor block. *hashes* hashes whole files for downloads; without it their
    threads do.

    Cancellation: closing is shielded and takes at most `upload.DISCARD_BOUND_S` seconds.
    """
    quota = Quota(limit_bytes=settings.max_session_bytes)
    uploads = Uploads(settings=settings, quota=quota, limiter=limiter, on_discard=on_discard, clock=clock)
    downloads = Downloads(settings=settings, limiter=limiter, clock=clock, hashes=hashes)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(uploads.close_all)
        stack.callback(downloads.close_all)
        yield Transfers(uploads=uploads, downloads=downloads, quota=quota)
