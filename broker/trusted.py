"""The trusted places: what the broker executes, obeys and keeps outside the walls, so that no session may change it.

Found once, at start, by looking at this machine: blocking. Who else owns them is in `ownership.py`; that no session
gets at them is the work of the walls.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import attrs

from broker.program import program_places
from config.load import Config
from config.places import searched_places, state_dir
from sandbox.claims import LOCK_FILE
from sandbox.plan import SessionUser
from sandbox.users import FALLBACK_HOME

LINKS_MAX = 40  # as many as the kernel follows


@attrs.frozen(kw_only=True)
class TrustedPlaces:
    """Absolute paths without `.` and `..`; each stands for itself and all beneath it. Some do not exist (yet).

    Each place is there by every name that leads to it: as it was spelled, and where it really is. The same place may
    be beneath one that is sealed and be hidden.
    """

    sealed: tuple[str, ...]
    """Code, interpreter, libraries: a session may read them where the policy allows it, but never change them."""
    hidden: tuple[str, ...]
    """Configuration, state, logs: a session neither reads nor changes them."""
    links: tuple[str, ...]
    """Symbolic links on the way to a place, each alone and not what it leads to: whoever replaces one redirects the
    next start."""
    holes: tuple[str, ...]
    """Inside the others, what belongs to sessions: their user's home, where the broker keeps it."""
    reasons: Mapping[str, str]
    """What a place is to the broker, by its path."""

    def closed(self) -> Iterator[str]:
        """The hidden places as paths that hold no hole, for those who cannot say "all but".

        Beside a hole that is what exists now; nobody but the broker makes anything there.
        """
        for place in self.hidden:
            yield from _around(place, self.holes)


def find_trusted(config: Config, user: SessionUser) -> TrustedPlaces:
    """Look for all of them.

    Args:
        config: of the operator.
        user: of the sessions.
    """
    sealed, hidden = dict(program_places()), dict(_kept_places(config))
    links: dict[str, str] = {}
    sealed, hidden = _by_all_names(sealed, links), _by_all_names(hidden, links)
    sealed_top, hidden_top = _outermost(sealed), _outermost(hidden)
    everything = (*sealed_top, *hidden_top)
    homes = {os.path.realpath(home) for home in (config.base_dir / "data" / "home", FALLBACK_HOME)}
    home = os.path.realpath(user.home)
    holes = (user.home, home) if home in homes and _is_in(home, everything) else ()
    return TrustedPlaces(
        sealed=sealed_top,
        hidden=hidden_top,
        links=tuple(sorted(link for link in links if not _is_in(link, everything))),
        holes=tuple(dict.fromkeys(holes)),
        reasons=MappingProxyType({place: (hidden | sealed)[place] for place in everything}),
    )


def _kept_places(config: Config) -> Iterator[tuple[str, str]]:
    """What is obeyed or kept: both files, everywhere they would be looked for, the state, the logs."""
    for source in config.sources:
        yield str(source), "a configuration file"
        yield str(source.parent), "the folder of a configuration file"
    for place in searched_places():
        yield str(place.config_dir), "where configuration is looked for"
    yield str(config.base_dir / "data"), "what the broker keeps"
    yield str(state_dir()), "where the broker keeps its state by default"
    yield str(FALLBACK_HOME.parent), "where the broker keeps its state if the home cannot be reached"
    yield str(LOCK_FILE), "which user ids the brokers of this machine have"
    yield from _log_places(config)


def _log_places(config: Config) -> Iterator[tuple[str, str]]:
    """The folders of the logs; where one is shared with other things, all names that the logs will ever have."""
    logging = config.server.logging
    logs = (logging.audit_log, logging.error_log)
    for log in logs:
        yield str(log), "a log"
        if holds_only(log.parent, logs):
            yield str(log.parent), "the folder of the logs"
        else:
            yield from ((f"{log}.{number}", "a rotated log") for number in range(1, logging.backup_count + 2))


def holds_only(folder: Path, logs: Iterable[Path]) -> bool:
    """Whether a folder is for the logs alone: closing the folder closes those that rotation is yet to make."""
    names = tuple(log.name for log in logs)
    try:
        return all(name.startswith(names) for name in os.listdir(folder))
    except FileNotFoundError:  # the broker makes it
        return True
    except OSError:  # not ours to see
        return False


def _by_all_names(places: Mapping[str, str], links: dict[str, str]) -> dict[str, str]:
    """The places by every name that leads to them; *links* gets the links on the way."""
    found: dict[str, str] = {}
    for place, reason in places.items():
        names, passed = names_of(place)
        found |= {name: found.get(name, reason) for name in names}
        links |= dict.fromkeys(passed, reason)
    return found


def names_of(path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Every path that leads to what *path* is, itself first and the real one last; and the symbolic links passed."""
    names = [os.path.normpath(path)]
    links: list[str] = []
    while len(links) < LINKS_MAX and (link := _first_link(names[-1])):
        links.append(link)
        rest = names[-1][len(link) :].lstrip("/")
        names.append(os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(link), rest)))
    names.append(os.path.realpath(path))  # the last already, but for a link through `..` of another one
    return tuple(dict.fromkeys(names)), tuple(dict.fromkeys(links))


def _first_link(path: str) -> str | None:
    for end in (*(i for i, char in enumerate(path) if char == "/" and i), len(path)):
        if os.path.islink(path[:end]):
            return path[:end]
    return None


def _outermost(places: Iterable[str]) -> tuple[str, ...]:
    """Those that are not beneath another one."""
    kept: list[str] = []
    for place in sorted(set(places), key=lambda place: (place.count("/"), place)):
        if place != "/" and not _is_in(place, kept):
            kept.append(place)
    return tuple(sorted(kept))


def _is_in(path: str, places: Iterable[str]) -> bool:
    """Whether a path is one of the places or beneath one."""
    return any(path == place or path.startswith(f"{place}/") for place in places)


def _around(place: str, holes: tuple[str, ...]) -> Iterator[str]:
    if place in holes:
        return
    if not any(_is_in(hole, (place,)) for hole in holes):
        yield place
        return
    try:
        names = os.listdir(place)
    except OSError:  # not there: neither is anything in it
        return
    for name in sorted(names):
        yield from _around(f"{place}/{name}", holes)
