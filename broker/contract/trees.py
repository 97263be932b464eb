"""Looking through trees, editing and arranging files: what a client may ask, and what is answered.

Values only, one class each way for each tool, with exactly the names on the wire. The text of a request class is what
the documents say of its tool. Paths in results can be passed to any other tool as they are.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import attrs

from broker.contract.fields import MAX_PATTERN_BYTES, Globs, Path, SessionId, Success
from broker.contract.long_text import Text
from broker.contract.schema import About

MAX_LISTED_ENTRIES = 10_000
MAX_LISTED_DEPTH = 64
MAX_MATCHES = 10_000
MAX_ANSWER_BYTES = 1_048_576
MAX_CONTEXT_LINES = 20
MAX_SEARCH_S = 120
MAX_WORK_S = 3600
DEFAULT_SEARCH_S = 20.0
DEFAULT_WORK_S = 60.0

SearchSeconds: TypeAlias = Annotated[
    float,
    About(description="Seconds after which what was found so far is returned.", above=0, maximum=MAX_SEARCH_S),
]
WorkSeconds: TypeAlias = Annotated[
    float,
    About(
        description="Seconds after which the work is given up; at most timeouts.command_max of the server.",
        above=0,
        maximum=MAX_WORK_S,
    ),
]
Hidden: TypeAlias = Annotated[bool, About(description="true: names that begin with a dot as well.")]
Exclude: TypeAlias = Annotated[
    Globs, About(description="Globs of what to leave out; a directory is left out with all it holds.")
]
Overwrite: TypeAlias = Annotated[
    bool, About(description="true: a file at destination is replaced at once. Directories never are.")
]

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
class ListDirectory:
    """List a directory, or its tree to a `depth`, page by page with `cursor`."""

    session_id: SessionId
    path: Path = "."
    include_hidden: Annotated[bool, About(description="true: names that begin with a dot as well.")] = False
    depth: Annotated[
        int,
        About(
            description="1: this directory only; more: so many levels, names relative to it, links not followed.",
            minimum=1,
            maximum=MAX_LISTED_DEPTH,
        ),
    ] = 1
    max_entries: Annotated[
        int, About(description="Most entries in one answer.", minimum=1, maximum=MAX_LISTED_ENTRIES)
    ] = MAX_LISTED_ENTRIES
    cursor: Annotated[
        str | None,
        About(description="next_cursor of the answer before, for the entries that follow.", max_length=8192),
    ] = None


@attrs.frozen(kw_only=True)
class DirectoryEntry:
    """One name in a directory; a symbolic link is not followed."""

    name: str
    type: Literal["file", "directory", "symlink", "other"]
    size_bytes: Annotated[int | None, About(description="Of a file; else null.")]
    modified_at: Annotated[str | None, About(description="UTC, ISO 8601, ends in Z.")] = None


@attrs.frozen(kw_only=True)
class ListDirectoryResult:
    """list_directory."""

    success: Success = True
    path: Annotated[str, About(description="The real path that was listed.")]
    entries: tuple[DirectoryEntry, ...]
    total_count: Annotated[int, About(description="Entries in the directory, also those cut from the list.")]
    truncated: Annotated[bool, About(description="There are more entries than listed.")]
    next_cursor: Annotated[str | None, About(description="Pass it as cursor for the next entries; else null.")] = None


@attrs.frozen(kw_only=True)
class FindFiles:
    """Find files and directories by a glob."""

    session_id: SessionId
    pattern: Annotated[
        str,
        About(
            description="Glob: *.py finds names at any depth, src/**/*.py paths from the directory searched. "
            "Also ?, [a-z], {a,b}.",
            min_length=1,
            max_length=MAX_PATTERN_BYTES,
            max_bytes=MAX_PATTERN_BYTES,
        ),
    ]
    path: Annotated[Path, About(description="Directory to search.")] = "."
    type: Annotated[Literal["any", "file", "directory", "symlink"], About(description="Only entries of this type.")] = (
        "any"
    )
    exclude: Exclude = ()
    include_hidden: Hidden = False
    max_matches: Annotated[int, About(description="Most entries to return.", minimum=1, maximum=MAX_MATCHES)] = 1000
    timeout_seconds: SearchSeconds = DEFAULT_SEARCH_S


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
class SearchFiles:
    """Find lines that match a regular expression or a plain text, in a tree or one file."""

    session_id: SessionId
    pattern: Annotated[
        str,
        About(
            description="Python regular expression, or plain text with literal; matched line by line.",
            min_length=1,
            max_length=MAX_PATTERN_BYTES,
            max_bytes=MAX_PATTERN_BYTES,
        ),
    ]
    path: Annotated[Path, About(description="Directory to search, or one file.")] = "."
    literal: Annotated[bool, About(description="true: pattern is plain text.")] = False
    case_sensitive: Annotated[bool, About(description="false: upper and lower case are the same.")] = True
    include: Annotated[Globs, About(description="Globs of the files to search, such as *.py; none: all.")] = ()
    exclude: Exclude = ()
    include_hidden: Hidden = False
    context_lines: Annotated[
        int, About(description="Lines to show around each match.", minimum=0, maximum=MAX_CONTEXT_LINES)
    ] = 0
    max_matches: Annotated[int, About(description="Most matches to return.", minimum=1, maximum=MAX_MATCHES)] = 100
    max_bytes: Annotated[
        int, About(description="Most bytes of matches to return.", minimum=1024, maximum=MAX_ANSWER_BYTES)
    ] = 262_144
    timeout_seconds: SearchSeconds = DEFAULT_SEARCH_S


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
class StatPath:
    """Tell type, size, time, mode, owner and links of one path; its SHA-256 where asked."""

    session_id: SessionId
    path: Path
    follow_symlinks: Annotated[
        bool, About(description="false: if the last name is a symbolic link, tell about the link itself.")
    ] = True
    checksum: Annotated[bool, About(description="true: the SHA-256 of a file as well.")] = False


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
class EditFile:
    """Replace a text that occurs exactly `expected_count` times, at once; answer with a unified diff."""

    session_id: SessionId
    path: Path
    old_text: Annotated[
        Text,
        About(description="Text to replace, exactly as in the file, line ends included.", min_length=1, secret=True),
    ]
    new_text: Annotated[Text, About(description="Text to put in its place; empty deletes.", secret=True)]
    expected_count: Annotated[
        int, About(description="How often old_text must occur; all are replaced.", minimum=1, maximum=1_000_000)
    ] = 1
    expected_sha256: Annotated[
        str | None,
        About(description="Edit only if the whole file has this SHA-256 now.", pattern="^[0-9a-fA-F]{64}$"),
    ] = None


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
class MakeDirectory:
    """Make a directory, with `parents` all that are missing on the way."""

    session_id: SessionId
    path: Path
    parents: Annotated[bool, About(description="true: missing directories on the way as well.")] = False


@attrs.frozen(kw_only=True)
class MakeDirectoryResult:
    """make_directory."""

    success: Success = True
    path: RealPath
    created: Annotated[bool, About(description="false: it was there already.")]


@attrs.frozen(kw_only=True)
class MovePath:
    """Give a file, a link or a whole directory a new path, in one step."""

    session_id: SessionId
    source: Annotated[Path, About(description="What to move or rename; a link itself, not what it leads to.")]
    destination: Annotated[Path, About(description="The new path itself, not a directory to move into.")]
    overwrite: Overwrite = False
    timeout_seconds: WorkSeconds = DEFAULT_WORK_S


@attrs.frozen(kw_only=True)
class MovePathResult:
    """move_path."""

    success: Success = True
    path: Annotated[str, About(description="Where it is now.")]
    moved_from: str


@attrs.frozen(kw_only=True)
class CopyPath:
    """Copy a file or, with `recursive`, a directory, which appears when it is complete."""

    session_id: SessionId
    source: Annotated[Path, About(description="File or directory to copy; a link is followed.")]
    destination: Annotated[Path, About(description="The new path itself, not a directory to copy into.")]
    recursive: Annotated[bool, About(description="true: a directory with all it holds.")] = False
    overwrite: Overwrite = False
    timeout_seconds: WorkSeconds = DEFAULT_WORK_S


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
class DeletePath:
    """Delete one name or, with `recursive` and `confirm`, a directory with all it holds."""

    session_id: SessionId
    path: Annotated[Path, About(description="What to delete; a link itself, not what it leads to.")]
    recursive: Annotated[bool, About(description="true: a directory with all it holds; needs confirm.")] = False
    confirm: Annotated[bool, About(description="true: you confirm a recursive deletion.")] = False
    timeout_seconds: WorkSeconds = DEFAULT_WORK_S


@attrs.frozen(kw_only=True)
class DeletePathResult:
    """delete_path."""

    success: Success = True
    path: Annotated[str, About(description="What was deleted.")]
    entries_deleted: int
