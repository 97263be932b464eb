"""What is no long string is bounded before anything parses it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from broker.http.body_shape import (
    LONG_BYTES,
    MAX_ELEMENTS,
    MAX_LONG_STRINGS,
    MAX_OUTSIDE_BYTES,
    SLICE_BYTES,
    BodyShape,
    shape_of,
)
from tests.support.front import House, legacy_session, modern_call, modern_headers, raw, serving

MIB = 1024 * 1024
BODY_BYTES = 20 * MIB
MANY = MAX_ELEMENTS + 1


def elements(value: Any) -> int:
    """The values and names of what a parser builds."""
    match value:
        case dict():
            return 1 + len(value) + sum(map(elements, value.values()))
        case list():
            return 1 + sum(map(elements, value))
        case _:
            return 1


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text('a",:[{\\]}\n\u0141'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('a",:[\\'), inner, max_size=4),
    max_leaves=12,
)


def fed(body: bytes, size: int) -> BodyShape:
    shape = BodyShape()
    for start in range(0, len(body), size):
        shape.feed(body[start : start + size])
    return shape


@example(["\n", 1], 3)
@example(["\\", '"', '\\"', "[,", {"\\\\": "a"}], 1)
@given(values, st.integers(1, 9))
def test_no_parser_builds_more_than_is_counted(value: Any, size: int) -> None:
    shape = fed(json.dumps(value, ensure_ascii=size % 2 == 0).encode(), size)
    assert elements(value) <= shape.elements <= 2 * elements(value)


@given(st.text('a",:[]{}\\1 '), st.integers(1, 9))
def test_whatever_is_json_is_counted_and_pieces_make_no_difference(text: str, size: int) -> None:
    body = text.encode()
    try:
        value = json.loads(body)
    except ValueError:
        return
    whole, pieces = fed(body, len(body)), fed(body, size)
    assert (whole.elements, whole.outside_bytes) == (pieces.elements, pieces.outside_bytes)
    assert whole.elements >= elements(value)


def with_params(**params: Any) -> bytes:
    usual = json.loads(modern_call("echo", {})[0])
    usual["params"] |= params
    return json.dumps(usual).encode()


META = json.loads(modern_call("echo", {})[0])["params"]["_meta"]
HEAVY = {
    "unknown arguments": with_params(arguments={f"a{i}": 0 for i in range(MANY)}),
    "meta keys": with_params(_meta=META | {f"a{i}": 0 for i in range(MANY)}),
    "numbers": with_params(arguments={"argv": [0] * MANY}),
    "short strings": with_params(arguments={"argv": [""] * MANY}),
    "empty objects": with_params(arguments={"argv": [{}] * MANY}),
    "nesting": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":' + b"[" * MANY + b"]" * MANY + b"}",
    "a batch": b"[" + b",".join([b'{"jsonrpc":"2.0","id":1,"method":"ping"}'] * (MANY // 6)) + b"]",
    "beside a long string": with_params(arguments={"chunk_data": "QUJD" * MIB, "argv": [0] * MANY}),
    "one number": with_params(arguments={"a": 0}).replace(b'"a": 0', b'"a": 0.' + b"1" * (MAX_OUTSIDE_BYTES + 1)),
    "white space": with_params(arguments={}) + b" " * (MAX_OUTSIDE_BYTES + 1),
}


async def both_eras(house: House, body: bytes) -> list[tuple[int, Any]]:
    async with raw(house) as conn:
        legacy = await legacy_session(conn)
        asked = [await conn.ask("POST", "/mcp", body, **h) for h in (modern_headers("tools/call", "echo"), legacy)]
    return [(heard.status, heard.json if heard.status == 400 else None) for heard in asked]


@pytest.mark.parametrize("body", HEAVY.values(), ids=HEAVY.keys())
async def test_a_body_of_many_things_is_refused_before_it_is_parsed(body: bytes) -> None:
    async with serving(max_body_bytes=BODY_BYTES) as house:
        for status, answer in await both_eras(house, body):
            assert status == 400
            assert answer["error"]["code"] == -32600
            limit = answer["error"]["message"]
            assert f" {MAX_ELEMENTS} " in limit or f" {MAX_OUTSIDE_BYTES} " in limit
        assert house.handler.calls == []


async def test_a_body_in_another_encoding_is_refused_when_it_is_long() -> None:
    body = with_params(arguments={"a": "\u2241" * MANY}).decode().encode("utf-16")
    async with serving(max_body_bytes=BODY_BYTES) as house:
        assert [status for status, _ in await both_eras(house, body)] == [400, 400]


LARGE = {
    "base64": {"chunk_data": "QUJD" * MIB},
    "escapes": {"content": 'a "quoted" \\ line, [of {code}:\n' * (MIB // 8)},
    "two long strings": {"old": "a,b" * MIB, "new": "[{," * MIB},
    "all the arguments there may be": {"argv": ["x"] * 256, "environment": {f"A{i}": "x" for i in range(1000)}},
}


@pytest.mark.parametrize("arguments", LARGE.values(), ids=LARGE.keys())
async def test_an_honest_large_call_arrives_as_it_is(arguments: dict[str, Any]) -> None:
    body, headers = modern_call("echo", arguments)
    async with serving(max_body_bytes=BODY_BYTES + MIB) as house, raw(house) as conn:
        heard = await conn.ask("POST", "/mcp", body, **headers)
        assert heard.status == 200
        assert house.handler.calls[-1].arguments == arguments


def string(size: int, content: bytes = b"x") -> bytes:
    """A string that has so many bytes with its quotes."""
    return b'"' + (content * size)[: size - 2] + b'"'


@pytest.mark.parametrize("content", [b"x", b'\\"', b"\\\\", b" "], ids=repr)
@pytest.mark.parametrize(
    "before", [0, 1, SLICE_BYTES - 1, SLICE_BYTES, SLICE_BYTES + 1, 3 * SLICE_BYTES - LONG_BYTES + 1]
)
@pytest.mark.parametrize("size", [LONG_BYTES - 1, LONG_BYTES, LONG_BYTES + 2, 2 * SLICE_BYTES + 2])
async def test_a_long_string_is_found_wherever_it_begins(size: int, before: int, content: bytes) -> None:
    long = string(size, content if size % 2 == 0 else b"x")  # no half of an escape at its end
    shape = await shape_of(b" " * before + long + b',"y"')
    assert shape.long_strings == ([(before, before + size)] if size >= LONG_BYTES else [])


async def test_short_strings_far_from_each_other_are_no_long_one() -> None:
    assert (await shape_of(b'"a"' + b" " * (3 * SLICE_BYTES) + b'"b"' + b" " * LONG_BYTES)).long_strings == []
    assert (await shape_of(b" " * SLICE_BYTES + b'"' + b" " * LONG_BYTES)).long_strings == []


async def test_no_more_long_strings_are_told_than_a_call_can_use() -> None:
    shape = await shape_of(b",".join([string(LONG_BYTES)] * (MAX_LONG_STRINGS + 2)))
    step = LONG_BYTES + 1
    assert shape.long_strings == [(at * step, at * step + LONG_BYTES) for at in range(MAX_LONG_STRINGS)]


async def test_a_short_body_is_not_scanned() -> None:
    assert (await shape_of(b"," * MAX_ELEMENTS)).fault == ""
    assert (await shape_of(b"," * MANY)).fault != ""


async def test_a_body_at_the_limit_is_let_through_and_one_beyond_is_not() -> None:
    def of_elements(count: int) -> bytes:
        return b"[" + b",".join([b"1"] * (count - 1)) + b"]"

    assert (await shape_of(of_elements(MAX_ELEMENTS))).fault == ""
    assert str(MANY) in (await shape_of(of_elements(MANY))).fault
    assert (await shape_of(b" " * MAX_OUTSIDE_BYTES)).fault == ""
    assert str(MAX_OUTSIDE_BYTES + 1) in (await shape_of(b" " * (MAX_OUTSIDE_BYTES + 1))).fault


async def test_others_have_their_turn_while_a_body_is_looked_at() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        assert not (await shape_of(b'"' + b"x" * (8 * SLICE_BYTES))).fault
        nursery.cancel_scope.cancel()
    assert turns >= 7
