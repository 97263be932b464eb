"""The decision whether a path may be touched: allowed, blocked and guarded patterns, component by component.

Blocked wins, and what is beneath a blocked path is blocked with it. Guarded is the same for changes alone: read,
listed and entered, never written, made, moved away or removed. The decision is about a name: file tools
ask twice, for the name they were given (`lexical_path`) and for the real path of what was opened, since
only the kernel knows where a symbolic link leads. `kernel_roots` says what the kernel may be told to grant.

An opened directory is one that the broker keeps in a closed place. It is looked at as if it were the root of the
machine: of a path in it only what comes after it counts, for the closed patterns that begin with `**` alone. So
`**/.ssh/**` holds in it, and what closes the place around it does not.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal

import attrs

from policy.candidates import Candidates
from policy.decision import Allow, Deny, PathDecision, shown
from policy.packs.closing import Closing
from policy.packs.packs import PACKS
from policy.pattern import ANY_DEPTH, Pattern, compile_pattern, components, is_glob, matched_depths
from policy.treefilter import TreeFilter, tree_filter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from policy.rules import ClosedPath, Policy

Purpose = Literal["read", "list", "enter", "write", "make", "remove"]
# enter: as a working directory; write: a file of this name; make: a directory; remove: delete or move away
CHANGES: Final = frozenset[Purpose](("write", "make", "remove"))

_ANY_NAME = "\x7f\x7f"  # one that no rule means: what is allowed for it is allowed for every name
SHOWN_PATTERNS = 20  # of the allowed ones in a refusal


@attrs.frozen(kw_only=True)
class Root:
    """The meaning of an allowed pattern to a kernel that grants directories: `prefix` and all beneath it.

    `literal`: `prefix` is all that there is to know. Otherwise `glob` has wildcards beneath `prefix`, and
    the caller looks up in the file system what it stands for now. Not `beneath`: the pattern allows only the
    path itself, which the kernel can say of a file but not of a directory.
    """

    pattern: str  # as in the file
    prefix: str  # the longest beginning without wildcards
    glob: str  # the absolute pattern, without a `/**` at its end
    literal: bool
    beneath: bool


def _check_opened(_rules: object, _field: object, opened: tuple[Pattern, ...]) -> None:
    """Opened directories are named one by one: what a wildcard might open nobody knows."""
    for pattern in opened:
        if not _root_parts(pattern) or any(is_glob(part) for part in _root_parts(pattern)):
            raise ValueError(f"an opened path is a directory other than '/', without wildcards: {pattern.text!r}")


@attrs.frozen(kw_only=True)
class PathRules:
    """The path rules of a policy for one session user.

    `guarded` is closed for changes only. `opened` are directories (`/x` or `/x/**`) in which closed patterns mean
    what the module says; no file can name them, only the broker does.
    """

    allowed: tuple[Pattern, ...]
    blocked: tuple[Pattern, ...]
    guarded: tuple[Pattern, ...] = ()
    opened: tuple[Pattern, ...] = attrs.field(default=(), validator=_check_opened)
    blocked_extensions: frozenset[str]  # lower case, without the dot
    _may_block: Candidates = attrs.field(init=False, eq=False, repr=False)
    _may_guard: Candidates = attrs.field(init=False, eq=False, repr=False)

    @_may_block.default
    def _sort_blocked(self) -> Candidates:
        return Candidates.among(self.blocked)

    @_may_guard.default
    def _sort_guarded(self) -> Candidates:
        return Candidates.among(self.guarded)

    def closing(self, parts: tuple[str, ...], *, changes: bool) -> tuple[Pattern, int] | None:
        """The first pattern that closes a path with these components, or what it is in, and at which depth.

        With *changes* the patterns that guard, otherwise those that block.
        """
        closed = self._may_guard if changes else self._may_block
        return closed.first_match(parts, self._opened_depth(parts))

    @cached_property
    def tree(self) -> TreeFilter:
        """The same rules as expressions, made when they are asked for first: there may be hundreds of patterns."""
        return tree_filter(
            allowed=self.allowed,
            blocked=self.blocked,
            guarded=self.guarded,
            opened=self.opened,
            blocked_extensions=self.blocked_extensions,
        )

    def _opened_depth(self, parts: tuple[str, ...]) -> int:
        """Return how many components lead to the innermost opened directory that the path is, or is in; 0: to none."""
        roots = (_root_parts(pattern) for pattern in self.opened)
        return max((len(root) for root in roots if parts[: len(root)] == root), default=0)

    @classmethod
    def compile(
        cls,
        allowed: Iterable[str],
        blocked: Iterable[str | ClosedPath],
        home: str,
        extensions: Iterable[str] = (),
    ) -> PathRules:
        """Compile patterns; `~` becomes *home*, an absolute path. Packs among *blocked* become their rows.

        Raises:
            ValueError: a pattern would match nothing, or *home* is not a plain absolute path.
        """
        if not home.startswith("/") or is_glob(home):
            raise ValueError(f"the home directory must be an absolute path without '*' and '?': {home!r}")
        closings = [(pack, row) for entry in blocked for pack, row in _rows_of(entry)]
        return cls(
            allowed=tuple(_compile("allowed_paths", text, home) for text in allowed),
            blocked=tuple(_closed(pack, row, home) for pack, row in closings if row.close == "all"),
            guarded=tuple(_closed(pack, row, home) for pack, row in closings if row.close == "writing"),
            blocked_extensions=frozenset(extension.lstrip(".").lower() for extension in extensions),
        )

    @classmethod
    def of(cls, policy: Policy, home: str) -> PathRules:
        """Compile the path rules of *policy* for a user with this *home*."""
        extensions = policy.file_limits.blocked_extensions
        return cls.compile(policy.allowed_paths, policy.blocked_paths, home, extensions)


def _rows_of(entry: str | ClosedPath) -> Iterator[tuple[str, Closing]]:
    """Yield what an entry of `blocked_paths` closes, each with the pack that it comes from ("" for none)."""
    if isinstance(entry, str):
        yield "", Closing(entry, why="")
    elif entry.path is not None:
        yield "", Closing(entry.path, why=entry.why, close=entry.close)
    elif entry.use is not None:
        for row in PACKS[entry.use]:
            yield entry.use, row


def _compile(name: str, text: str, home: str) -> Pattern:
    return Pattern(text=text, parts=compile_pattern(name, text, home))


def _closed(pack: str, row: Closing, home: str) -> Pattern:
    parts = compile_pattern("blocked_paths", row.pattern, home)
    return Pattern(text=row.pattern, parts=parts, pack=pack, why=row.why)


def lexical_path(cwd: str, path: str, home: str) -> str:
    """Return *path*, relative to *cwd*, as an absolute path without `.`, `..` and doubled slashes.

    `~` and `~/x` mean *home*. Links are not looked at, so that `..` takes back a name and not a directory.
    An empty path stays empty, which `decide_path` refuses.
    """
    if not path:
        return ""
    if path == "~" or path.startswith("~/"):
        path = home + "/" + path[1:]
    absolute = path if path.startswith("/") else f"{cwd}/{path}"
    parts: list[str] = []
    for part in components(absolute):
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
    return "/" + "/".join(parts)


def decide_beneath(rules: PathRules, directory: str) -> PathDecision:
    """Decide about what lies in *directory*, whatever its name: `/home/*` allows directories, and nothing in them."""
    return decide_path(rules, f"{directory.rstrip('/')}/{_ANY_NAME}", "enter")


def decide_path(rules: PathRules, path: str | bytes, purpose: Purpose) -> PathDecision:
    """Decide about an absolute, normal path: one that `lexical_path` or the kernel gave.

    A name that is no UTF-8 is a str with surrogate escapes, or bytes.
    """
    text = path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path
    malformed = _malformed(text)
    if malformed:
        return Deny(rule="path", reason=f"Path {shown(text)} {malformed}")
    parts = components(text)
    denial = _closed_to(rules, text, parts, purpose)
    if denial:
        return denial
    names = frozenset(parts)
    for pattern in rules.allowed:
        if pattern.may_match(names) and len(parts) in matched_depths(pattern.parts, parts):
            return _extension_denial(rules, text, parts, purpose) or Allow(
                rule="allowed_paths", reason=f"{shown(text)} matches {shown(pattern.text)}.", subject=text
            )
    return Deny(rule="allowed_paths", reason=f"Path {shown(text)} is outside the allowed paths: {_list(rules)}.")


def _malformed(path: str) -> str | None:
    if "\0" in path:
        return "holds a NUL character, which no file name can: leave it out."
    if not path.startswith("/"):
        return "is not absolute: begin it with '/' or '~/', or name it relative to the working directory."
    if path != "/" and not {"", ".", ".."}.isdisjoint(path.split("/")[1:]):
        return "holds '.', '..' or an empty component: write the plain path."
    return None


def _closed_to(rules: PathRules, path: str, parts: tuple[str, ...], purpose: Purpose) -> Deny | None:
    found = rules.closing(parts, changes=False)
    if found:
        return _closed_denial(path, parts, *found, what="is blocked by")
    found = rules.closing(parts, changes=True) if purpose in CHANGES else None
    return _closed_denial(path, parts, *found, what="may be read but not changed:") if found else None


def _root_parts(pattern: Pattern) -> tuple[str, ...]:
    return pattern.parts[:-1] if pattern.parts[-1:] == (ANY_DEPTH,) else pattern.parts


def _closed_denial(path: str, parts: tuple[str, ...], pattern: Pattern, depth: int, *, what: str) -> Deny:
    where = "" if depth == len(parts) else f", since {shown('/' + '/'.join(parts[:depth]))} is"
    source = ": ".join(filter(None, (pattern.pack and f"pack {pattern.pack}", pattern.why)))
    return Deny(
        rule="blocked_paths",
        reason=f"Path {shown(path)} {what} {shown(pattern.text)}{f' ({source})' if source else ''}{where}: use "
        "another path, or ask the operator of this machine.",
    )


def _extension_denial(rules: PathRules, path: str, parts: tuple[str, ...], purpose: Purpose) -> Deny | None:
    """Deny to write `x.so`, and `libx.so.1` too: every part after a dot counts."""
    if purpose != "write" or not parts:
        return None
    for extension in parts[-1].lower().split(".")[1:]:
        if extension in rules.blocked_extensions:
            return Deny(
                rule="file_limits.blocked_extensions",
                reason=f"Files named like {shown(path)} must not be written: the extension '.{extension}' is "
                "blocked. Choose another name.",
            )
    return None


def _list(rules: PathRules) -> str:
    texts = [pattern.text for pattern in rules.allowed]
    more = f" and {len(texts) - SHOWN_PATTERNS} more" if len(texts) > SHOWN_PATTERNS else ""
    return (", ".join(texts[:SHOWN_PATTERNS]) or "there are none") + more


def kernel_roots(rules: PathRules) -> tuple[Root, ...]:
    """Return what the allowed patterns grant, in the terms of a kernel that grants directories."""
    return tuple(_root(pattern) for pattern in rules.allowed)


def _root(pattern: Pattern) -> Root:
    beneath = pattern.parts[-1:] == (ANY_DEPTH,)
    stem = pattern.parts[:-1] if beneath else pattern.parts
    plain = next((i for i, part in enumerate(stem) if is_glob(part)), len(stem))
    return Root(
        pattern=pattern.text,
        prefix="/" + "/".join(stem[:plain]),
        glob="/" + "/".join(stem),
        literal=plain == len(stem),
        beneath=beneath,
    )
