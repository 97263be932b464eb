"""The tool table: what is announced is what is checked, and every answer is JSON that fits its schema."""

from __future__ import annotations

import base64
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import attrs
import jsonschema  # type: ignore[import-untyped]  # it brings no types
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from broker.audit.audit import EventType
from broker.contract import commands, files, sessions, transfers, trees
from broker.contract.commands import TerminalSize
from broker.contract.encode import encode
from broker.contract.errors import BrokerError, ErrorCode
from broker.contract.faults import SHOWN_FAULTS, Fault, InvalidArguments
from broker.contract.fields import MAX_PATH_BYTES
from broker.contract.long_text import Buffer, Bytes, LongText, Text
from broker.contract.schema import Hint, hints_of
from broker.contract.table import FAILURE_PROPERTIES, TOOLS, Request, Tool, find_tool
from broker.gateway import STEPS, events_of

# A busy machine is no failure.
unhurried = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
DESIGN = {
    "create_session": "id working_dir environment",
    "kill_session": "session_id force",
    "execute_command": "session_id argv timeout_seconds stdin_input confirm"
    " background wait_seconds terminal strip_ansi",
    "read_file": "session_id path offset limit start_line line_count encoding",
    "write_file": "session_id path content mode",
    "list_directory": "session_id path include_hidden depth max_entries cursor",
    "download_file": "session_id path chunk_size offset",
    "upload_file": "session_id path chunk_data transfer_id chunk_offset is_last",
    "get_system_info": "",
    "get_process_list": "session_id",
    "kill_process": "session_id pid signal",
    "edit_file": "session_id path old_text new_text expected_count expected_sha256",
    "search_files": "session_id pattern path literal case_sensitive include exclude include_hidden context_lines "
    "max_matches max_bytes timeout_seconds",
    "find_files": "session_id pattern path type exclude include_hidden max_matches timeout_seconds",
    "stat_path": "session_id path follow_symlinks checksum",
    "make_directory": "session_id path parents",
    "move_path": "session_id source destination overwrite timeout_seconds",
    "copy_path": "session_id source destination recursive overwrite timeout_seconds",
    "delete_path": "session_id path recursive confirm timeout_seconds",
    "open_transfer": "session_id direction path size_bytes sha256 archive",
    "stat_transfer": "session_id transfer_id",
    "finish_transfer": "session_id transfer_id",
    "cancel_transfer": "session_id transfer_id",
    "read_output": "session_id command_id stream cursor max_bytes wait_seconds encoding strip_ansi",
    "write_stdin": "session_id command_id data close",
    "list_commands": "session_id",
    "wait_command": "session_id command_id wait_seconds strip_ansi",
    "signal_command": "session_id command_id signal",
    "search_output": "session_id command_id pattern context stream ignore_case cursor max_matches",
    "resize_terminal": "session_id command_id rows columns",
}
COMMAND_RESULT = (
    "exit_code signal stdout stderr duration_ms pid stdout_truncated stderr_truncated timed_out"
    " command_id running next_cursor stdout_omitted_bytes stderr_omitted_bytes dropped_bytes memory_peak_bytes"
    " cpu_user_ms cpu_system_ms oom_killed killed_by"
)
TRANSFER_RESULT = (
    "transfer_id direction path state bytes_done next_offset size_bytes sha256 expires_at error "
    "archive_entries left_out_count left_out sha256_missing"
)
RESULTS = {
    "create_session": "session_id working_dir created_at idle_timeout_seconds isolation",
    "kill_session": "session_id processes_ended commands_ended",
    "execute_command": COMMAND_RESULT,
    "read_file": "content size_bytes mime_type is_binary truncated next_offset encoding start_line line_count",
    "write_file": "path bytes_written",
    "list_directory": "path entries total_count truncated next_cursor",
    "download_file": "transfer_id filename mime_type total_size chunk_data chunk_offset chunk_size is_complete sha256 "
    "sha256_missing",
    "upload_file": "transfer_id path bytes_received is_complete sha256",
    "get_system_info": "hostname platform cpu memory disks uptime_seconds isolation",
    "get_process_list": "processes total_count session_id",
    "kill_process": "pid signal_sent was_running",
    "edit_file": "path replacements diff diff_truncated size_bytes sha256",
    "search_files": "path matches truncated stopped_by files_searched files_with_matches bytes_searched "
    "skipped_binary skipped_closed skipped_unreadable skipped_hard_links",
    "find_files": "path entries truncated stopped_by entries_searched skipped_closed skipped_unreadable",
    "stat_path": "path type size_bytes modified_at mode owner_uid link_count link_target sha256",
    "make_directory": "path created",
    "move_path": "path moved_from",
    "copy_path": "path files_copied bytes_copied skipped_count skipped",
    "delete_path": "path entries_deleted",
    "open_transfer": "transfer_id url method expires_at curl path size_bytes",
    "stat_transfer": TRANSFER_RESULT,
    "finish_transfer": TRANSFER_RESULT,
    "cancel_transfer": TRANSFER_RESULT,
    "read_output": "data cursor next_cursor total_bytes running exit_code signal dropped_bytes evicted_bytes",
    "write_stdin": "bytes_written waiting_bytes",
    "list_commands": "commands running_count max_concurrent_commands",
    "wait_command": COMMAND_RESULT,
    "signal_command": "command_id signal_sent was_running",
    "search_output": "matches complete next_cursor dropped_bytes",
    "resize_terminal": "command_id rows columns",
}
# The customer's own, in the document: what is added to them is optional and stands behind.
CUSTOMERS = {
    "create_session": ("", "session_id"),
    "execute_command": ("session_id argv", "exit_code signal stdout stderr duration_ms pid"),
    "read_file": ("session_id path offset limit", "content size_bytes mime_type is_binary truncated next_offset"),
    "list_directory": ("session_id path include_hidden", "path entries total_count truncated"),
}
HUGE = 10**5000  # more digits than Python would print
COMMAND = TOOLS["execute_command"]
tools = st.sampled_from(sorted(TOOLS.values(), key=lambda tool: tool.name))
every_tool = pytest.mark.parametrize("tool", TOOLS.values(), ids=list(TOOLS))

# --- the table


def test_what_is_added_to_the_customers_tools_is_optional_and_stands_behind() -> None:
    assert list(TOOLS)[:11] == list(DESIGN)[:11]
    for name, (arguments, fields) in CUSTOMERS.items():
        tool = TOOLS[name]
        assert " ".join(hints_of(tool.request)).startswith(arguments)
        assert " ".join(hints_of(tool.result)).startswith(f"success {fields}")
        assert set(tool.input_schema.get("required", ())) <= {"session_id", "path", "argv"}


def test_every_tool_has_the_names_arguments_and_results_of_the_design() -> None:
    assert list(TOOLS) == list(DESIGN)
    for name, tool in TOOLS.items():
        assert " ".join(hints_of(tool.request)) == DESIGN[name]
        assert " ".join(hints_of(tool.result)) == f"success {RESULTS[name]}"
    families = [vars(family) for family in (commands, files, sessions, transfers, trees)]
    answered = {name: family[name] for family in families for name in family if name.endswith("Result")}
    asked = {name.removesuffix("Result") for name in answered}
    assert {tool.result for tool in TOOLS.values()} == set(answered.values())
    assert {tool.request for tool in TOOLS.values()} == {family[n] for family in families for n in asked & set(family)}


def test_every_tool_has_its_events() -> None:
    assert events_of("execute_command").begun is EventType.COMMAND_STARTED
    assert events_of("execute_command").failed is EventType.COMMAND_FAILED
    known = {name for name in TOOLS if events_of(name) != events_of("no such tool")}
    of_commands = {"read_output", "write_stdin", "list_commands", "wait_command", "signal_command", "search_output"}
    of_transfers = {"stat_transfer", "finish_transfer", "cancel_transfer"}  # their effects have events of their own
    others = {"get_system_info", "get_process_list", "resize_terminal"}
    assert set(TOOLS) - known == others | of_commands | of_transfers


def test_every_path_that_a_tool_takes_is_decided_on_before_it_is_performed() -> None:
    """But for two, whose purpose is not that of the tool: see `decisions.decide`."""
    for name in TOOLS.keys() - {"create_session", "open_transfer"}:
        request = TOOLS[name].request
        paths = {field for field, hint in hints_of(request).items() if hint.about.max_bytes == MAX_PATH_BYTES}
        assert STEPS[request].paths.keys() == paths


def test_system_facts_keep_their_nested_names() -> None:
    properties = TOOLS["get_system_info"].output_schema["properties"]
    assert "usage_percent" in properties["cpu"]["properties"]
    assert "total_bytes" in properties["memory"]["properties"]
    assert "mount_point" in properties["disks"]["items"]["properties"]
    entry = TOOLS["list_directory"].output_schema["properties"]["entries"]["items"]
    assert list(entry["properties"]) == ["name", "type", "size_bytes", "modified_at"]


@every_tool
def test_every_tool_says_what_it_is_and_does(tool: Tool) -> None:
    assert tool.title
    assert 40 < len(tool.description) < 700
    assert set(tool.annotations) == {"readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"}
    assert not (tool.annotations["readOnlyHint"] and tool.annotations["destructiveHint"])
    assert tool.bulk_fields <= set(hints_of(tool.result))


@every_tool
def test_schemas_are_valid_closed_and_described(tool: Tool) -> None:
    for schema in (tool.input_schema, tool.output_schema):
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object"
        assert json.loads(json.dumps(schema)) == schema
        assert "$ref" not in json.dumps(schema)
    assert tool.input_schema["additionalProperties"] is False
    assert all("description" in argument for argument in tool.input_schema["properties"].values())
    assert tool.output_schema["required"] == ["success"]
    assert set(FAILURE_PROPERTIES) < set(tool.output_schema["properties"])


def test_only_chunks_of_a_download_are_bulk() -> None:
    assert {name: tool.bulk_fields for name, tool in TOOLS.items() if tool.bulk_fields} == {
        "download_file": {"chunk_data"}
    }


def test_a_flood_of_unknown_arguments_is_counted_and_the_first_are_named() -> None:
    with pytest.raises(InvalidArguments, match="200000 unknown arguments") as caught:
        TOOLS["kill_session"].decode({"session_id": "s", **{f"sess{n:06}": 1 for n in range(200_000)}})
    assert len(caught.value.faults) == SHOWN_FAULTS + 1
    assert [fault.name for fault in caught.value.faults[1:3]] == ['"sess000000"', '"sess000001"']


def test_unknown_arguments_that_can_all_be_named_are_not_counted() -> None:
    given = {f"sess{n}": 1 for n in range(SHOWN_FAULTS)}
    assert set(faults("kill_session", {"session_id": "s"} | given)) == {f'"{name}"' for name in given}


def test_an_unknown_argument_is_told_those_there_are() -> None:
    assert faults("kill_session", {"session_id": "s", "x": 1})['"x"'].expected == "one of session_id, force"
    assert faults("get_system_info", {"x": 1})['"x"'].expected == "no arguments at all"


def test_an_argument_with_parts_is_decoded_and_its_faults_are_named_by_part() -> None:
    call = {"session_id": "s", "argv": ["ls"]}
    assert COMMAND.decode(call | {"terminal": {"rows": 2, "columns": 3}}).terminal == TerminalSize(rows=2, columns=3)
    for terminal, named in (({"rows": "x", "colums": 3}, {"terminal.rows", 'terminal."colums"'}), ([], {"terminal"})):
        assert set(faults("execute_command", call | {"terminal": terminal})) == named


def test_a_value_of_another_kind_is_told_the_kind_and_the_range_that_is_wanted() -> None:
    call = {"session_id": "s", "path": "a"}
    assert faults("upload_file", call | {"chunk_data": 1})["chunk_data"].expected == "a base64 string"
    assert faults("create_session", {"environment": []})["environment"].expected == "an object"
    offset = faults("read_file", call | {"offset": "1"})["offset"].expected
    assert re.fullmatch(r"an integer of at least 0 and at most \d+", offset)
    timeout = faults("execute_command", {"session_id": "s", "argv": ["ls"], "timeout_seconds": "1"})["timeout_seconds"]
    assert re.fullmatch(r"a number above 0 and at most [\d.]+", timeout.expected)


def test_an_unknown_tool_is_told_the_nearest() -> None:
    with pytest.raises(BrokerError, match="did you mean execute_command") as caught:
        find_tool("execute_comand")
    assert caught.value.code is ErrorCode.INVALID_ARGUMENTS
    with pytest.raises(BrokerError, match="the tools are create_session"):
        find_tool("\u202equux\n")


# --- decoding: the customer's own examples


def test_a_long_text_is_a_string_where_one_is_wanted() -> None:
    """What was taken out of a body comes as one."""
    text = LongText(Buffer("\u4e2d".encode() * 30_000))
    write = {"session_id": "s", "path": "f", "content": text}
    assert TOOLS["write_file"].decode(write).content is text
    matching = "text that matches"
    wrongs = {"session_id": matching, "expected_sha256": matching, "path": "at most 4095 characters"}
    for wrong, expected in wrongs.items():
        with pytest.raises(InvalidArguments) as caught:
            TOOLS["edit_file"].decode({"session_id": "s", "path": "f", "old_text": text, "new_text": text, wrong: text})
        assert [fault.expected[: len(expected)] for fault in caught.value.faults] == [expected]


def test_the_customers_examples_decode() -> None:
    assert COMMAND.decode({"session_id": "my-session", "argv": ["git", "status"], "timeout_seconds": 30}) == (
        commands.ExecuteCommand(session_id="my-session", argv=("git", "status"), timeout_seconds=30.0)
    )
    assert TOOLS["read_file"].decode({"session_id": "my-session", "path": "src/main.py"}) == (
        files.ReadFile(session_id="my-session", path="src/main.py")
    )
    assert TOOLS["download_file"].decode(
        {"session_id": "my-session", "path": "build/output.jar", "chunk_size": 1048576, "offset": 0}
    ) == files.DownloadFile(session_id="my-session", path="build/output.jar")
    upload = {"session_id": "s", "path": "a.py", "chunk_data": "aGk=", "chunk_offset": 0, "is_last": True}
    assert TOOLS["upload_file"].decode(upload) == (
        files.UploadFile(session_id="s", path="a.py", chunk_data=b"hi", is_last=True)
    )
    confirmed = COMMAND.decode({"session_id": "s", "argv": ["python3", "train.py"], "confirm": True})
    assert isinstance(confirmed, commands.ExecuteCommand)
    assert confirmed.confirm
    assert TOOLS["get_system_info"].decode(None) == sessions.GetSystemInfo()


def faults(tool_name: str, arguments: object) -> dict[str, Fault]:
    with pytest.raises(InvalidArguments) as caught:
        TOOLS[tool_name].decode(arguments)
    return {fault.name: fault for fault in caught.value.faults}


def test_every_fault_is_told_at_once() -> None:
    found = faults("execute_command", {"sesion_id": "x", "argv": ["ls", 3, None], "timeout_seconds": 0, "confirm": 1})
    assert set(found) == {'"sesion_id"', "session_id", "argv[1]", "argv[2]", "timeout_seconds", "confirm"}
    assert found['"sesion_id"'].nearest == "session_id"
    assert str(found["argv[1]"]) == "argv[1]: expected a string, got 3"
    assert "above 0" in found["timeout_seconds"].expected


def test_faults_reach_the_client_as_message_and_details() -> None:
    with pytest.raises(InvalidArguments) as caught:
        TOOLS["write_file"].decode({"session_id": "s", "path": "a", "content": "x", "mode": "overwite"})
    assert caught.value.code is ErrorCode.INVALID_ARGUMENTS
    assert "did you mean overwrite?" in caught.value.message
    assert caught.value.details["faults"] == [
        {"name": "mode", "got": '"overwite"', "expected": "one of overwrite, append", "nearest": "overwrite"}
    ]


def test_a_flood_of_faults_is_cut() -> None:
    with pytest.raises(InvalidArguments, match="and 950 more") as caught:
        COMMAND.decode({"session_id": "s", "argv": [None] * 1000})
    assert len(caught.value.faults) == 1000
    assert len(caught.value.message) < 5000


@pytest.mark.parametrize("value", [True, "30", 30.5, None, [], float("nan"), float("inf"), -1, 2**63, HUGE], ids=type)
def test_an_offset_is_an_integer_in_its_range(value: object) -> None:
    assert set(faults("read_file", {"session_id": "s", "path": "a", "offset": value})) == {"offset"}


def test_an_integral_float_is_an_integer() -> None:
    read = TOOLS["read_file"].decode({"session_id": "s", "path": "a", "offset": 30.0})
    assert isinstance(read, files.ReadFile)
    assert type(read.offset) is int
    assert read.offset == 30


@pytest.mark.parametrize("value", [0, -1, True, "1", float("nan"), float("inf"), HUGE, -HUGE], ids=type)
def test_a_timeout_is_a_positive_finite_number(value: object) -> None:
    assert set(faults("execute_command", {"session_id": "s", "argv": ["ls"], "timeout_seconds": value})) == {
        "timeout_seconds"
    }


@pytest.mark.parametrize("value", ["", ".", "..", "a/b", "../x", "a b", "a\n", "\u00e9", "x" * 65, 7, None])
def test_a_session_id_is_of_its_pattern(value: object) -> None:
    assert set(faults("kill_session", {"session_id": value})) == {"session_id"}
    assert value is None or set(faults("create_session", {"id": value})) == {"id"}


@pytest.mark.parametrize("value", ["a", "_", "-", "...", "....", ".a", "..a", "a.", "a..", "1.2.3", "x" * 64, "." * 64])
def test_a_session_id_may_have_dots(value: str) -> None:
    assert TOOLS["create_session"].decode({"id": value}) == sessions.CreateSession(id=value)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ([], "argv"),
        (["x"] * 1001, "argv"),
        ("ls", "argv"),
        (["ls", "x" * 131_072], "argv[1]"),
        (["ls", "\u00e9" * 65_536], "argv[1]"),  # within the characters, above the bytes
        (["\ud800"], "argv[0]"),
    ],
)
def test_argv_is_a_bounded_list_of_strings_the_kernel_takes(argv: object, name: str) -> None:
    assert set(faults("execute_command", {"session_id": "s", "argv": argv})) == {name}


def test_the_longest_argv_is_taken() -> None:
    longest = ["x" * 131_071, *["y"] * 999]
    command = COMMAND.decode({"session_id": "s", "argv": longest})
    assert isinstance(command, commands.ExecuteCommand)
    assert command.argv == tuple(longest)


@pytest.mark.parametrize("chunk", ["aGk", "aGk=\n", "a Gk=", "aGk==", "aGk-", "é", "\ud800", "=", 7, None])
def test_chunk_data_is_strict_base64(chunk: object) -> None:
    assert set(faults("upload_file", {"session_id": "s", "path": "a", "chunk_data": chunk})) == {"chunk_data"}


@unhurried
@given(st.binary())
def test_chunk_data_arrives_as_the_bytes_that_were_sent(data: bytes) -> None:
    chunk = base64.b64encode(data).decode()
    upload = TOOLS["upload_file"].decode({"session_id": "s", "path": "a", "chunk_data": chunk})
    assert isinstance(upload, files.UploadFile)
    assert upload.chunk_data == data


def test_a_long_chunk_becomes_its_bytes_where_it_lies_and_stays_as_it_is_where_it_is_wrong() -> None:
    """So both are never held, and the room that it takes counts for the bytes as well."""
    data = bytes(range(256)) * 1024
    call, chunk = {"session_id": "s", "path": "a"}, base64.b64encode(data)
    buffer = Buffer(chunk)
    text, size = LongText(buffer), sys.getsizeof(buffer)
    upload = TOOLS["upload_file"].decode({**call, "chunk_data": text})
    assert isinstance(upload, files.UploadFile)
    assert upload.chunk_data is buffer
    assert (buffer, sys.getsizeof(buffer), str(text)) == (data, size, "")
    late = len(chunk) - 9  # what is before it has been decoded by then
    wrongs = [chunk + b"A", chunk[:-1], chunk + "é".encode(), b"=" + chunk]
    wrongs += [chunk[:at] + odd + chunk[at:] for at in (9, late) for odd in (b"=", b"\n", b"QQ==", b"Q")]
    for wrong in wrongs:
        text = LongText(Buffer(wrong))
        told = faults("upload_file", {**call, "chunk_data": text})
        assert told == faults("upload_file", {**call, "chunk_data": wrong.decode()})
        assert text.encode() == wrong


def test_the_environment_is_a_bounded_mapping_of_strings() -> None:
    assert set(faults("create_session", {"environment": {str(i): "" for i in range(257)}})) == {"environment"}
    assert set(faults("create_session", {"environment": {"A": 1, "B": "b"}})) == {'environment["A"]'}
    assert set(faults("create_session", {"environment": {"\ud800": ""}})) == {"environment"}
    created = TOOLS["create_session"].decode({"environment": {"A": "1"}})
    assert isinstance(created, sessions.CreateSession)
    assert created.environment == {"A": "1"}
    with pytest.raises(TypeError):
        created.environment["B"] = "2"  # type: ignore[index]


def test_faults_quote_no_secrets() -> None:
    secret = "correct horse battery"  # noqa: S105  made up
    for tool_name, arguments in (
        ("write_file", {"session_id": "s", "path": "a", "content": [secret]}),
        ("write_file", {"session_id": "s", "path": "a", "content": secret + "\ud800"}),
        ("execute_command", {"session_id": "s", "argv": ["ls"], "stdin_input": {"x": secret}}),
        ("upload_file", {"session_id": "s", "path": "a", "chunk_data": secret}),
        ("create_session", {"environment": {"A": [secret], "B": secret + "\ud800"}}),
        ("get_system_info", {"unknown": secret}),
    ):
        with pytest.raises(InvalidArguments) as caught:
            TOOLS[tool_name].decode(arguments)
        assert secret not in str(caught.value)
        assert secret not in repr(caught.value.details)


# --- what is announced is what is checked

any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def near(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values that often satisfy *schema* and often just miss it."""
    if "anyOf" in schema:
        return st.one_of([near(choice) for choice in schema["anyOf"]])
    return NEAR[schema["type"]](schema)


def near_text(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    if "enum" in schema:
        return st.sampled_from([*schema["enum"], "", "Overwrite"])
    if "pattern" in schema:
        return st.from_regex("^[A-Za-z0-9._-]{1,65}$") | st.text(".a", max_size=4) | st.text(max_size=66)
    if "contentEncoding" in schema:
        return st.binary().map(lambda data: base64.b64encode(data).decode()) | st.text(max_size=9)
    return st.text(max_size=9) | st.sampled_from(["", "x" * 64, "x" * 65, "x" * 4095, "x" * 4096, "é" * 2048])


def near_integer(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    edges = [schema["minimum"] - 1, schema["minimum"], schema["maximum"], schema["maximum"] + 1]
    return st.sampled_from([*edges, *map(float, edges), 1.5, True])


def near_number(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    return st.floats(-1, schema["maximum"] + 1) | st.integers(-1, schema["maximum"] + 1) | st.just(value=True)


def near_array(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    return st.lists(near(schema["items"]), max_size=3) | st.sampled_from([["x"] * 1000, ["x"] * 1001])


def near_object(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    if "properties" in schema:
        named = {name: near(inner) for name, inner in schema["properties"].items()}
        return st.fixed_dictionaries({}, optional=named) | st.dictionaries(st.text(max_size=5), any_json, max_size=2)
    few = st.dictionaries(st.text(max_size=5), near(schema["additionalProperties"]), max_size=3)
    return few | st.sampled_from([{str(i): "" for i in range(count)} for count in (256, 257)])


NEAR: Mapping[str, Callable[[Mapping[str, Any]], st.SearchStrategy[Any]]] = MappingProxyType(
    {
        "string": near_text,
        "integer": near_integer,
        "number": near_number,
        "array": near_array,
        "object": near_object,
        "boolean": lambda _: st.booleans(),
        "null": lambda _: st.none(),
    }
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[Tool, object]:
    tool = draw(tools)
    arguments = {}
    for name, schema in tool.input_schema["properties"].items():
        if name in tool.input_schema.get("required", ()) or draw(st.booleans()):
            arguments[name] = draw(st.one_of(near(schema), near(schema), near(schema), any_json))
    if draw(st.integers(0, 9)) == 0:
        arguments[draw(st.text(max_size=8))] = draw(any_json)
    if arguments and draw(st.integers(0, 9)) == 0:
        del arguments[draw(st.sampled_from(sorted(arguments)))]
    return tool, arguments


BEYOND_A_SCHEMA = ("base64", "bytes of UTF-8", "Unicode")


def beyond_a_schema(fault: Fault, arguments: Mapping[str, Any]) -> bool:
    """What a JSON schema cannot say; and Python's `$` matches before a last newline, ECMA's does not."""
    value = arguments.get(fault.name.partition(".")[0])
    newline = isinstance(value, str) and value.endswith("\n")
    return newline or any(phrase in fault.expected for phrase in BEYOND_A_SCHEMA)


def decoded(tool: Tool, arguments: object) -> Request | InvalidArguments:
    try:
        return tool.decode(arguments)
    except InvalidArguments as invalid:
        return invalid


@unhurried
@given(calls())
def test_what_decodes_satisfies_the_schema_and_the_other_way_round(call: tuple[Tool, Mapping[str, Any]]) -> None:
    tool, arguments = call
    fits = jsonschema.Draft202012Validator(tool.input_schema).is_valid(arguments)
    match decoded(tool, arguments):
        case InvalidArguments(faults=found):
            assert not fits or any(beyond_a_schema(fault, arguments) for fault in found)
        case request:
            assert fits
            assert type(request) is tool.request


@unhurried
@given(tools, any_json | calls().map(lambda call: call[1]))
def test_decoding_raises_nothing_but_invalid_arguments(tool: Tool, arguments: object) -> None:
    match decoded(tool, arguments):
        case InvalidArguments() as invalid:
            assert invalid.faults
            json.dumps(invalid.details, allow_nan=False).encode()
            assert invalid.message.isprintable()


@every_tool
def test_defaults_of_the_schema_are_the_defaults_of_the_class(tool: Tool) -> None:
    required = {name: example(hint) for name, hint in hints_of(tool.request).items() if name in _required(tool)}
    announced = {n: s["default"] for n, s in tool.input_schema["properties"].items() if "default" in s}
    assert tool.decode(required) == tool.decode(required | announced)


def _required(tool: Tool) -> list[str]:
    return list(tool.input_schema.get("required", ()))


def example(hint: Hint) -> object:
    if hint.about.pattern:
        return "c1"
    if hint.choices:
        return hint.choices[0]
    return {str: "x", Text: "x", Bytes: "aGk=", int: 1, tuple: ["x"]}[hint.type]


# --- results

odd_text = st.text(st.characters(exclude_categories=()), max_size=20)


def values(hint: Hint) -> st.SearchStrategy[Any]:
    """Anything a tool may put into a field, lone surrogates and non-finite numbers included."""
    scalars: Mapping[Any, st.SearchStrategy[Any]] = {
        str: odd_text,
        bytes: st.binary(),
        bool: st.booleans(),
        int: st.integers(),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str | bytes: odd_text | st.binary(),
    }
    if hint.optional:
        return st.none() | values(attrs.evolve(hint, optional=False))
    if hint.type is Literal:
        return st.sampled_from(hint.choices)
    if hint.item is not None:
        return st.lists(values(hint.item), max_size=3).map(tuple)
    return instances(hint.type) if inspect.isclass(hint.type) and attrs.has(hint.type) else scalars[hint.type]


def instances(cls: type) -> st.SearchStrategy[Any]:
    return st.builds(cls, **{name: values(hint) for name, hint in hints_of(cls).items()})


@unhurried
@given(tools.flatmap(lambda tool: st.tuples(st.just(tool), instances(tool.result))))
def test_every_result_is_strict_json_that_fits_its_schema(pair: tuple[Tool, attrs.AttrsInstance]) -> None:
    tool, result = pair
    encoded = encode(result)
    assert next(iter(encoded)) == "success"
    jsonschema.validate(encoded, tool.output_schema, jsonschema.Draft202012Validator)
    assert json.loads(json.dumps(encoded, ensure_ascii=False, allow_nan=False).encode()) == encoded


def test_bytes_are_base64_and_odd_names_are_replaced_on_the_wire() -> None:
    entry = trees.DirectoryEntry(name="caf\udce9\udcff.txt", type="file", size_bytes=1)
    listing = trees.ListDirectoryResult(path="/t\udce9", entries=(entry,), total_count=1, truncated=False)
    assert encode(listing)["path"] == "/t\ufffd"
    assert encode(listing)["entries"] == [
        {"name": "caf\ufffd\ufffd.txt", "type": "file", "size_bytes": 1, "modified_at": None}
    ]
    binary = files.ReadFileResult(
        content=b"\x00\xff", size_bytes=2, mime_type="x/y", is_binary=True, truncated=False, next_offset=None
    )
    assert encode(binary)["content"] == "AP8="
