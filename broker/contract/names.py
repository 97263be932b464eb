r"""File names as a client reads and writes them, reversibly. Pure.

A name in Linux is bytes, JSON carries text. Each byte of a name that is no UTF-8 is shown as `\xff` (two lower-case
hexadecimal digits), and such a text in a path that a client sends stands for that byte again. A backslash of a name
that would read as the beginning of one is shown as `\x5c`. So every name that is shown can be used as it is, and no
other text in a path has a second meaning: `\x41`, `\n` or `\xFF` are the characters that they are.
"""

from __future__ import annotations

import base64
import binascii
import os
import re

_ESCAPE = re.compile(rb"\\x([89a-f][0-9a-f]|5c)")
_ESCAPED = re.compile(r"\\(?=x(?:[89a-f][0-9a-f]|5c))|[\udc80-\udcff]")


def shown_path(path: str) -> str:
    """*path*, or a part of one, as Unicode text that `real_name` turns back into it."""
    return _ESCAPED.sub(lambda match: f"\\x{_byte(match[0]):02x}", path)


def real_name(text: str) -> str:
    """The path that a client means: what `shown_path` escaped is bytes again (as surrogateescape)."""
    if "\\x" not in text:
        return text
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), text.encode()))


def usable_path(path: str, working_dir: str) -> str:
    """An absolute path as a client may pass it on: relative to its working directory where it is beneath it."""
    beneath = path.removeprefix("/" if working_dir == "/" else f"{working_dir}/")
    if beneath == path or not beneath:
        return shown_path("." if path == working_dir else path)
    return shown_path(f"./{beneath}" if beneath.startswith("~") else beneath)


def cursor_after(relative: str) -> str:
    """An opaque text that stands for a place in a listing."""
    return base64.urlsafe_b64encode(os.fsencode(relative)).decode()


def place_of_cursor(cursor: str) -> str:
    """The place that a cursor stands for. Raises: ValueError when it is none."""
    try:
        place = os.fsdecode(base64.b64decode(cursor.encode(), b"-_", validate=True))
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("no cursor") from error
    if not place or "\0" in place or place.startswith("/"):
        raise ValueError("no cursor")
    return place


def _byte(character: str) -> int:
    return ord(character) & 0xFF
