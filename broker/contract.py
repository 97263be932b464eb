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
ODD_NAMES = "A byte of a name that is no UTF-8 is shown as \\xff; every path argument takes it so."
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
        "Run one allowed command and wait for it. argv is the program and its arguments, one string each (at most "
        "1000, each up to 128 KiB); there is no shell. A non-zero exit_code is an answer (success false), not an "
        "error. Long output is cut (stdout_truncated). After CMD_TIMEOUT the output so far is in the error: call "
        "again with a larger timeout_seconds. After POLICY_COMMAND_BLOCKED read error_message and change argv. After "
        "POLICY_CONFIRMATION_REQUIRED call again with confirm: true if you really mean it.",
        "destructive",
        "openWorld",
    ),
    _tool(
        "read_file",
        "Read file",
        "Read up to limit bytes of a file from offset (bytes), or line_count lines from start_line (-20: the last "
        "20). Text ends at a character boundary; a binary file comes as base64 with is_binary true. If truncated, go "
        "on at next_offset. Use download_file for large files.",
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
        "List a directory, or its tree to a depth: name, type, size_bytes and modified_at of each entry. Hidden names "
        "only with include_hidden. If truncated, call again with cursor = next_cursor; total_count says how many "
        "there are. " + ODD_NAMES,
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
        "edit_file",
        "Edit file",
        "Replace old_text, which must occur exactly expected_count times (default once), by new_text; the file is "
        "replaced at once or left as it was. Returns a unified diff and the sha256 of the file now. With "
        "expected_sha256 it edits only the file you know. After FILE_EDIT_MISMATCH read the file again: blanks and "
        "line ends count.",
        "destructive",
    ),
    _tool(
        "search_files",
        "Search in files",
        "Find the lines of text files that match a regular expression (Python's) or, with literal, a plain text, in "
        "a directory tree or one file. Narrow it by include globs such as *.py. Hidden and binary files are passed "
        "over; symbolic links are not followed. If truncated, stopped_by names the limit: narrow the search or raise "
        "it. Paths can be passed to the other tools as they are.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "find_files",
        "Find files",
        "Find files and directories of a tree by a glob: *.py at any depth, src/**/test_*.py from the directory "
        "searched. Symbolic links are not followed. Gives type, size_bytes and modified_at. " + ODD_NAMES,
        "readOnly",
        "idempotent",
    ),
    _tool(
        "stat_path",
        "Path information",
        "Type, size_bytes, modified_at, mode, owner and number of hard links of a path; with checksum the SHA-256 of "
        "a file, which edit_file takes as expected_sha256. follow_symlinks: false tells about a link itself.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "make_directory",
        "Make directory",
        "Make a directory; with parents also those it is in, and then it is no error that it exists (created false).",
        "idempotent",
    ),
    _tool(
        "move_path",
        "Move or rename",
        "Give a file, link or directory a new path: destination is the new path itself. A file there is replaced only "
        "with overwrite. A directory that holds paths the policy keeps closed is not moved.",
        "destructive",
    ),
    _tool(
        "copy_path",
        "Copy",
        "Copy a file, or with recursive a directory, to destination, which is the new path itself. The copy appears "
        "at once when it is complete. Links in a tree are copied as links; what the policy keeps closed is left out "
        "and listed in skipped.",
        "destructive",
    ),
    _tool(
        "delete_path",
        "Delete",
        "Delete a file, a link (not what it leads to) or an empty directory; with recursive a directory and all it "
        "holds, which needs confirm: true (else POLICY_CONFIRMATION_REQUIRED). A directory that holds paths the "
        "policy keeps closed is not deleted.",
        "destructive",
    ),
)

TOOLS: Mapping[str, Tool] = MappingProxyType({tool.name: tool for tool in _ROWS})
"""All of them, by name, in the order in which they are announced: the customer's eleven first."""


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
