"""What is printed: one row per promise of the design's section 10, and the words for its numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import attrs

MS = 1000
MB = 1_000_000


@attrs.frozen(kw_only=True)
class Row:
    """One measured promise. `share`: measured part of the bound, at most 1 when it is held; None: a yardstick."""

    what: str
    bound: str
    measured: str
    share: float | None

    @property
    def verdict(self) -> str:
        if self.share is None:
            return ""
        return "ok" if self.share <= 1 else "MISSED"


def yardstick_row(what: str, samples_s: Sequence[float]) -> Row:
    """A number that the others are compared with."""
    return Row(what=what, bound="", measured=spread(samples_s), share=None)


def p50_row(what: str, samples_s: Sequence[float], bound_s: float, said: str) -> Row:
    """A median that must not be above its bound; *said* is where the bound comes from."""
    measured_s = statistics.median(samples_s)
    bound = f"{bound_s * MS:.2f} ms" + (f" = {said}" if said else "")
    return Row(what=what, bound=bound, measured=spread(samples_s), share=measured_s / bound_s)


def at_most_row(what: str, measured: float, bound: float, unit: str, note: str = "") -> Row:
    """A number that must not be above its bound."""
    measured = max(measured, 0.0)
    shown = f"{measured:.1f} {unit}" + (f", {note}" if note else "")
    return Row(what=what, bound=f"<= {bound:g} {unit}", measured=shown, share=measured / bound)


def at_least_row(what: str, measured: float, bound: float, unit: str, note: str = "") -> Row:
    """A number that must not be below its bound."""
    shown = f"{measured:.0f} {unit}" + (f", {note}" if note else "")
    return Row(what=what, bound=f">= {bound:g} {unit}", measured=shown, share=bound / measured if measured else 9.99)


def missing_row(what: str, why: str) -> Row:
    """A number that could not be measured here, and why."""
    return Row(what=what, bound="", measured=f"not measured: {why}", share=None)


def spread(samples_s: Sequence[float]) -> str:
    """Median and 90th percentile in milliseconds."""
    ordered = sorted(samples_s)
    p90 = ordered[min(len(ordered) - 1, len(ordered) * 9 // 10)]
    return f"{statistics.median(ordered) * MS:.2f} ms, p90 {p90 * MS:.2f}"


def render(rows: Sequence[Row]) -> str:
    """The table, aligned."""
    cells = [("what", "bound", "measured", "share", "")]
    for row in rows:
        share = "" if row.share is None else f"{row.share:.2f}"
        cells.append((row.what, row.bound, row.measured, share, row.verdict))
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)
