"""Read the configuration files of one folder: which of the two, how big, who may write them.

Everything that touches the file system for the files themselves is here; what they say is decided elsewhere.
A policy that others may write is theirs: a fault when the broker is root, a warning when it is not.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import attrs

from config.faults import ConfigFaults, Fault
from config.keys import SHIPPED_DIR
from config.places import POLICY_FILE, SERVER_FILE
from config.yamlnodes import Document, Node, parse_yaml

FILE_BYTES_MAX = 1024 * 1024
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@attrs.frozen(kw_only=True)
class Source:
    """One file as read. `path` is None where there is none and defaults hold."""

    path: Path | None
    document: Document
    warnings: tuple[str, ...] = ()


def read_sources(config_dir: Path) -> tuple[Source, Source]:
    """Read server.yaml and policy.yaml; where one is missing, the defaults and the shipped policy hold.

    Raises:
        ConfigFaults: the folder cannot be what its owner meant: it holds neither file, or one with another
            ending, and going on would replace the operator's policy by the shipped one without a word.
    """
    try:
        names = set(os.listdir(config_dir))
    except OSError as exc:
        raise ConfigFaults([_fault(config_dir, f"cannot be read: {exc.strerror}")]) from exc
    unread = [f"{stem}.yml" for stem in ("server", "policy") if f"{stem}.yml" in names]
    faults = [_fault(config_dir / name, f"is not read: rename it to {name[:-3]}yaml") for name in unread]
    if not faults and names.isdisjoint({SERVER_FILE, POLICY_FILE}):
        faults = [_fault(config_dir, f"holds neither {SERVER_FILE} nor {POLICY_FILE}")]
    if faults:
        raise ConfigFaults(faults)
    folder_warnings, folder_faults = writable_by_others(config_dir, config_dir.stat(), as_root=os.geteuid() == 0)
    server = _read(config_dir / SERVER_FILE) if SERVER_FILE in names else _absent(config_dir / SERVER_FILE)
    policy = _read(config_dir / POLICY_FILE) if POLICY_FILE in names else _shipped_policy(config_dir)
    document = attrs.evolve(server.document, faults=(*folder_faults, *server.document.faults))
    return attrs.evolve(server, document=document, warnings=(*folder_warnings, *server.warnings)), policy


def _absent(path: Path) -> Source:
    return Source(path=None, document=Document(file=str(path), root=Node(value=None, line=1), faults=()))


def _shipped_policy(config_dir: Path) -> Source:
    if not (SHIPPED_DIR / POLICY_FILE).exists():  # a clone whose owner removed it: then nothing is allowed
        return _absent(config_dir / POLICY_FILE)
    warning = f"{config_dir / POLICY_FILE} does not exist: the policy shipped with the broker holds"
    shipped = _read(SHIPPED_DIR / POLICY_FILE)
    return attrs.evolve(shipped, warnings=(warning, *shipped.warnings))


def _read(path: Path) -> Source:
    """Read and parse one file. What keeps it from being read is a fault of its document."""
    try:
        content, status = _content(path)
        text = content.decode("utf-8-sig")
    except OSError as exc:
        return _unreadable(path, f"cannot be read: {exc.strerror or exc}")
    except UnicodeDecodeError as exc:
        line = exc.object.count(b"\n", 0, exc.start) + 1
        return _unreadable(path, "is not UTF-8 text", line)
    warnings, faults = writable_by_others(path, status, as_root=os.geteuid() == 0)
    document = parse_yaml(text, str(path))
    document = attrs.evolve(document, faults=(*faults, *document.faults))
    return Source(path=path, document=document, warnings=warnings)


def _content(path: Path) -> tuple[bytes, os.stat_result]:
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise OSError(f"it is larger than {FILE_BYTES_MAX} bytes")
    return content, status


def _open_at_once(path: str, flags: int) -> int:
    # O_NONBLOCK: a FIFO under that name must not stop the start for ever.
    return os.open(path, flags | os.O_NONBLOCK)


def _unreadable(path: Path, message: str, line: int = 1) -> Source:
    nothing = Document(file=str(path), root=Node(value=None, line=1), faults=(_fault(path, message, line),))
    return Source(path=path, document=nothing)


def writable_by_others(
    path: Path, status: os.stat_result, *, as_root: bool
) -> tuple[tuple[str, ...], tuple[Fault, ...]]:
    """Say who else could rewrite a file, as warnings and as faults. Only `broker.wiring` knows as whom sessions run."""
    warnings: list[str] = []
    faults: list[Fault] = []
    if status.st_mode & _OTHERS_WRITE:
        message = f"others than its owner may write it (mode {stat.S_IMODE(status.st_mode):04o}): chmod go-w"
        if as_root:
            faults.append(_fault(path, message))
        else:
            warnings.append(f"{path}: {message}")
    if as_root and status.st_uid != 0:
        warnings.append(f"{path} belongs to user id {status.st_uid}, who can rewrite what root's broker allows")
    return tuple(warnings), tuple(faults)


def _fault(path: Path, message: str, line: int = 1) -> Fault:
    return Fault(file=str(path), line=line, path=(), message=message)
