"""The fields that several tools share, with their limits: paths, session ids, digests.

Values only; requests and results are built of them, so that one thing is described and bounded in one way.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from broker.contract.schema import About

MAX_ARGUMENTS = 1000
MAX_STRING_BYTES = 131_071
"""MAX_ARG_STRLEN of execve(2), 128 KiB, without its NUL: the kernel refuses a longer argument or variable."""
MAX_PATH_BYTES = 4095
"""PATH_MAX without its NUL."""
MAX_OFFSET = 2**63 - 1
"""off_t."""
MAX_PATTERN_BYTES = 4096
MAX_GLOBS = 64
MAX_TIMEOUT_S = 31_536_000
"""A year: keeps the number a clock can hold; the operator's timeouts.command_max is the limit that counts."""
MAX_WAIT_S = 3600
MAX_PID = 2**22
"""PID_MAX_LIMIT of the kernel."""

SESSION_ID_PATTERN = r"^(\.{0,2}[A-Za-z0-9_-]|\.{3})[A-Za-z0-9._-]*$"
"""Never `.` or `..`, which are steps to another place wherever an id becomes a part of a path or a URL. Without
look-ahead, which not every client's regular expressions know."""

SessionId: TypeAlias = Annotated[
    str,
    About(
        description="The session_id that create_session returned.",
        pattern=SESSION_ID_PATTERN,
        min_length=1,
        max_length=64,
    ),
]
CommandId: TypeAlias = Annotated[
    str, About(description="The command_id that execute_command or list_commands returned.", pattern="^c[0-9]{1,18}$")
]
Path: TypeAlias = Annotated[
    str,
    About(
        description="Absolute, ~/..., or relative to the session's working directory.",
        min_length=1,
        max_length=MAX_PATH_BYTES,
        max_bytes=MAX_PATH_BYTES,
    ),
]
Argument: TypeAlias = Annotated[str, About(max_length=MAX_STRING_BYTES, max_bytes=MAX_STRING_BYTES)]
Globs: TypeAlias = Annotated[
    tuple[Annotated[str, About(min_length=1, max_bytes=MAX_PATTERN_BYTES, max_length=MAX_PATTERN_BYTES)], ...],
    About(max_items=MAX_GLOBS),
]

Success: TypeAlias = Annotated[bool, About(description="The tool did what it was asked.")]
Sha256: TypeAlias = Annotated[
    str | None, About(description="SHA-256 of the whole file, hexadecimal; with the last chunk, else null.")
]
TransferId: TypeAlias = Annotated[str, About(description="Names this transfer; it belongs to the session and path.")]
RawTransferId: TypeAlias = Annotated[
    str, About(description="The transfer_id that open_transfer returned.", min_length=1, max_length=64)
]
