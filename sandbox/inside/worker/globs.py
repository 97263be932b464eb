"""Globs over paths that are relative to the top of a walk, as regular expressions (child side, stdlib only).

`*` and `?` stay within a component, `**` is any number of components, `[a-z]` and `[!a-z]` are characters,
`{a,b}` is one of several. A glob without a slash is about the last name, however deep it is; one with a slash is
about the path from the top. A backslash takes the meaning from the character after it.
"""

from __future__ import annotations

import errno
import re
from types import MappingProxyType

from sandbox.kernel.files import Refused

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Matcher = Callable[[str], object]

_WILD = MappingProxyType({"*": "[^/]*", "?": "[^/]"})


def compile_globs(globs: Iterable[str]) -> Matcher | None:
    """Return a function that tells whether a relative path matches one of *globs*; None when there are none."""
    expressions = [translate(glob) for glob in globs]
    if not expressions:
        return None
    return re.compile("|".join(f"(?:{e})" for e in expressions), re.DOTALL).fullmatch


def translate(glob: str) -> str:
    """Return the regular expression of one glob. Raises: Refused when it has no meaning."""
    anywhere = "(?:.*/)?" if "/" not in glob else ""
    return anywhere + _Glob(glob.lstrip("/")).expression()


class _Glob:
    """Reads one glob from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._braces = 0

    def expression(self) -> str:
        pieces = []
        while self._at < len(self._text):
            pieces.append(self._next())
        if self._braces:
            raise Refused("pattern", errno.EINVAL, "the glob has a '{' without its '}'")
        return "".join(pieces)

    def _next(self) -> str:
        text, at = self._text, self._at
        if text.startswith("**", at) and (at == 0 or text[at - 1] == "/"):
            if text.startswith("**/", at):
                self._at += 3
                return "(?:[^/]+/)*"
            if at + 2 == len(text):
                self._at += 2
                return ".+"
        self._at += 1
        return self._one(text[at])

    def _one(self, c: str) -> str:
        if c in "{},":
            return self._brace(c)
        if c == "[":
            return self._characters()
        if c == "\\" and self._at < len(self._text):
            self._at += 1
            c = self._text[self._at - 1]
        elif c in _WILD:
            return _WILD[c]
        return re.escape(c)

    def _brace(self, c: str) -> str:
        if c == "{":
            self._braces += 1
            return "(?:"
        if not self._braces:
            return re.escape(c)
        if c == "}":
            self._braces -= 1
            return ")"
        return "|"

    def _characters(self) -> str:
        """A `[...]`; without its end the bracket is a character like others."""
        end = self._text.find("]", self._at + 2 if self._text.startswith("!", self._at) else self._at + 1)
        if end < 0:
            return re.escape("[")
        inside, self._at = self._text[self._at : end], end + 1
        negated = inside.startswith("!")
        members = _members(inside[negated:])
        if not members:
            raise Refused("pattern", errno.EINVAL, f"the glob's [{inside}] is no set of characters")
        return f"(?!/)[{'^' if negated else ''}{members}]"


def _members(text: str) -> str:
    """Return the inside of a regular expression's set, "" if *text* is none: empty, or with a range backwards."""
    members, at = "", 0
    while at < len(text):
        first, last = text[at], text[at + 2 : at + 3]
        if last and text[at + 1] == "-":
            if first > last:
                return ""
            members += f"{re.escape(first)}-{re.escape(last)}"
            at += 3
        else:
            members += re.escape(first)
            at += 1
    return members
