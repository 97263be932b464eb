"""Which files that git obeys start nothing: by closed lists of what usual repositories say. Child side, stdlib only.

Anything that is not understood, and whatever is not on a list, counts as what could start a program.
"""

from __future__ import annotations

import re

MAX_BYTES = 64 * 1024  # of a configuration that is read; usual ones have some hundred

# Compiled when a look needs them (and kept by `re`): every session has this module, and few make repositories.
_HEADER = r'\[([A-Za-z0-9-]+)(?: "([^"\\]*)")?\]'
_SETTING = r"([A-Za-z][A-Za-z0-9-]*)[ \t]*(?:=(.*))?"
_TARGET = rb"gitdir: (?:[^\0\n]*/)?\.git/(?:modules|worktrees)/([^\0\n]+)\n?"
_COMMON = b"../.."  # from a worktree's folder to its repository

_OF_A_SECTION = frozenset(
    f"{section}.{key}"
    for section, keys in {
        "core": "repositoryformatversion filemode bare logallrefupdates ignorecase precomposeunicode symlinks worktree "
        "sparsecheckout sparsecheckoutcone autocrlf eol safecrlf quotepath abbrev compression hidedotfiles longpaths",
        "extensions": "worktreeconfig partialclone objectformat refstorage compatobjectformat",
        "index": "sparse version threads",
        "init": "defaultbranch",
        "user": "name email",
        "pull": "rebase ff",
        "push": "default autosetupremote followtags",
        "fetch": "prune prunetags",
        "rebase": "autostash autosquash",
        "merge": "conflictstyle ff",
        "commit": "verbose cleanup",
        "gc": "auto",
        "maintenance": "auto strategy",
        "advice": "detachedhead",
        "lfs": "repositoryformatversion",
    }.items()
    for key in keys.split()
)
_OF_A_NAME = frozenset(
    f"{section}.{key}"
    for section, keys in {
        "remote": "url pushurl fetch push mirror prune prunetags tagopt promisor partialclonefilter skipfetchall "
        "gh-resolved",
        "branch": "remote merge rebase description pushremote autosetupmerge",
        "submodule": "url active branch path update ignore",
    }.items()
    for key in keys.split()
)


def is_plain(data: bytes) -> bool:
    """Tell whether a repository's configuration says nothing but what makes git start no program."""
    if len(data) > MAX_BYTES or b"\\" in data or b"\r" in data or b"\0" in data:
        return False
    section = None
    for line in data.decode(errors="replace").split("\n"):
        words = line.strip(" \t")
        if not words or words[0] in "#;":
            continue
        header = re.fullmatch(_HEADER, words)
        if header is not None:
            section = header
            continue
        setting = re.fullmatch(_SETTING, words)
        if section is None or setting is None or not _is_listed(section, setting):
            return False
    return True


def _is_listed(section: re.Match[str], setting: re.Match[str]) -> bool:
    key = f"{section[1]}.{setting[1]}".lower()
    value = (setting[2] or "").strip()
    # A transport of another program's ("ext::"), and a submodule that is updated by a command ("!").
    if "::" in value or value.lstrip('"').startswith("!"):
        return False
    return key in (_OF_A_SECTION if section[2] is None else _OF_A_NAME)


def is_plain_pointer(data: bytes) -> bool:
    """Tell whether a file named `.git` leads into a repository, as those of submodules and worktrees do."""
    target = re.fullmatch(_TARGET, data) if len(data) <= MAX_BYTES else None
    return target is not None and b".." not in target[1].split(b"/")


def is_plain_common(data: bytes) -> bool:
    """Tell whether a worktree's `commondir` leads to the repository that it lies in."""
    return data.strip() == _COMMON
