"""Why a request on a transfer's URL ended before it was done, though nothing failed. Values only."""

from __future__ import annotations

import attrs

from broker.contract.errors import ErrorCode


@attrs.frozen(kw_only=True)
class Cut:
    """*why*, for `stat_transfer` and the audit, with the code that the audit has for it."""

    why: str
    code: ErrorCode


CLIENT_LEFT = Cut(why="the client left before the end", code=ErrorCode.CALL_CANCELLED)


def stalled(idle_s: float) -> Cut:
    """The client neither sent nor took anything for so many seconds."""
    return Cut(why=f"nothing moved for {idle_s:g} s (transfers.idle_s)", code=ErrorCode.TRANSFER_STALLED)


def range_behind_the_end(size_bytes: int) -> Cut:
    """It asked for bytes that there are not."""
    return Cut(why=f"the range begins behind the end, at {size_bytes} bytes", code=ErrorCode.INVALID_ARGUMENTS)
