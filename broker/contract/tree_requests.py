"""What a client may ask of the tools for editing, searching and arranging files: one class per tool.

As `broker/contract/requests.py`, which has the other tools and the union of all.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import attrs

from broker.contract.fields import MAX_PATTERN_BYTES, Globs, Path, SessionId
from broker.contract.long_text import Text
from broker.contract.schema import About

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


@attrs.frozen(kw_only=True)
class EditFile:
    """edit_file."""

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
class SearchFiles:
    """search_files."""

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
class FindFiles:
    """find_files."""

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
class StatPath:
    """stat_path."""

    session_id: SessionId
    path: Path
    follow_symlinks: Annotated[
        bool, About(description="false: if the last name is a symbolic link, tell about the link itself.")
    ] = True
    checksum: Annotated[bool, About(description="true: the SHA-256 of a file as well.")] = False


@attrs.frozen(kw_only=True)
class MakeDirectory:
    """make_directory."""

    session_id: SessionId
    path: Path
    parents: Annotated[bool, About(description="true: missing directories on the way as well.")] = False


@attrs.frozen(kw_only=True)
class MovePath:
    """move_path."""

    session_id: SessionId
    source: Annotated[Path, About(description="What to move or rename; a link itself, not what it leads to.")]
    destination: Annotated[Path, About(description="The new path itself, not a directory to move into.")]
    overwrite: Overwrite = False
    timeout_seconds: WorkSeconds = DEFAULT_WORK_S


@attrs.frozen(kw_only=True)
class CopyPath:
    """copy_path."""

    session_id: SessionId
    source: Annotated[Path, About(description="File or directory to copy; a link is followed.")]
    destination: Annotated[Path, About(description="The new path itself, not a directory to copy into.")]
    recursive: Annotated[bool, About(description="true: a directory with all it holds.")] = False
    overwrite: Overwrite = False
    timeout_seconds: WorkSeconds = DEFAULT_WORK_S


@attrs.frozen(kw_only=True)
class DeletePath:
    """delete_path."""

    session_id: SessionId
    path: Annotated[Path, About(description="What to delete; a link itself, not what it leads to.")]
    recursive: Annotated[bool, About(description="true: a directory with all it holds; needs confirm.")] = False
    confirm: Annotated[bool, About(description="true: you confirm a recursive deletion.")] = False
    timeout_seconds: WorkSeconds = DEFAULT_WORK_S
