"""JSON Schema (2020-12) from attrs classes: one source for what is documented, checked and announced.

A field's hint says everything: its type, and in `Annotated[..., About(...)]` its meaning, unit and limits. `About`s
of an alias and of the field that uses it are merged. Knows no tool; decoding the same hints is
`broker/contract/decode.py`.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from broker.contract.long_text import Bytes, Text

JSON_TYPES: Mapping[Any, str] = types.MappingProxyType(
    {str: "string", Text: "string", bool: "boolean", int: "integer", float: "number", str | bytes: "string"}
)


@attrs.frozen(kw_only=True)
class About:
    """The rest about a field, beside its type. Lengths are characters, `max_bytes` counts UTF-8."""

    description: str | None = None
    minimum: int | None = None
    maximum: int | None = None
    above: int | None = None
    pattern: str | None = None
    min_length: int | None = None
    max_length: int | None = None
    max_bytes: int | None = None
    min_items: int | None = None
    max_items: int | None = None
    secret: bool | None = None
    """The value is never quoted in a fault."""

    def over(self, under: About) -> About:
        """This, with what it leaves open taken from *under*."""
        mine = {k: v for k, v in attrs.asdict(self).items() if v is not None}
        return attrs.evolve(under, **mine)


@attrs.frozen(kw_only=True)
class Hint:
    """A type hint taken apart. `type` is a scalar, a Literal, an attrs class, tuple or Mapping (then see `item`)."""

    type: Any
    about: About
    optional: bool = False
    item: Hint | None = None
    choices: tuple[str, ...] = ()


def hint_of(annotation: Any, about: About | None = None) -> Hint:
    """Take one annotation apart; it must be of a shape that `Hint` names."""
    about = about or About()
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        for extra in args[1:]:
            about = extra.over(about)
        inner = hint_of(args[0])
        return attrs.evolve(inner, about=about.over(inner.about))
    if origin in (Union, types.UnionType) and type(None) in args:
        (rest,) = (arg for arg in args if arg is not type(None))
        return attrs.evolve(hint_of(rest, about), optional=True)
    if origin is Literal:
        return Hint(type=Literal, about=about, choices=args)
    if origin is tuple:
        return Hint(type=tuple, about=about, item=hint_of(args[0]))
    if origin is Mapping:
        return Hint(type=Mapping, about=about, item=hint_of(args[1]))
    return Hint(type=annotation, about=about)


def hints_of(cls: type[attrs.AttrsInstance]) -> Mapping[str, Hint]:
    """Return the fields of an attrs class with their hints, in order."""
    annotations = get_type_hints(cls, include_extras=True)
    return types.MappingProxyType({f.name: hint_of(annotations[f.name]) for f in attrs.fields(cls)})


def input_schema(cls: type[attrs.AttrsInstance]) -> dict[str, Any]:
    """Describe what a client may send: an object with these properties and no other."""
    return _closed(_object_schema(cls))


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """*schema* so that its objects, and those within, have no properties but those it names."""
    if "anyOf" in schema:
        return schema | {"anyOf": [_closed(choice) for choice in schema["anyOf"]]}
    if "properties" not in schema:
        return schema
    properties = {name: _closed(inner) for name, inner in schema["properties"].items()}
    return schema | {"properties": properties, "additionalProperties": False}


def output_schema(cls: type[attrs.AttrsInstance], failure: Mapping[str, Any]) -> dict[str, Any]:
    """Describe what a client may get: the result, or a failure with *failure*'s properties and what is known of it."""
    properties = _object_schema(cls)["properties"]
    properties["success"].pop("default", None)  # an answer always says it
    return {"type": "object", "properties": properties | dict(failure), "required": ["success"]}


def _object_schema(cls: type[attrs.AttrsInstance]) -> dict[str, Any]:
    hints = hints_of(cls)
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    for field in attrs.fields(cls):
        schema["properties"][field.name] = _schema_of(hints[field.name]) | _default_of(field)
    if required := [f.name for f in attrs.fields(cls) if f.default is attrs.NOTHING]:
        schema["required"] = required
    return schema


def _default_of(field: attrs.Attribute[Any]) -> dict[str, Any]:
    # A default of None means "left out": the description says what happens then.
    if field.default is attrs.NOTHING or field.default is None:
        return {}
    if isinstance(field.default, attrs.Factory):  # type: ignore[arg-type]  # typed as a function
        return {"default": {}}  # mappings are the only factories
    if isinstance(field.default, tuple):
        return {"default": list(field.default)}
    return {"default": field.default}


def _schema_of(hint: Hint) -> dict[str, Any]:
    about = {"description": hint.about.description} if hint.about.description else {}
    schema = _shape_of(hint) | _limits_of(hint)
    if hint.optional:
        schema = {"anyOf": [schema, {"type": "null"}]}
    return about | schema


def _shape_of(hint: Hint) -> dict[str, Any]:
    if attrs.has(hint.type):
        return _object_schema(hint.type)
    if hint.type is tuple:
        return {"type": "array", "items": _item_schema(hint)}
    if hint.type is Mapping:
        return {"type": "object", "additionalProperties": _item_schema(hint)}
    if hint.choices:
        return {"type": "string", "enum": list(hint.choices)}
    if hint.type in (bytes, Bytes):
        return {"type": "string", "contentEncoding": "base64"}
    return {"type": JSON_TYPES[hint.type]}


def _item_schema(hint: Hint) -> dict[str, Any]:
    if hint.item is None:
        raise TypeError(f"{hint.type} needs the type of its items")
    return _schema_of(hint.item)


def _limits_of(hint: Hint) -> dict[str, Any]:
    about, mapping = hint.about, hint.type is Mapping
    limits = {
        "minimum": about.minimum,
        "maximum": about.maximum,
        "exclusiveMinimum": about.above,
        "pattern": about.pattern,
        "minLength": about.min_length,
        "maxLength": about.max_length,
        "minProperties" if mapping else "minItems": about.min_items,
        "maxProperties" if mapping else "maxItems": about.max_items,
    }
    return {name: limit for name, limit in limits.items() if limit is not None}
