"""Output without what only a terminal understands: escape sequences, control characters, lines drawn over. Pure."""

from __future__ import annotations

import re

SEQUENCE_BYTES = 4096
"""No escape sequence is longer; an ESC further back than this from the end begins none that is still incomplete."""

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # OSC, DCS, SOS, PM, APC: titles, links, pictures
    r"|\x1b[ -/]+[0-~]"
    r"|\x1b[0-~]"
    r"|\x9b[0-?]*[ -/]*[@-~]"
)
_OVERSTRUCK = re.compile(r"[^\n\x08]\x08")
_LINE_END = re.compile(r"(?<!\r)\r+\n|\r")  # looked for from the first of a run alone, or a long run takes its square
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")
_OPEN_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]*\x1b?|[ -/]*)\Z")


def strip_ansi(text: str) -> str:
    """*text* as plain lines: a line that was drawn over again and again becomes several, tabs stay."""
    plain = _ESCAPES.sub("", text)
    plain = _OVERSTRUCK.sub("", plain)
    return _CONTROLS.sub("", _LINE_END.sub("\n", plain))


def whole_sequences(data: bytes) -> bytes:
    """*data* without an escape sequence at its end that is not complete."""
    begin = max(0, len(data) - SEQUENCE_BYTES)
    found = _OPEN_SEQUENCE.search(data, begin)
    return data[: found.start()] if found else data
