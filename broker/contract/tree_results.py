"""What the tools for editing, searching and arranging files answer: one class per tool.

As `broker/contract/results.py`, which has the other tools and the union of all. Paths here can be passed to any other
tool as they are.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import attrs

from broker.contract.fields import Success
from broker.contract.schema import About

Kind: TypeAlias = Literal["file", "directory", "symlink", "other"]
ModifiedAt: TypeAlias = Annotated[str | None, About(description="UTC, ISO 8601, ends in Z.")]
RealPath: TypeAlias = Annotated[str, About(description="The real, absolute path.")]
Usable: TypeAlias = Annotated[
    str, About(description="Relative to the working directory where it is beneath it, else absolute.")
]
Stopped: TypeAlias = Annotated[
    Literal["count", "size", "time"] | None,
    About(description="The limit that ended the search early; null when everything was searched."),
]
PassedOver: TypeAlias = Annotated[int, About(description="Paths that the policy keeps closed, passed over.")]
Unreadable: TypeAlias = Annotated[int, About(description="Passed over: not readable for the session's user.")]


@attrs.frozen(kw_only=True)
class EditFileResult:
    """edit_file."""

    success: Success = True
    path: RealPath
    replacements: int
    diff: Annotated[str, About(description="Unified diff of what changed.")]
    diff_truncated: Annotated[bool, About(description="The diff is longer; the edit is complete.")]
    size_bytes: Annotated[int, About(description="Size of the whole file now.")]
    sha256: Annotated[str, About(description="SHA-256 of the whole file now, for the next expected_sha256.")]


@attrs.frozen(kw_only=True)
class Match:
    """One line that matches."""

    path: Usable
    line: Annotated[int, About(description="Counted from 1.")]
    column: Annotated[int, About(description="Character of the line where the match begins, counted from 1.")]
    text: str
    text_truncated: Annotated[bool, About(description="The line is longer; text is the part around the match.")]
    before: Annotated[tuple[str, ...], About(description="Lines in front of it, as many as context_lines.")]
    after: tuple[str, ...]


@attrs.frozen(kw_only=True)
class SearchFilesResult:
    """search_files."""

    success: Success = True
    path: RealPath
    matches: tuple[Match, ...]
    truncated: Annotated[bool, About(description="There may be more matches.")]
    stopped_by: Stopped
    files_searched: int
    files_with_matches: int
    bytes_searched: int
    skipped_binary: int
    skipped_closed: PassedOver
    skipped_unreadable: Unreadable
    skipped_hard_links: Annotated[
        int, About(description="Files passed over because another name of theirs is closed or unknown.")
    ]


@attrs.frozen(kw_only=True)
class FoundEntry:
    """One path that matches."""

    path: Usable
    type: Kind
    size_bytes: Annotated[int | None, About(description="Of a file; else null.")]
    modified_at: ModifiedAt


@attrs.frozen(kw_only=True)
class FindFilesResult:
    """find_files."""

    success: Success = True
    path: RealPath
    entries: tuple[FoundEntry, ...]
    truncated: Annotated[bool, About(description="There may be more entries.")]
    stopped_by: Stopped
    entries_searched: int
    skipped_closed: PassedOver
    skipped_unreadable: Unreadable


@attrs.frozen(kw_only=True)
class StatPathResult:
    """stat_path."""

    success: Success = True
    path: RealPath
    type: Kind
    size_bytes: int
    modified_at: ModifiedAt
    mode: Annotated[str, About(description="Permission bits, octal, such as 0644.")]
    owner_uid: int
    link_count: Annotated[int, About(description="Names of this file (hard links).")]
    link_target: Annotated[str | None, About(description="Text of a symbolic link that was not followed.")] = None
    sha256: Annotated[str | None, About(description="Of a file, when checksum was asked for.")] = None


@attrs.frozen(kw_only=True)
class MakeDirectoryResult:
    """make_directory."""

    success: Success = True
    path: RealPath
    created: Annotated[bool, About(description="false: it was there already.")]


@attrs.frozen(kw_only=True)
class MovePathResult:
    """move_path."""

    success: Success = True
    path: Annotated[str, About(description="Where it is now.")]
    moved_from: str


@attrs.frozen(kw_only=True)
class Skipped:
    """One path that was not copied."""

    path: Annotated[str, About(description="Relative to source.")]
    reason: str


@attrs.frozen(kw_only=True)
class CopyPathResult:
    """copy_path."""

    success: Success = True
    path: Annotated[str, About(description="Where the copy is.")]
    files_copied: int
    bytes_copied: int
    skipped_count: Annotated[int, About(description="Entries that were not copied; not an error.")]
    skipped: Annotated[tuple[Skipped, ...], About(description="The first of them, with the reason.")]


@attrs.frozen(kw_only=True)
class DeletePathResult:
    """delete_path."""

    success: Success = True
    path: Annotated[str, About(description="What was deleted.")]
    entries_deleted: int
