"""The part of a call that may be written down: arguments of a tool and texts about them, without their secrets.

Pure. Shown are only arguments that a request class names and does not mark secret, in the shape it asks for;
everything else (contents, stdin, chunks, unknown or misshapen arguments) shows its size. Secret-looking variables,
options, headers, tokens and passwords in URLs show as "[redacted]", and what was hidden here is also taken out of
error texts and tracebacks that quote it.

It errs on both sides: a secret in a shape nobody knows is shown, an innocent word after "token=" is hidden.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import attrs

from broker.audit.secret_words import hidden_in, is_secret_name, without_secrets
from broker.contract.encode import safe_text
from broker.contract.long_text import LongText, Text
from broker.contract.schema import hints_of
from broker.contract.table import TOOLS

REDACTED = "[redacted]"
VALUE_CHARACTERS = 512
"""Of one value in a record; then it is cut, and the record says how many bytes there were."""
REFUSED_CHARACTERS = 1024
"""Of the arguments of a call that was refused: it had no effect, and whoever is refused can call again and again."""
LOOKED_AT = 16
"""Times as much is looked at as is shown, because a pattern may reach past the cut."""
SHOWN_ITEMS = 64
"""Of an argument list, of the environment, of the arguments themselves."""
DIGEST_BYTES = 65_536
"""Contents up to this size get a SHA-256 in the record; it takes 0.1 ms of the one thread that does everything."""
SHOWN_NUMBER = 2**64
"""Python refuses to print integers of thousands of digits."""
SCRUB_CHARACTERS = 6
"""A shorter secret is in every text by chance."""
SCRUBBED_VALUES = 256
"""Of a value that is not shown; a client could send a million little strings."""


def _shapes() -> Mapping[str, tuple[type, ...]]:
    scalars: Mapping[Any, tuple[type, ...]] = {
        str: (str,),
        Literal: (str,),
        bool: (bool,),
        int: (int,),
        float: (int, float),
    }
    shapes: dict[str, tuple[type, ...]] = {}
    for name, hint in (named for tool in TOOLS.values() for named in hints_of(tool.request).items()):
        if hint.type in scalars and not hint.about.secret:  # one name may be a number here and a word there
            shapes[name] = shapes.get(name, ()) + scalars[hint.type]
    return MappingProxyType(shapes)


SHOWN_ARGUMENTS = _shapes()
"""The scalar arguments that are shown, with what they must be; argv and environment are shown item by item."""
SHOWN_LISTS = frozenset({"include", "exclude"})
"""The lists of globs, shown item by item as argv is."""
DIGESTED_ARGUMENTS = frozenset({"content"})
"""Not stdin_input: a digest of a short password is as good as the password."""

_NAME = re.compile(r"""(?<![\w.-])(?P<name>[\w.-]+)["']?\s{0,3}[=:]\s{0,3}""")
_VALUE = re.compile(
    r"""(?:(?:bearer|basic|digest|token)\s+)?(?:"[^"]*(?:"|\Z)|'[^']*(?:'|\Z)|[^\s"'&,;]+)""", re.IGNORECASE
)
_URL_PASSWORD = re.compile(r"(?<![A-Za-z0-9])([A-Za-z][A-Za-z0-9+.-]{0,15}://[^\s/:@]*):[^\s/@]+@")
_URL_TOKEN = re.compile(r"(?<![A-Za-z0-9])(https?://)[^\s/:@]+@", re.IGNORECASE)
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk-|AKIA|ASIA|AIza|npm_|pypi-|hf_|eyJ)[\w.-]{12,}"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,32}PRIVATE KEY-----|\Z)", re.DOTALL
)

_SUSPECT = re.compile(rf"[=:]|-----BEGIN |{_TOKEN.pattern}")
"""What every text has in which one of the patterns finds anything; most texts have not, and are told so at once."""


@attrs.frozen(kw_only=True)
class Redacted:
    """Arguments that may be written down, and the texts that may not. Only `redact_arguments` makes one."""

    shown: Mapping[str, object]
    _secrets: tuple[str, ...] = attrs.field(repr=False)
    _given: Mapping[str, object] = attrs.field(default=MappingProxyType({}), repr=False, eq=False)

    def shortened(self) -> Redacted:
        """As it is recorded of a call that was refused."""
        if _characters(dict(self.shown)) <= REFUSED_CHARACTERS:
            return self
        return attrs.evolve(self, shown=_shortened(self.shown, self._given))

    def scrub(self, text: str) -> str:
        """*text* without what was hidden in the arguments, as it is or as a message would quote it."""
        for secret in (secret for secret in self._secrets if len(secret) <= len(text)):
            for form in (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1]):
                text = text.replace(form, REDACTED)
        return text


def redact_arguments(arguments: object) -> Redacted:
    """The arguments of a call as they came, valid or not, for the record."""
    if not isinstance(arguments, Mapping):
        return Redacted(shown={"arguments": _sized(arguments, digest=False)}, secrets=_leaves(arguments))
    shown: dict[str, object] = {}
    secrets: list[str] = []
    for name, value in list(arguments.items())[:SHOWN_ITEMS]:
        shown[redact_text(str(name))] = _argument(str(name), value, secrets)
    if len(arguments) > SHOWN_ITEMS:
        shown["..."] = f"{len(arguments) - SHOWN_ITEMS} more"
    # The longest first: one secret may be a part of another.
    return Redacted(shown=shown, secrets=tuple(sorted(set(secrets), key=len, reverse=True)), given=arguments)


def redact_command(argv: Sequence[str]) -> str:
    """Return a command line for a person, without its secrets."""
    return " ".join(map(str, _argv(list(argv), [])))


def _shortened(shown: Mapping[str, object], arguments: Mapping[str, object]) -> Mapping[str, object]:
    """*shown*, which is long, cut to REFUSED_CHARACTERS: its first values, and what stands for the others."""
    short: dict[str, object] = {}
    left = REFUSED_CHARACTERS
    for name, value in shown.items():
        size = _characters(value)
        given = arguments.get(name)
        if len(name) + size <= left:
            short[name] = value
        elif isinstance(value, list) and isinstance(given, list):
            short[name] = [*_first(value, left // 2), _whole(given)]
        else:
            short[name] = f"... [{size} characters]"
        left -= len(name) + _characters(short[name])
        if left <= 0:
            break
    if len(short) < len(shown):
        short["..."] = f"{len(shown) - len(short)} more"
    return short


def _characters(value: object) -> int:
    return len(json.dumps(value, default=str))


def _first(items: list[object], characters: int) -> Iterator[object]:
    """The first of *items* that fit."""
    for item in items:
        characters -= _characters(item)
        if characters < 0:
            return
        yield item


def _whole(items: list[object]) -> str:
    """Return what stands for a list: how many, how long, and the SHA-256 of its words, each with a NUL behind it.

    A digest is there only where nothing is hidden: a digest of a short secret is as good as the secret.
    """
    words = [item for item in items if isinstance(item, str)]
    data = b"".join(word.encode(errors="surrogatepass") + b"\0" for word in words)
    told = f"... {len(items)} in all, {len(data)} bytes"
    if len(words) < len(items) or len(data) > DIGEST_BYTES or _has_secrets(words):
        return told
    return f"{told}, sha256 {hashlib.sha256(data).hexdigest()}"


def _has_secrets(words: list[str]) -> bool:
    return any(hidden is not None for hidden in hidden_in(words)) or any(
        hide_secrets(word) != safe_text(word) or without_secrets(word, REDACTED)[1] for word in words
    )


def _argument(name: str, value: object, secrets: list[str]) -> object:
    match value:
        case list() if name == "argv" or name in SHOWN_LISTS:
            return list(_argv(value, secrets))
        case Mapping() if name == "environment":
            return dict(_environment(value, secrets))
        case str() | LongText() if str in SHOWN_ARGUMENTS.get(name, ()):
            return _shown(value)
        case int() | float() if isinstance(value, SHOWN_ARGUMENTS.get(name, ())):
            return value if abs(value) < SHOWN_NUMBER else "a number"
        case None:
            return None
    secrets += _leaves(value)
    return _sized(value, digest=name in DIGESTED_ARGUMENTS)


def _shown(value: Text) -> str:
    if isinstance(value, str):
        return redact_text(value)
    return redact_text(value.head(LOOKED_AT * VALUE_CHARACTERS), size_bytes=value.size)


def _argv(argv: list[object], secrets: list[str]) -> Iterator[object]:
    """Each argument without what must be hidden in it; one with spaces may be a command line itself."""
    shown = argv[:SHOWN_ITEMS]
    hidden_words = hidden_in([argument if isinstance(argument, str) else "" for argument in shown])
    for argument, hidden in zip(shown, hidden_words, strict=True):
        if not isinstance(argument, str):
            secrets += _leaves(argument)
            yield _sized(argument, digest=False)
        elif hidden is not None:
            secrets += _worth_scrubbing(hidden.secret)
            yield f"{redact_text(hidden.shown)}{REDACTED}"
        elif " " in argument:
            yield _script(argument, secrets)
        else:
            yield redact_text(argument)
    if len(argv) > SHOWN_ITEMS:
        yield f"... {len(argv) - SHOWN_ITEMS} more"


def _script(argument: str, secrets: list[str]) -> str:
    looked_at = LOOKED_AT * VALUE_CHARACTERS
    text, found = without_secrets(argument[:looked_at], REDACTED)
    for secret in found[:SCRUBBED_VALUES]:
        secrets += _worth_scrubbing(secret)
    return redact_text(text + argument[looked_at:])


def _environment(environment: Mapping[object, object], secrets: list[str]) -> Iterator[tuple[str, object]]:
    for key, value in list(environment.items())[:SHOWN_ITEMS]:
        name = str(key)
        if isinstance(value, str) and not is_secret_name(name):
            yield redact_text(name), redact_text(value)
        else:
            secrets += _leaves(value)
            yield redact_text(name), REDACTED
    if len(environment) > SHOWN_ITEMS:
        yield "...", f"{len(environment) - SHOWN_ITEMS} more"


def redact_text(text: str, characters: int = VALUE_CHARACTERS, size_bytes: int | None = None) -> str:
    """*text* without what looks like a secret in it, cut to *characters* with its size.

    *size_bytes* is that of the text where only its beginning is given.
    """
    hidden = hide_secrets(text[: LOOKED_AT * characters])
    if len(text) <= characters and len(hidden) <= 2 * characters:
        return hidden
    size = len(text.encode(errors="surrogatepass")) if size_bytes is None else size_bytes
    return f"{hidden[:characters]}... [{size} bytes]"


def hide_secrets(text: str) -> str:
    """*text* without what looks like a secret in it. Every pattern takes time linear in the text."""
    if not _SUSPECT.search(text):
        return safe_text(text)
    for pattern, replacement in (
        (_PRIVATE_KEY, REDACTED),
        (_URL_PASSWORD, rf"\1:{REDACTED}@"),
        (_URL_TOKEN, rf"\1{REDACTED}@"),
        (_TOKEN, REDACTED),
    ):
        text = pattern.sub(replacement, text)
    return safe_text("".join(_without_named(text)))


def _without_named(text: str) -> Iterator[str]:
    """The pieces of *text* without the values of secret names. A value that is shown may have names in it again."""
    position = 0
    while (name := _NAME.search(text, position)) is not None:
        yield text[position : name.end()]
        position = name.end()
        if _hides(name["name"].strip("-.")) and (value := _VALUE.match(text, position)) is not None:
            yield REDACTED
            position = value.end()
    yield text[position:]


def _hides(name: str) -> bool:
    # A bare "key:" is in every message about a setting; a bare variable KEY is hidden by its own name.
    return is_secret_name(name) and name.lower() not in {"key", "keys"}


def _sized(value: object, *, digest: bool) -> dict[str, object]:
    """The size of a value that is not shown, and the digest of a small one."""
    if not isinstance(value, str | LongText):
        return {"type": type(value).__name__}
    data = value.encode() if isinstance(value, LongText) else value.encode(errors="surrogatepass")
    if digest and len(data) <= DIGEST_BYTES:
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return {"bytes": len(data)}


def _leaves(value: object) -> tuple[str, ...]:
    """Every string inside a JSON value, for scrubbing; no error text is long enough to quote a LongText."""
    found: list[str] = []
    pending = [value]
    while pending and len(found) < SCRUBBED_VALUES:
        match pending.pop():
            case str() as text:
                found += _worth_scrubbing(text)
            case list() as items:
                pending += items
            case Mapping() as mapping:
                pending += mapping.values()
    return tuple(found)


def _worth_scrubbing(text: str) -> list[str]:
    return [text] if len(text) >= SCRUB_CHARACTERS else []
