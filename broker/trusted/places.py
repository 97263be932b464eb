"""The trusted places: what the broker executes, obeys and keeps outside the walls, so that no session may change it.

Found once, at start, by looking at this machine: blocking. Who else owns them is in `ownership.py`; that no session
gets at them is the work of the walls.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import attrs

from broker.trusted.program import databases, program_places
from config.load import Config
from config.places import searched_places, state_dir
from sandbox.machine.claims import LOCK_FILE
from sandbox.plan.plan import SessionUser
from sandbox.plan.users import FALLBACK_HOME

CODE = frozenset(("program", "data"))
"""Kinds of places that sessions may read."""
Kind = Literal["program", "data", "configuration", "state"]


@attrs.frozen
class Origin:
    """One place as it was found: by one of its names, with what it is to the broker."""

    path: str
    reason: str
    kind: Kind


@attrs.frozen
class Names:
    """The paths that lead to one thing, the real one last; and the names of the symbolic links that they go through."""

    paths: tuple[str, ...]
    links: tuple[str, ...]


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
    origins: tuple[Origin, ...]
    """Every name of every place, also those that lie beneath another one, and why each is here."""


def take_names(user: SessionUser) -> None:
    """Make the folders of ours that are looked for in a home and are not there, so that no session can make them.

    Where one cannot be made, the walls keep its name away instead: then the folder around it takes no new names at all.
    """
    if user.dedicated:  # whose home is another one than that of who starts the broker
        return
    for folder in (*(place.config_dir for place in searched_places()), state_dir()):
        with contextlib.suppress(OSError):
            if is_in(str(folder), (user.home,)):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def find_trusted(config: Config, user: SessionUser) -> TrustedPlaces:
    """Look for all of them.

    Args:
        config: of the operator.
        user: of the sessions.
    """
    links: dict[str, None] = {}
    found = [Origin(path, reason, "program") for path, reason in program_places()]
    found += [Origin(path, reason, "data") for path, reason in databases()]
    found += [Origin(path, reason, "configuration") for path, reason in _obeyed(config)]
    found += [Origin(path, reason, "state") for path, reason in _kept(config)]
    origins = tuple(_by_all_names(found, links))
    sealed = _outermost(origin.path for origin in origins if origin.kind in CODE)
    hidden = _outermost(origin.path for origin in origins if origin.kind not in CODE)
    homes = {os.path.realpath(home) for home in (config.base_dir / "data" / "home", FALLBACK_HOME)}
    home = os.path.realpath(user.own_home)
    holes = (user.own_home, home) if home in homes and is_in(home, (*sealed, *hidden)) else ()
    return TrustedPlaces(
        sealed=sealed,
        hidden=hidden,
        links=tuple(sorted(link for link in links if not is_in(link, (*sealed, *hidden)))),
        holes=tuple(dict.fromkeys(holes)),
        origins=origins,
    )


def _obeyed(config: Config) -> Iterator[tuple[str, str]]:
    """Both files, and everywhere they would be looked for."""
    for source in config.sources:
        yield str(source), "a configuration file"
        yield str(source.parent), "the folder of a configuration file"
    for place in searched_places():
        yield str(place.config_dir), "where configuration is looked for"


def _kept(config: Config) -> Iterator[tuple[str, str]]:
    yield str(config.base_dir / "data"), "what the broker keeps"
    yield str(config.base_dir / "data" / "output"), "where the output of commands is kept"
    yield str(state_dir()), "where the broker keeps its state by default"
    yield str(FALLBACK_HOME.parent), "where the broker keeps its state if the home cannot be reached"
    yield str(LOCK_FILE), "which user ids the brokers of this machine have"
    yield from _logs(config)


def _logs(config: Config) -> Iterator[tuple[str, str]]:
    """The folders of the logs; where one is shared with other things, all names that the logs will ever have."""
    logging = config.server.logging
    logs = (logging.audit_log, logging.error_log)
    for log in logs:
        yield str(log), "a log"
        if holds_only(log.parent, logs):
            yield str(log.parent), "the folder of the logs"
        else:
            yield from ((f"{log}.{number}", "a rotated log") for number in range(1, logging.most_backups + 2))


def holds_only(folder: Path, logs: Iterable[Path]) -> bool:
    """Tell whether a folder is for the logs alone: closing the folder closes those that rotation is yet to make."""
    names = tuple(log.name for log in logs)
    try:
        return all(name.startswith(names) for name in os.listdir(folder))
    except FileNotFoundError:  # the broker makes it
        return True
    except OSError:  # not ours to see
        return False


def _by_all_names(places: Iterable[Origin], links: dict[str, None]) -> Iterator[Origin]:
    """The places by every name that leads to them, each name once; *links* gets the links on the way."""
    seen: set[str] = set()
    known = {"/": Names(("/",), ())}
    for place in places:
        names = names_of(place.path, known)
        links |= dict.fromkeys(names.links)
        for name in names.paths:
            if (key := f"{place.kind} {name}") not in seen:
                seen.add(key)
                yield attrs.evolve(place, path=name)


def names_of(path: str, known: dict[str, Names] | None = None) -> Names:
    """Find every path that leads to what an absolute *path* is, and the links on the way.

    Args:
        path: what the kernel would be given; there or not.
        known: what was found before; gets what is found now.
    """
    known = {"/": Names(("/",), ())} if known is None else known
    path = os.path.normpath(path)
    if path in known:
        return known[path]
    folder = names_of(os.path.dirname(path), known)
    name = os.path.basename(path)
    names = dict.fromkeys([path, *(os.path.join(parent, name) for parent in folder.paths)])
    links = folder.links
    known[path] = Names(tuple(names), links)  # a link that leads to itself ends here
    real = os.path.join(folder.paths[-1], name)
    if os.path.islink(real):
        target = os.path.join(folder.paths[-1], os.readlink(real))
        # `..` takes back what a link before it led to, not its name.
        led_to = names_of(os.path.realpath(target) if ".." in target.split("/") else target, known)
        links = (*links, *names, *led_to.links)
        names |= dict.fromkeys(led_to.paths)
        known[path] = Names((*(other for other in names if other != led_to.paths[-1]), led_to.paths[-1]), links)
    return known[path]


def _outermost(places: Iterable[str]) -> tuple[str, ...]:
    """Return those that are not beneath another one."""
    kept: list[str] = []
    for place in sorted(set(places), key=lambda place: (place.count("/"), place)):
        if place != "/" and not is_in(place, kept):
            kept.append(place)
    return tuple(sorted(kept))


def is_in(path: str, places: Iterable[str]) -> bool:
    """Tell whether a path is one of the places or beneath one."""
    return any(path == place or path.startswith(f"{place}/") for place in places)
