"""The tool table: what each tool is called, takes, answers and promises, for people, agents and code.

One source, three uses: the request and result classes give the schemas that are announced, the decoding that is
enforced and the documentation. Knows nothing of MCP's own types; `broker/endpoint.py` translates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs

from broker import requests, results
from broker.decode import make_decoder
from broker.errors import BrokerError, ErrorCode
from broker.faults import Fault, InvalidArguments, nearest, quoted
from broker.requests import Request
from broker.results import Result
from broker.schema import input_schema, output_schema
from broker.wire import encode

__all__ = ["FAILURE_PROPERTIES", "TOOLS", "Fault", "InvalidArguments", "Tool", "encode", "find_tool"]

FAILURE_PROPERTIES: Mapping[str, Any] = MappingProxyType(
    {
        "error_code": {"type": "string", "description": "On failure, as the rest: such as POLICY_001."},
        "error_name": {"type": "string"},
        "error_message": {"type": "string", "description": "Names the limit and the value."},
        "error_details": {"type": "object", "description": "what_to_do, and facts for a program."},
        "retryable": {"type": "boolean", "description": "The same call, unchanged, may succeed later."},
    }
)
HINTS = ("readOnly", "destructive", "idempotent", "openWorld")


@attrs.frozen(kw_only=True)
class Tool:
    """One tool. `decode` makes a request of JSON arguments, or raises InvalidArguments with every fault.

    `annotations` has MCP's names. `bulk_fields` of a result are left out of the text twin of structured content.
    """

    name: str
    title: str
    description: str
    request: type[Request]
    result: type[Result]
    annotations: Mapping[str, bool]
    bulk_fields: frozenset[str]
    decode: Callable[[object], Request]
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any]


def _tool(
    name: str,
    title: str,
    description: str,
    *hints: str,
    bulk: frozenset[str] = frozenset(),
) -> Tool:
    """A row of the table; the classes are found by the tool's name, so that the three cannot drift apart."""
    class_name = "".join(word.capitalize() for word in name.split("_"))
    request, result = getattr(requests, class_name), getattr(results, f"{class_name}Result")
    return Tool(
        name=name,
        title=title,
        description=description,
        request=request,
        result=result,
        annotations=MappingProxyType({f"{hint}Hint": hint in hints for hint in HINTS}),
        bulk_fields=bulk,
        decode=make_decoder(request),
        input_schema=input_schema(request),
        output_schema=output_schema(result, FAILURE_PROPERTIES),
    )


_ROWS = (
    _tool(
        "create_session",
        "Create session",
        "Open a session: a working directory, environment and sandbox that the other tools need. Returns session_id. "
        "It ends by kill_session, or when idle for idle_timeout_seconds; everything it started ends with it. "
        "On SESSION_LIMIT_REACHED kill a session you no longer need.",
    ),
    _tool(
        "kill_session",
        "Kill session",
        "End a session and every process it started, daemons included; unfinished uploads are discarded. "
        "Answers when nothing is left.",
        "destructive",
        "idempotent",
    ),
    _tool(
        "execute_command",
        "Execute command",
        "Run one allowed command. argv is the program and its arguments (no shell). A non-zero exit_code is an answer "
        "(success false), not an error. Long output shows its beginning and end; read_output has the rest. For "
        "anything long use wait_seconds (or background) and a large timeout_seconds: the answer comes with running "
        "true, and read_output, wait_command, write_stdin, signal_command go on from there. After CMD_TIMEOUT the "
        "output so far is in the error. After POLICY_COMMAND_BLOCKED read error_message and change argv. After "
        "POLICY_CONFIRMATION_REQUIRED call again with confirm: true if you really mean it.",
        "destructive",
        "openWorld",
    ),
    _tool(
        "read_file",
        "Read file",
        "Read up to limit bytes of a file from offset (bytes). Text ends at a character boundary; a binary file "
        "comes as base64 with is_binary true. If truncated, go on at next_offset. Use download_file for large files.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "write_file",
        "Write file",
        "Write UTF-8 text to a file, made if it does not exist. overwrite replaces it at once or leaves it as it was; "
        "append adds to its end. After FILE_TOO_LARGE use upload_file.",
        "destructive",
    ),
    _tool(
        "list_directory",
        "List directory",
        "List a directory: name, type and size_bytes of each entry. Hidden names only with include_hidden. "
        "If truncated, total_count says how many there are.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "download_file",
        "Download file",
        "Read a file of any size in base64 chunks: start at offset 0, then call with offset = chunk_offset + "
        "chunk_size of the answer until is_complete; the last chunk has the sha256 of the whole file. After "
        "FILE_CHANGED start again at offset 0.",
        "readOnly",
        "idempotent",
        bulk=frozenset({"chunk_data"}),
    ),
    _tool(
        "upload_file",
        "Upload file",
        "Write a file of any size in base64 chunks, in order: first with an empty transfer_id, then with the one "
        "returned, chunk_offset = bytes_received, and is_last true on the final chunk, which puts the file in place "
        "at once and returns its sha256. Repeating a chunk is safe. After TRANSFER_OFFSET_MISMATCH send the chunk at "
        "the expected offset.",
        "destructive",
    ),
    _tool(
        "get_system_info",
        "System information",
        "Host name, platform, CPU, memory (bytes) and disks (bytes) of the machine, its uptime in seconds, and which "
        "isolation layers are enforced.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "get_process_list",
        "List processes",
        "List the processes of a session, or without session_id those of the user that commands run as (command "
        "lines only for your own sessions). memory_rss is bytes.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "kill_process",
        "Signal process",
        "Send a signal to a process of the session (15 asks it to end, 9 ends it). It reaches only processes that the "
        "session started; find pids with get_process_list.",
        "destructive",
    ),
    _tool(
        "read_output",
        "Read output",
        "Read what a command said from cursor on, while it runs or after: go on with next_cursor. With wait_seconds it "
        "answers as soon as there is more. It is over when running is false and next_cursor is total_bytes. "
        "evicted_bytes and dropped_bytes say exactly what is missing.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "write_stdin",
        "Write to a command",
        "Answer a prompt: write text to the standard input of a running command (started with background, wait_seconds "
        "or terminal). Lines need their newline. close true ends the input.",
        "destructive",
        "openWorld",
    ),
    _tool(
        "list_commands",
        "List commands",
        "List the commands of a session, running and ended, with their command_id, state and how much they said. For "
        "when you have lost track of what you started.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "wait_command",
        "Wait for a command",
        "Wait until a command is done, at most wait_seconds, and answer what execute_command would have: with running "
        "true if it goes on.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "signal_command",
        "Signal a command",
        "End a command and all it started (END), or send it a signal by name: SIGINT as Ctrl-C does, SIGKILL to end "
        "it at once. Then read what it said last with read_output.",
        "destructive",
    ),
    _tool(
        "search_output",
        "Search output",
        "Find the lines of a command's output that match a regular expression, with lines of context: the way to find "
        "the error in a long log. Each match has the cursor of its line for read_output of that stream.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "resize_terminal",
        "Resize terminal",
        "Give the terminal of a command another size; its program is told. Only for a command started with terminal.",
        "idempotent",
    ),
)

TOOLS: Mapping[str, Tool] = MappingProxyType({tool.name: tool for tool in _ROWS})
"""By name, in the order in which they are announced: the customer's eleven first."""


def find_tool(name: str) -> Tool:
    """The tool of that name.

    Raises:
        BrokerError: there is none (INVALID_ARGUMENTS, with the nearest name).
    """
    if tool := TOOLS.get(name):
        return tool
    near = nearest(name, TOOLS)
    meant = f"did you mean {near}?" if near else f"the tools are {', '.join(TOOLS)}"
    raise BrokerError(ErrorCode.INVALID_ARGUMENTS, f"there is no tool {quoted(name)}; {meant}")
