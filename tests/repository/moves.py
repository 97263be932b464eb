"""Where each module goes when the house is furnished: today's file to its room, in one commit that does nothing else.

Until then the rules of `house.py` are checked against the places that files will have. The commit that moves them
empties MOVES; what is left of JOINED is done afterwards, a room a commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

MOVES: Mapping[str, str] = {}
"""By room, the modules that go there from its package's folder; `old:new` where the name changes."""

JOINED: Mapping[str, str] = {}
"""By room, the pieces that become part of another file after the move: `piece:whole`."""


def moves() -> dict[str, str]:
    """Return old path to new path of every module, unmoved ones too."""
    return {
        f"{room.partition('/')[0]}/{old}.py": f"{room}/{new}.py"
        for room, names in MOVES.items()
        for old, new in _pairs(names)
    }


def joined() -> dict[str, str]:
    """Return the path after the move to the path after the pieces are put together."""
    return {
        f"{room}/{piece}.py": f"{room}/{whole}.py" for room, names in JOINED.items() for piece, whole in _pairs(names)
    }


def _pairs(names: str) -> Iterator[tuple[str, str]]:
    for name in names.split():
        old, _, new = name.partition(":")
        yield old, new or old
