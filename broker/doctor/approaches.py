"""Ways around the walls for the doctor to attack: files that the broker, its next start or its user obeys outside.

What is attacked is the real thing, by attacks that do no damage (`sandbox/inside/init/attacks_around.py`). Where one
needs a file of its own, that is laid out by the session's user before the session is born, and is gone afterwards. What
this user may not do outside either proves nothing: `missing` says why.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from broker.scope import Host
from broker.trusted.program import own_folders
from config.load import Config
from config.places import POLICY_FILE, STATE_NAME, SYSTEM_DIR, searched_places, state_dir
from policy.decision import Allow
from policy.path import decide_path

OF_THE_POLICY = ("dot_new", "dot_file", "git_config", "hook_new")
"""What is closed because a policy says so; the rest is closed whatever it says."""


@attrs.frozen(kw_only=True)
class Ground:
    """Where things lie. `inside`: the folder that the session begins in; `mark`: a name that nobody else has."""

    host: Host
    config: Config
    inside: str
    mark: str


@contextlib.contextmanager
def open_approaches(
    host: Host, config: Config, inside: str, become: Callable[[Mapping[str, Any]], Sequence[str]]
) -> Iterator[tuple[Mapping[str, str], Mapping[str, str]]]:
    """Find the places and lay out what attacks need: facts, and why others are missing. It is gone afterwards.

    Args:
        inside: the folder that the session begins in.
        become: the command line that does something as the session's user, without walls.
    """
    ground = Ground(host=host, config=config, inside=inside, mark=f"remote-broker-doctor-{secrets.token_hex(8)}")
    laid = _to_lay(ground)
    said = _lay(become({"attack": "lay", "paths": list(laid.values())}))
    try:
        why = {
            name: f"it does not work without walls either: {said['failed'][path]}"
            for name, path in laid.items()
            if path in said["failed"]
        }
        facts = _there(ground) | {name: path for name, path in laid.items() if name not in why}
        yield _as_folders(facts), why | _allowed(host, facts)
    finally:
        take_back([*said["made"], *(f"{path}-new" for path in laid.values())])


def _lay(command: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(command, env={}, stdout=subprocess.PIPE, check=False)
    if not done.stdout:
        raise OSError("the doctor could not lay out its files")
    said: dict[str, Any] = json.loads(json.loads(done.stdout)["said"])
    return said


def take_back(made: Sequence[str]) -> None:
    """Remove what was made, the last first: what is no longer there, or is in use by somebody else, is not removed."""
    for path in reversed(made):
        with contextlib.suppress(OSError):
            (os.rmdir if os.path.isdir(path) and not os.path.islink(path) else os.unlink)(path)


def absent(path: str) -> list[str]:
    """The folders that are not there on the way to a path, topmost first, and the path itself."""
    ways = [path, *map(str, Path(path).parents)]
    return list(reversed(list(itertools.takewhile(lambda way: not os.path.lexists(way), ways))))


def _there(ground: Ground) -> dict[str, str]:
    """Return what is there already, and names that are not there yet."""
    code, config, mark = Path(own_folders()[0]), ground.config, ground.mark
    facts = {
        "workspace": ground.inside,
        "code_file": str(code / "__init__.py"),
        "code_folder": str(code),
        "code_above": str(code.parent),
        "module_new": str(code.parent / f"{mark.replace('-', '_')}.py"),
        "pth_new": os.path.join(sysconfig.get_path("purelib"), f"{mark}.pth"),
        "log_new": _rotated(config.server.logging.audit_log),
        "kept_new": str(config.base_dir / "data" / mark),
        "state_new": str(state_dir() / mark),
        "dot_new": os.path.join(ground.host.user.home, f".{mark}-new"),
        "hook_new": f"{ground.inside}/repository/.git/hooks/post-checkout",
        "next_config": _next_config(mark),
    }
    if config.sources:
        facts["config_file"] = str(config.sources[-1])
        facts["config_new"] = str(config.sources[-1].parent / mark)
    return facts


def _to_lay(ground: Ground) -> dict[str, str]:
    """Files of the doctor's own: to be changed and replaced, and so that a folder is not empty."""
    code, mark = Path(own_folders()[0]), ground.mark
    return {
        "beside_code": str(code.parent / mark / "file"),
        "beside_above": str(code.parent.parent / mark / "file"),
        "beside_interpreter": os.path.join(os.path.dirname(sys.executable), mark),
        "dot_file": os.path.join(ground.host.user.home, f".{mark}"),
        "git_config": f"{ground.inside}/repository/.git/config",
        "hook": f"{ground.inside}/repository/.git/hooks/pre-commit",
    }


def _as_folders(facts: Mapping[str, str]) -> dict[str, str]:
    folders = ("beside_code", "beside_above")
    return {name: os.path.dirname(path) if name in folders else path for name, path in facts.items()}


def _rotated(log: Path) -> str:
    """The next name that a rotation of the log can give."""
    names = (f"{log}.{number}" for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def _next_config(mark: str) -> str:
    """A policy that the next start would find in the user's own folder; beside one that is there, another name."""
    own = [place.config_dir for place in searched_places() if place.config_dir.name == STATE_NAME]
    folder = next((folder for folder in own if folder != SYSTEM_DIR), SYSTEM_DIR)
    return str(folder / (mark if os.path.lexists(folder / POLICY_FILE) else POLICY_FILE))


def _allowed(host: Host, facts: Mapping[str, str]) -> dict[str, str]:
    """Return what a session of this policy may do."""
    decisions = {name: decide_path(host.paths, facts[name], "write") for name in OF_THE_POLICY if name in facts}
    return {
        name: f"the policy allows it: {decision.reason}"
        for name, decision in decisions.items()
        if isinstance(decision, Allow)
    }
