"""YAML text to plain values that still know their lines.

A strict subset, because these files decide what an agent may do: one document, UTF-8, no aliases, anchors or
tags, no key twice, no number that YAML 1.1 reads otherwise than people do (`010` is 8 there, `1:30` is 90).
Pure: reads no file, and every fault comes back as a value. Knows no setting.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import yaml

from config.faults import Fault, KeyPath, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

# libyaml's parser where PyYAML was built with it: ten times faster, the same events.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER = yaml.resolver.Resolver()

DEPTH_LIMIT = 20  # the deepest key of the grammar is at 8; a parser that recurses must have an end
NUMBER_CHARACTERS = 20  # 2**63 has 19 digits, and Python refuses to read more than 4300

_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_FRACTION = re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9_]+)([eE][-+][0-9]+)?")

Scalar: TypeAlias = str | int | float | bool | None
Content: TypeAlias = "Scalar | tuple[Node, ...] | Mapping[str, Node]"


@attrs.frozen(kw_only=True)
class Node:
    """A value and the line of its key (of itself, in a list)."""

    value: Content
    line: int

    def at(self, path: KeyPath) -> Node:
        """Return what `path` names, or its nearest ancestor that the file has."""
        node = self
        for step in path:
            below = node.child(step)
            if below is None:
                break
            node = below
        return node

    def child(self, step: str | int) -> Node | None:
        """Return the node one step down, if there is one."""
        if isinstance(self.value, Mapping):
            return self.value.get(step) if isinstance(step, str) else None
        if isinstance(self.value, tuple) and isinstance(step, int) and 0 <= step < len(self.value):
            return self.value[step]
        return None

    def plain(self) -> Any:
        """Return the value without lines, as dicts, lists and scalars."""
        if isinstance(self.value, Mapping):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, tuple):
            return [node.plain() for node in self.value]
        return self.value


@attrs.frozen(kw_only=True)
class Document:
    """The part of a file that could be read, and what could not. A faulty value is present as None."""

    file: str
    root: Node
    faults: tuple[Fault, ...]


def parse_yaml(text: str, file: str) -> Document:
    """Read one YAML document; an empty one is None at line 1."""
    builder = _Builder(file=file, events=yaml.parse(text, Loader=_LOADER))
    try:
        root = builder.document()
    except yaml.YAMLError as exc:
        builder.faults.append(_syntax_fault(exc, text, file))
        root = Node(value=None, line=1)
    return Document(file=file, root=root, faults=tuple(builder.faults))


class _Refused(yaml.YAMLError):
    """A construct after which reading on would mislead. Caught in this module only."""

    def __init__(self, event: yaml.Event, message: str) -> None:
        super().__init__(message)
        self.problem = message
        self.problem_mark = event.start_mark


def _syntax_fault(exc: yaml.YAMLError, text: str, file: str) -> Fault:
    mark = getattr(exc, "problem_mark", None) or getattr(exc, "context_mark", None)
    position = getattr(exc, "position", 0)  # a character YAML forbids has an offset instead of a mark
    line = mark.line + 1 if mark else text.count("\n", 0, position) + 1
    said = getattr(exc, "problem", None) or getattr(exc, "reason", None) or "cannot be read"
    known = isinstance(exc, _Refused)
    return Fault(file=file, line=line, path=(), message=said if known else f"not valid YAML: {printable(said)}")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


@attrs.define(eq=False, kw_only=True)
class _Builder:
    """Turns parser events into nodes; notes what is wrong and goes on where that makes sense."""

    file: str
    events: Iterator[yaml.Event]
    faults: list[Fault] = attrs.field(factory=list)

    def document(self) -> Node:
        root = Node(value=None, line=1)
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _Refused(event, "a second document starts here (---); only one is read")
            elif isinstance(event, yaml.NodeEvent):
                root = self._node(event, (), _line(event))
        return root

    def _node(self, event: yaml.Event, path: KeyPath, line: int) -> Node:
        if len(path) > DEPTH_LIMIT:
            raise _Refused(event, f"nested deeper than {DEPTH_LIMIT} levels")
        if getattr(event, "anchor", None):  # an alias has the anchor it repeats
            raise _Refused(event, "anchors (&) and aliases (*) are not accepted: write the value out")
        tag = getattr(event, "tag", None)
        if tag not in {None, "!"}:
            raise _Refused(event, f"the tag {printable(str(tag))} is not accepted: write a plain value")
        match event:
            case yaml.MappingStartEvent():
                return Node(value=MappingProxyType(self._mapping(path)), line=line)
            case yaml.SequenceStartEvent():
                return Node(value=tuple(self._items(path)), line=line)
            case yaml.ScalarEvent():
                return Node(value=self._scalar(event, path, line), line=line)
        raise TypeError(f"no node begins with {event}")

    def _mapping(self, path: KeyPath) -> dict[str, Node]:
        found: dict[str, Node] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            line = _line(event)
            key = self._key(event, path, line)
            node = self._node(next(self.events), (*path, key), line)
            if key in found:
                said = f"given twice; the first is on line {found[key].line}"
                self._fault(line, (*path, key), said)
            else:
                found[key] = node
        return found

    def _key(self, event: yaml.Event, path: KeyPath, line: int) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            raise _Refused(event, "a key must be text, not a list, a mapping or an alias")
        key = self._node(event, path, line).value
        if isinstance(key, str):
            return key
        written = str(event.value)
        self._fault(line, (*path, written), "a key must be text: put it in quotes")
        return written

    def _items(self, path: KeyPath) -> Iterator[Node]:
        position = 0
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            yield self._node(event, (*path, position), _line(event))
            position += 1

    def _scalar(self, event: yaml.ScalarEvent, path: KeyPath, line: int) -> Scalar:
        text = str(event.value)
        try:
            return _read_scalar(text, plain=event.implicit[0])
        except ValueError as exc:
            self._fault(line, path, str(exc))
            return None

    def _fault(self, line: int, path: KeyPath, message: str) -> None:
        self.faults.append(Fault(file=self.file, line=line, path=path, message=message))


def _read_scalar(text: str, *, plain: bool) -> Scalar:
    """Read one scalar; quoted ones are text. Raises ValueError with a sentence for a person."""
    tag = _RESOLVER.resolve(yaml.ScalarNode, text, (plain, not plain))  # type: ignore[no-untyped-call]
    match tag.rpartition(":")[2]:
        case "null":
            return None
        case "bool":
            return text.casefold() in {"yes", "true", "on"}
        case "int" | "float" if len(text) > NUMBER_CHARACTERS:
            raise ValueError(f"a number of {len(text)} characters is too long")
        case "int" if _DECIMAL.fullmatch(text):
            return int(text.replace("_", ""))
        case "float" if _FRACTION.fullmatch(text) and math.isfinite(float(text.replace("_", ""))):
            return float(text.replace("_", ""))
        case "float" if ":" not in text:  # .inf, .nan and 1.0e+999
            raise ValueError(f"{printable(text)} is not a finite number")
        case "int" | "float":
            raise ValueError(f"{printable(text)} is an ambiguous number: write plain decimal, or quote it as text")
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("text must not contain NUL or half a surrogate pair")
    return text
