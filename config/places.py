"""The places of the configuration, and of what the broker keeps. Never the current folder.

Whoever starts a broker in a folder (a person in a home, a client in a repository that it was given) does not mean
that what lies there is to be obeyed: files of that name may have been written by a session, or come with a stranger's
repository.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import attrs

from config.keys import SHIPPED_DIR

SERVER_FILE = "server.yaml"
POLICY_FILE = "policy.yaml"
PROJECT = "remote-mcp-exec-gateway"
STATE_NAME = "remote-broker"
SYSTEM_DIR = Path("/etc/remote-broker")
STATE_WITHOUT_HOME = Path("/var/lib/remote-broker")


@attrs.frozen(kw_only=True)
class Place:
    """A folder of configuration files, and the folder in which relative paths of theirs start."""

    config_dir: Path
    base_dir: Path


def default_place(places: tuple[Place, ...] | None = None) -> Place:
    """Choose the files when nobody named a folder: the first of *places* that holds one, else the shipped ones.

    Args:
        places: by default `searched_places()`.
    """
    for place in searched_places() if places is None else places:
        if any(os.path.lexists(place.config_dir / name) for name in (SERVER_FILE, POLICY_FILE)):
            return place
    return Place(config_dir=SHIPPED_DIR, base_dir=state_dir())


def searched_places(packages_dir: Path = SHIPPED_DIR.parent, system_dir: Path = SYSTEM_DIR) -> tuple[Place, ...]:
    """Places where files are looked for; the first that holds one wins: our checkout, the user's folder, the machine's.

    Args:
        packages_dir: the folder that holds the packages that run.
        system_dir: the machine's.
    """
    folders = [home / ".config" / STATE_NAME] if (home := _home()) else []
    places = (Place(config_dir=folder, base_dir=state_dir()) for folder in (*folders, system_dir))
    return (*([place_of(packages_dir / "config")] if is_checkout(packages_dir) else []), *places)


def state_dir() -> Path:
    """The place of logs and data that do not lie beside the files.

    In $XDG_STATE_HOME, by default ~/.local/state; where there is no home, in /var/lib.
    """
    state_home = os.environ.get("XDG_STATE_HOME", "")
    # The specification of those variables says that a relative value is to be ignored.
    if state_home.startswith("/"):
        return Path(state_home) / STATE_NAME
    home = _home()
    return home / ".local" / "state" / STATE_NAME if home else STATE_WITHOUT_HOME


def _home() -> Path | None:
    """The home of the user who starts the broker; None where there is none, as of a container's nameless user id."""
    home = os.path.expanduser("~")
    return Path(home) if home.startswith("/") else None  # a relative one would be one in the current folder


def is_checkout(folder: Path) -> bool:
    """Tell whether a folder is a checkout of this project: its pyproject.toml says so."""
    try:
        with open(folder / "pyproject.toml", "rb") as file:
            project = tomllib.load(file).get("project")
    except (OSError, ValueError):  # none, or not of a project that can be built
        return False
    return isinstance(project, dict) and project.get("name") == PROJECT


def place_of(config_dir: Path) -> Place:
    """Let relative paths start in the folder that holds `config_dir`, also when that is written `..`."""
    absolute = Path(os.path.abspath(config_dir))
    return Place(config_dir=absolute, base_dir=absolute.parent)
