"""A long string goes past the SDK, and neither handler nor client can tell, whatever the body looks like."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mcp.client import Client
from mcp_types import TextContent
from pydantic_core import from_json

from broker.http.asgi import LARGE_EVENT_BYTES
from broker.http.body_shape import shape_of
from broker.http.bulk import BULK_BYTES, MAX_BACKSLASHES, REST_BYTES, SLICE_BYTES, Bulk
from tests.support.front import (
    LEGACY,
    MODERN,
    Heard,
    House,
    legacy_call,
    legacy_session,
    modern_call,
    modern_headers,
    raw,
    serving,
    sse_messages,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),  # the legacy client's, not ours
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),  # of a body that fails
]
ERAS = pytest.mark.parametrize("era", [MODERN, LEGACY])
LONG = "QUJD" * (BULK_BYTES // 4)
HOLE = "here it is"
EMOJI = "\U0001f600"
BODY_BYTES = 4 * 1024 * 1024


def taken(body: bytes) -> bool:
    return Bulk().take(body) != body


# --- any body, and what two parsers of JSON make of it

TWINS = [(b"", b"")] * 4 + [(b'"params"', b'"params": {}, "params"'), (b"}}", b'}, "name": "b"}')]
ODD = [
    b"",
    b"",
    b"\\n",
    b'\\"',
    b'\\"' * 9,
    b'\\\\"',
    b'\\\\\\"',
    b"\\",
    b'"',
    b'","x":"',
    b"\x01",
    b"\n",
    b"\0",
    b"\x7f",
    "é".encode(),
    b"\xff",
]
names = st.sampled_from(["chunk_data", "path", "a", "é", 'quo"te', "back\\slash", "bulk:00", ""])
words = st.sampled_from([HOLE, HOLE, "", "x", 'a "quoted" \\ word', "é\0", "bulk:0123456789abcdef0123456789abcdef"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=4,
)
tools = st.sampled_from(["echo", "bulk", "fail", "none", HOLE])
arguments = st.dictionaries(names, values, max_size=3) | st.just({"chunk_data": HOLE, "path": "f"})
params = st.fixed_dictionaries(
    {"name": tools, "arguments": arguments | values},
    optional={"_meta": values, "task": values, HOLE: values},
)
messages = st.fixed_dictionaries(
    {
        "jsonrpc": st.sampled_from(["2.0", "2.0", "2.0", "1.0", 2.0]),
        "id": st.integers(0, 9) | st.sampled_from(["1", True, None, 1.0, 10**30, HOLE]),
        "method": st.sampled_from(["tools/call", "tools/call", "tools/call", "tools/list", "ping", HOLE]),
        "params": params | values,
    },
    optional={"result": values, HOLE: values},
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Mostly calls with one long string somewhere, some of them no longer JSON."""
    proper = draw(st.fixed_dictionaries({"name": st.just("echo"), "arguments": arguments}))
    call = draw(st.sampled_from([proper, proper, draw(params), draw(values)]))
    usual = {"jsonrpc": "2.0", "id": draw(st.integers(0, 9)), "method": "tools/call", "params": call}
    message = draw(st.sampled_from([usual, usual, usual, draw(messages), [usual]]))
    text = json.dumps(message, ensure_ascii=draw(st.booleans()), separators=draw(st.sampled_from([None, (",", ":")])))
    at = draw(st.integers(0, len(LONG)))
    string = LONG[:at].encode() + draw(st.sampled_from(ODD)) + LONG[at:].encode()
    head, *tails = text.encode().split(f'"{HOLE}"'.encode())
    hole = draw(st.integers(0, max(0, len(tails) - 1)))  # the others stay short
    body = head + b"".join((b'"%s"' % string if i == hole else b'"short"') + tail for i, tail in enumerate(tails))
    twin = draw(st.sampled_from(TWINS))
    body = body.replace(*twin) if twin[0] else body
    cut = draw(st.integers(0, len(head)))
    body = body[:cut] + draw(st.sampled_from([b""] * 9 + [b'"', b"\\", b" ", b"\0", b"\xef\xbb\xbf"])) + body[cut:]
    return draw(st.sampled_from([b""] * 9 + [b"\xef\xbb\xbf", b" "])) + body


def parsed(parse: Any, body: bytes) -> Any:
    try:
        return parse(body)
    except (ValueError, RecursionError):
        return ValueError


@pytest.mark.long
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@example(modern_call("echo", {"a": LONG})[0])
@example(modern_call("echo", {"a": LONG})[0].decode().encode("utf-16"))
@example(modern_call("echo", {"a": LONG})[0].decode().encode("utf-32-be"))
@example(modern_call("echo", {"a": "\u4141" * BULK_BYTES})[0].decode("unicode-escape").encode("utf-16-le"))
@example(b"\xef\xbb\xbf" + modern_call("echo", {"a": LONG})[0])
@example(modern_call("echo", {"a": LONG})[0].replace(b"QUJD", b"QU\x01D", 1))
@given(bodies())
def test_what_is_taken_out_and_given_back_is_what_any_parser_finds(body: bytes) -> None:
    bulk = Bulk()
    rest = bulk.take(body)
    if rest == body:
        given_back = {"a": "bulk:0123456789abcdef0123456789abcdef"}
        assert bulk.give_back(given_back) is given_back
        return
    assert len(rest) < REST_BYTES + 100
    for parse in (json.loads, from_json):
        whole, left = parsed(parse, body), parsed(parse, rest)
        if left is not ValueError:  # the one takes a byte order mark, the other does not
            left["params"]["arguments"] = bulk.give_back(left["params"]["arguments"])
        assert left == whole


def test_the_usual_call_is_taken_and_the_unusual_is_not() -> None:
    usual, _ = modern_call("echo", {"path": "f", "chunk_data": LONG, "is_last": True})
    assert taken(usual)
    assert taken(legacy_call("echo", {"chunk_data": LONG}))
    assert not taken(legacy_call("echo", {"chunk_data": LONG[:-3]})), "too short"
    assert taken(legacy_call("echo", {'"': "\\", "chunk_data": LONG + "\n\u00e9"})), "escapes"
    assert taken(legacy_call("echo", {"chunk_data": LONG + '"' + LONG + '\\"' * 9})), "quotes, and in its middle"
    assert not taken(legacy_call("echo", {"chunk_data": LONG + "\\" * MAX_BACKSLASHES + '"'})), "not found at once"
    assert not taken(legacy_call("echo", {"environment": {"A": LONG}})), "no argument itself"
    assert not taken(legacy_call(LONG, {})), "no argument"
    assert not taken(legacy_call("echo", {"chunk_data": LONG}, True)), "an id that is none"
    assert not taken(usual.replace(b"tools/call", b"tools/list")), "no call"
    assert not taken(usual.replace(b'"2.0"', b'"1.0"')), "no JSON-RPC"
    assert not taken(usual.replace(b'"path"', b'"chunk_data": "", "path"').replace(b'"is_last"', b'"chunk_data"'))
    assert not taken(b"[" + usual + b"]"), "a batch"
    assert not taken(usual + b" " * REST_BYTES), "much beside it"
    assert not taken(usual[:-1]), "not JSON"


def taken_from(content: bytes) -> Any:
    """What the long argument is, taken out and given back."""
    bulk = Bulk()
    body = bytearray(
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"e","arguments":{"a":"%s"}}}' % content
    )
    rest = json.loads(bulk.take(body))
    return bulk.give_back(rest["params"]["arguments"])["a"]


TOKENS = [
    b"x",
    "é".encode(),
    "\u4e2d".encode(),
    EMOJI.encode(),
    b"\\ud83d\\ude00",
    b"\\u00e9",
    b"\\n",
    b"\\\\",
    b'\\"',
    b"\\u005c",
]


@settings(max_examples=60, deadline=None)
@example([b"\\ud83d\\ude00"], 1)
@example([b"\\\\"], 1)
@example([EMOJI.encode()], 3)
@given(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=5), st.integers(0, 12))
def test_a_string_that_is_parsed_in_slices_is_what_the_whole_is(tokens: list[bytes], shift: int) -> None:
    unit = b"".join(tokens)
    content = b"x" * shift + unit * (3 * SLICE_BYTES // len(unit))
    whole = json.loads(b'"%s"' % content)
    text = taken_from(content)
    assert str(text) == whole
    assert len(text) == len(whole)
    assert text == whole


@pytest.mark.parametrize("odd", [b"\\ud83d", b"\\ude00", b"\x01", b"\xff", b"\\x", b"\x80" * 300_000], ids=repr)
def test_what_is_no_string_in_one_slice_is_none(odd: bytes) -> None:
    bulk = Bulk()
    body = modern_call("echo", {"a": "x" * (3 * SLICE_BYTES)})[0].replace(b"xx", odd + b"x", 1)
    rest = bulk.take(bytearray(body))
    assert rest == body, "it goes the ordinary way, unharmed"


def test_two_long_strings_are_taken_where_they_are() -> None:
    one, two = "x\n" * SLICE_BYTES, "é" * SLICE_BYTES
    arguments = {"path": "f", "old": one, "new": two, "more": [1, 2]}
    body = bytearray(modern_call("echo", arguments)[0])
    shape = trio.run(shape_of, body)
    bulk = Bulk()
    rest = bulk.take_all(body, shape.long_strings)
    assert len(rest) < REST_BYTES
    assert bulk.give_back(json.loads(rest)["params"]["arguments"]) == arguments
    assert [*map(len, bulk.buffers())] == [len(two.encode()), len(one)]
    given = bulk.give_back(json.loads(rest)["params"]["arguments"])["new"]
    bulk.drop()
    assert str(given) == ""


def test_a_long_string_that_is_no_argument_stays_where_it_is() -> None:
    message = json.loads(modern_call("echo", {"a": "x" * SLICE_BYTES})[0])
    message["params"]["_meta"]["b"] = "y" * SLICE_BYTES
    body = bytearray(json.dumps(message).encode())
    shape = trio.run(shape_of, body)
    assert len(shape.long_strings) == 2
    assert Bulk().take_all(body, shape.long_strings) is body
    assert json.loads(body) == message


@pytest.mark.parametrize(("missing", "is_taken"), [(0, True), (1, False)])
def test_so_long_a_string_is_taken_and_no_shorter_one(missing: int, *, is_taken: bool) -> None:
    string = "x" * (BULK_BYTES - 2 - missing)  # the quotes count
    assert taken(legacy_call("echo", {"chunk_data": string})) == is_taken


@pytest.mark.parametrize(("more", "is_taken"), [(0, True), (1, False)])
def test_so_much_may_be_beside_it_and_no_more(more: int, *, is_taken: bool) -> None:
    body = legacy_call("echo", {"path": "f", "chunk_data": LONG})
    beside = REST_BYTES - (len(body) - len(LONG) - 2) + more
    behind, before = body + b" " * beside, body.replace(b'"path"', b" " * beside + b'"path"')
    assert taken(behind) == taken(before) == is_taken


# --- a result, and the answer that it is put into


def test_what_json_writes_as_itself_is_held_and_put_into_the_answer() -> None:
    bulk = Bulk()
    structured = {"success": True, "path": "f", "chunk_data": LONG, "other": LONG}
    shown = bulk.hold(structured, ["path", "none", "chunk_data"])
    marker = shown["chunk_data"]
    assert shown == {**structured, "chunk_data": marker}
    assert len(marker) < 100
    body = json.dumps(shown).encode()
    assert bulk.holds
    assert json.loads(b"".join(bulk.fill(body))) == structured
    assert bulk.growth(body) == len(LONG) - len(marker)
    assert bulk.fill(b"another") == (b"another",)
    assert bulk.growth(b"another") == 0


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(LONG[:-1], id="short"),
        pytest.param(LONG + "é", id="not ASCII"),
        pytest.param(LONG + '"', id="that JSON escapes"),
        pytest.param(LONG + "\\n", id="that JSON would read as something else"),
        pytest.param(["x"] * BULK_BYTES, id="no text"),
        pytest.param(None, id="none"),
    ],
)
def test_any_other_result_goes_the_ordinary_way(value: object) -> None:
    bulk = Bulk()
    structured = {"chunk_data": value}
    assert bulk.hold(structured, ["chunk_data"]) is structured
    assert not bulk.holds
    assert bulk.fill(b"body") == (b"body",)
    assert bulk.growth(b"body") == 0


# --- any body, by way of the SDK: the same body with so much white space behind it takes the ordinary way


def as_slow(body: bytes) -> bytes:
    slow = body + b" " * (REST_BYTES + 1)
    assert not taken(slow)
    return slow


async def outcome(house: House, era: str, body: bytes) -> tuple[int, bytes, Any, list[Any]]:
    """Status, type and body of the answer, and what the handler was asked."""
    already = len(house.handler.calls)
    async with raw(house) as conn:
        headers = modern_headers("tools/call", named(body)) if era == MODERN else await legacy_session(conn)
        heard = await conn.ask("POST", "/mcp", body, **headers)
    calls = [(call.tool, call.arguments, call.request_id) for call in house.handler.calls[already:]]
    return heard.status, heard.headers.get(b"content-type", b""), heard.body, calls


def named(body: bytes) -> str:
    message = parsed(json.loads, body)
    try:
        name = message["params"]["name"]
    except (KeyError, TypeError):
        return "echo"
    return name if isinstance(name, str) and name.isalpha() and len(name) < 100 else "echo"


META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
}


def call_with(**changes: Any) -> dict[str, Any]:
    """A call with a long argument, at the end, where an error that quotes a message would show it."""
    params = {"name": "echo", "_meta": META, "arguments": {"a": LONG}} | changes.pop("params", {})
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params} | changes


ODD_CALLS = {
    "as it should be": call_with(),
    "no version": call_with(jsonrpc=None),
    "an old version": call_with(jsonrpc="1.0"),
    "a true id": call_with(id=True),
    "a null id": call_with(id=None),
    "a broken id": call_with(id=1.5),
    "a list as id": call_with(id=[1]),
    "a number as method": call_with(method=7),
    "another method": call_with(method="ping"),
    "no method": call_with(method="nothing/here"),
    "a greeting": call_with(method="initialize"),
    "an answer as well": call_with(result={}),
    "an error as well": call_with(error=7),
    "something else": call_with(more=1),
    "a list as meta": call_with(params={"_meta": []}),
    "a bad token": call_with(params={"_meta": {**META, "progressToken": []}}),
    "no meta": call_with(params={"_meta": {}}),
    "an unknown version": call_with(params={"_meta": {**META, "io.modelcontextprotocol/protocolVersion": "x"}}),
    "a number as name": call_with(params={"name": 7}),
    "an unknown tool": call_with(params={"name": "none"}),
    "a failing tool": call_with(params={"name": "fail"}),
    "a task that is none": call_with(params={"task": 7}),
    "answers to questions": call_with(params={"inputResponses": 7, "requestState": 7}),
}


@ERAS
@pytest.mark.parametrize("message", ODD_CALLS.values(), ids=ODD_CALLS.keys())
async def test_no_fault_of_a_call_is_told_differently(era: str, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    async with serving(max_body_bytes=BODY_BYTES) as house:
        assert await outcome(house, era, body) == await outcome(house, era, as_slow(body))


@pytest.mark.long
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(bodies(), min_size=4, max_size=4), st.lists(params, min_size=4, max_size=4), st.sampled_from(ODD))
def test_the_handler_and_the_client_cannot_tell_the_fast_way_from_the_slow_one(
    any_bodies: list[bytes], calls: list[dict[str, Any]], odd: bytes
) -> None:
    proper = [
        json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"_meta": META, **call}}).encode()
        for call in calls
    ]
    filled = [body.replace(HOLE.encode(), LONG.encode() + odd, 1) for body in proper]

    async def compare() -> None:
        with trio.fail_after(120):
            async with serving(max_body_bytes=BODY_BYTES) as house:
                for era in (MODERN, LEGACY):
                    for body in any_bodies + filled:
                        fast, slow = await outcome(house, era, body), await outcome(house, era, as_slow(body))
                        assert fast == slow

    trio.run(compare)


# --- there and back, by real clients


@ERAS
@pytest.mark.parametrize("size", [1, 8])
async def test_a_long_result_that_the_text_tells_too_arrives_twice_and_whole(era: Any, size: int) -> None:
    text = 'é\n"\\ \x01 \u2028 ' + EMOJI + "x" * (SLICE_BYTES - 20) + EMOJI * size * SLICE_BYTES
    async with serving(max_body_bytes=4 * BODY_BYTES) as house, Client(house.url, mode=era) as mcp:
        result = await mcp.call_tool("echo", {"word": text, "name": "f"})
        assert result.structured_content == {"success": True, "word": text, "name": "f"}
        assert isinstance(result.content[0], TextContent)
        assert json.loads(result.content[0].text) == result.structured_content


async def test_a_long_result_is_of_the_length_that_was_said() -> None:
    async with serving(max_body_bytes=BODY_BYTES) as house, raw(house) as conn:
        body, headers = modern_call("echo", {"word": "\u4e2d\n" * SLICE_BYTES})
        assert (await conn.ask("POST", "/mcp", body, **headers)).status == 200
        body, headers = modern_call("echo", {"word": "the connection goes on"})
        assert b"the connection goes on" in (await conn.ask("POST", "/mcp", body, **headers)).body


@ERAS
@pytest.mark.parametrize(
    "text",
    [LONG[:-1], LONG, LONG * 16, LONG[:-3] + '"\\\n', LONG + "é", "bulk:" + LONG],
    ids=["short", "long", "longer than an event may be", "escaped", "not ASCII", "like a marker"],
)
async def test_long_strings_go_there_and_back_unchanged(era: Any, text: str) -> None:
    async with serving(max_body_bytes=BODY_BYTES) as house, Client(house.url, mode=era) as mcp:
        result = await mcp.call_tool("bulk", {"chunk_data": text, "name": "f"})
        assert house.handler.calls[-1].arguments == {"chunk_data": text, "name": "f"}
        assert result.structured_content == {"success": True, "name": "é", "chunk_data": text}
        assert isinstance(result.content[0], TextContent)
        assert json.loads(result.content[0].text) == {"success": True, "name": "é"}
        again = await mcp.call_tool("echo", {"word": "the connection goes on"})
        assert again.structured_content == {"success": True, "word": "the connection goes on"}


@pytest.mark.parametrize("size", [BULK_BYTES, LARGE_EVENT_BYTES - 2000, LARGE_EVENT_BYTES])
async def test_clients_without_structured_content_get_the_long_string_as_text(size: int) -> None:
    text = LONG * (size // len(LONG)) + LONG[: size % len(LONG)]
    async with serving(max_body_bytes=BODY_BYTES) as house, raw(house) as conn:
        headers = await legacy_session(conn, "2025-03-26")
        heard = await conn.ask("POST", "/mcp", legacy_call("bulk", {"chunk_data": text}), **headers)
        (message,) = messages_of(heard)
        assert "structuredContent" not in message["result"]
        assert json.loads(message["result"]["content"][0]["text"])["chunk_data"] == text


def messages_of(heard: Heard) -> list[Any]:
    """As JSON, and then of the length that was said; or as a stream, where the size is that of an event."""
    if heard.headers[b"content-type"] == b"application/json":
        assert int(heard.headers[b"content-length"]) == len(heard.body) >= LARGE_EVENT_BYTES
        return [heard.json]
    assert len(heard.body) < LARGE_EVENT_BYTES
    return sse_messages(heard.body)


async def test_a_long_string_answers_its_own_request_alone() -> None:
    """Two calls at once on two connections: each gets its own."""
    heard: dict[str, Any] = {}
    async with serving(max_body_bytes=BODY_BYTES) as house, trio.open_nursery() as nursery:

        async def ask(letter: str) -> None:
            async with raw(house) as conn:
                body, headers = modern_call("bulk", {"chunk_data": letter * BULK_BYTES})
                heard[letter] = (await conn.ask("POST", "/mcp", body, **headers)).json

        for letter in "abcd":
            nursery.start_soon(ask, letter)
    for letter, answer in heard.items():
        assert answer["result"]["structuredContent"]["chunk_data"] == letter * BULK_BYTES
