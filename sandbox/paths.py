"""Tell whether one path is beneath another, by its name. Pure, stdlib only, for both sides."""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Iterable


def is_beneath_any(path: str, roots: Iterable[str]) -> bool:
    """Tell whether *path* is one of *roots*, or lies beneath one by its name."""
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots)
