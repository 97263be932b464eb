"""One file, read or written whole, in part or in chunks: what a client may ask, and what is answered.

Values only, one class each way for each tool, with exactly the names on the wire. The text of a request class is what
the documents say of its tool. Bytes are bytes here and base64 there (`broker/contract/encode.py`).
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import attrs

from broker.contract.fields import MAX_OFFSET, Path, SessionId, Sha256, Success, TransferId
from broker.contract.long_text import Bytes, Text
from broker.contract.schema import About

DEFAULT_CHUNK_BYTES = 1_048_576

Encoding: TypeAlias = Literal[
    "binary",
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "ascii",
    "latin-1",
    "iso-8859-2",
    "iso-8859-15",
    "windows-1250",
    "windows-1251",
    "windows-1252",
    "koi8-r",
    "gb18030",
    "big5",
    "shift_jis",
    "euc-jp",
    "euc-kr",
]
"""Encodings that a file may be declared to be in."""


@attrs.frozen(kw_only=True)
class ReadFile:
    """Read bytes from `offset`, or lines from `start_line` (`-20`: the last 20), in a declared `encoding`."""

    session_id: SessionId
    path: Path
    offset: Annotated[int, About(description="First byte to read.", minimum=0, maximum=MAX_OFFSET)] = 0
    limit: Annotated[
        int | None,
        About(
            description="Most bytes to read. Default and ceiling: file_limits.max_read_size.",
            minimum=1,
            maximum=MAX_OFFSET,
        ),
    ] = None
    start_line: Annotated[
        int | None,
        About(
            description="First line to read, counted from 1; negative: from the end, -20 is the last 20 lines. "
            "Instead of offset.",
            minimum=-MAX_OFFSET,
            maximum=MAX_OFFSET,
        ),
    ] = None
    line_count: Annotated[
        int | None,
        About(description="Most lines to read, from start_line (default 1).", minimum=1, maximum=MAX_OFFSET),
    ] = None
    encoding: Annotated[
        Encoding | None,
        About(
            description="How the file's text is written; binary gives base64 whatever it holds. Left out: UTF-8, or "
            "base64 where it is none."
        ),
    ] = None


@attrs.frozen(kw_only=True)
class ReadFileResult:
    """read_file; give `content` bytes for a binary file, text else."""

    success: Success = True
    content: Annotated[str | bytes, About(description="Text; base64 when is_binary is true.")]
    size_bytes: Annotated[int, About(description="Size of the whole file.")]
    mime_type: str
    is_binary: bool
    truncated: Annotated[bool, About(description="The file goes on after this part.")]
    next_offset: Annotated[int | None, About(description="Offset of the next part, in bytes; null at the end.")]
    encoding: Annotated[str | None, About(description="What the text was decoded from; null for base64.")] = None
    start_line: Annotated[
        int | None, About(description="Number of the first line in content, when lines were asked for.")
    ] = None
    line_count: Annotated[int | None, About(description="Lines in content, when lines were asked for.")] = None


@attrs.frozen(kw_only=True)
class WriteFile:
    """Replace a text file at once, or append to it."""

    session_id: SessionId
    path: Path
    content: Annotated[Text, About(description="Text to write, as UTF-8, unchanged.", secret=True)]
    mode: Annotated[
        Literal["overwrite", "append"],
        About(description="overwrite replaces the whole file at once; append adds to its end."),
    ] = "overwrite"


@attrs.frozen(kw_only=True)
class WriteFileResult:
    """write_file."""

    success: Success = True
    path: Annotated[str, About(description="The real path that was written.")]
    bytes_written: int


@attrs.frozen(kw_only=True)
class DownloadFile:
    """Read a file of any size in base64 chunks."""

    session_id: SessionId
    path: Path
    chunk_size: Annotated[
        int,
        About(
            description="Bytes of this chunk; more than file_limits.max_read_size is cut to that.",
            minimum=1,
            maximum=MAX_OFFSET,
        ),
    ] = DEFAULT_CHUNK_BYTES
    offset: Annotated[
        int,
        About(
            description="First byte of this chunk: 0, then chunk_offset + chunk_size of the answer before.",
            minimum=0,
            maximum=MAX_OFFSET,
        ),
    ] = 0


@attrs.frozen(kw_only=True)
class DownloadFileResult:
    """download_file."""

    success: Success = True
    transfer_id: TransferId
    filename: str
    mime_type: str
    total_size: Annotated[int, About(description="Bytes of the whole file.")]
    chunk_data: Annotated[bytes, About(description="The bytes of this chunk, base64.")]
    chunk_offset: int
    chunk_size: Annotated[int, About(description="Bytes in this chunk; the next one begins at chunk_offset + this.")]
    is_complete: Annotated[bool, About(description="This chunk reaches the end of the file.")]
    sha256: Sha256 = None
    sha256_missing: Annotated[str | None, About(description="Why the last chunk has no sha256.")] = None


@attrs.frozen(kw_only=True)
class UploadFile:
    """Write a file of any size in base64 chunks; it appears when it is complete."""

    session_id: SessionId
    path: Path
    chunk_data: Annotated[Bytes, About(description="The bytes of this chunk, base64 with padding.", secret=True)]
    transfer_id: Annotated[
        str,
        About(description="Empty for the first chunk, then the transfer_id of the answer.", max_length=64),
    ] = ""
    chunk_offset: Annotated[
        int,
        About(description="Where in the file this chunk begins, in bytes.", minimum=0, maximum=MAX_OFFSET),
    ] = 0
    is_last: Annotated[
        bool, About(description="true: this chunk completes the file, which then replaces the destination at once.")
    ] = False


@attrs.frozen(kw_only=True)
class UploadFileResult:
    """upload_file."""

    success: Success = True
    transfer_id: TransferId
    path: str
    bytes_received: Annotated[int, About(description="Bytes so far; the next chunk begins here.")]
    is_complete: Annotated[bool, About(description="The file is in place.")]
    sha256: Sha256 = None
