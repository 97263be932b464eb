"""The tool table: what each tool is called, takes, answers and promises, for people, agents and code.

One source, three uses: the request and result classes give the schemas that are announced, the decoding that is
enforced and the documentation. Knows nothing of MCP's own types; `broker/endpoint/adapter.py` translates. How a tool
is performed, decided on and recorded is the row of the same class in `broker/tools/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import attrs

from broker.contract import commands, files, sessions, transfers, trees
from broker.contract.decode import make_decoder
from broker.contract.errors import BrokerError, ErrorCode
from broker.contract.faults import nearest, quoted
from broker.contract.schema import input_schema, output_schema

Request: TypeAlias = attrs.AttrsInstance
"""One of the request classes in the table."""
Result: TypeAlias = attrs.AttrsInstance
"""One of its result classes."""
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
    request: type[Request]
    result: type[Result]
    title: str
    description: str
    annotations: Mapping[str, bool]
    bulk_fields: frozenset[str]
    decode: Callable[[object], Request]
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any]


def _tool(
    name: str,
    request: type[Request],
    result: type[Result],
    title: str,
    description: str,
    *hints: str,
    bulk: frozenset[str] = frozenset(),
) -> Tool:
    """Make a row of the table; what is announced and what is enforced come from the two classes."""
    return Tool(
        name=name,
        request=request,
        result=result,
        title=title,
        description=description,
        annotations=MappingProxyType({f"{hint}Hint": hint in hints for hint in HINTS}),
        bulk_fields=bulk,
        decode=make_decoder(request),
        input_schema=input_schema(request),
        output_schema=output_schema(result, FAILURE_PROPERTIES),
    )


_ROWS = (
    _tool(
        "create_session",
        sessions.CreateSession,
        sessions.CreateSessionResult,
        "Create session",
        "Open a session: a working directory, environment and sandbox that the other tools need. Returns session_id. "
        "It ends by kill_session, or when idle for idle_timeout_seconds; everything it started ends with it. "
        "On SESSION_LIMIT_REACHED kill a session you no longer need.",
    ),
    _tool(
        "kill_session",
        sessions.KillSession,
        sessions.KillSessionResult,
        "Kill session",
        "End a session and every process it started, daemons included; unfinished uploads are discarded. "
        "Answers when nothing is left.",
        "destructive",
        "idempotent",
    ),
    _tool(
        "execute_command",
        commands.ExecuteCommand,
        commands.ExecuteCommandResult,
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
        files.ReadFile,
        files.ReadFileResult,
        "Read file",
        "Read up to limit bytes of a file from offset (bytes), or line_count lines from start_line (-20: the last "
        "20). Text ends at a character boundary; a binary file comes as base64 with is_binary true. If truncated, go "
        "on at next_offset. Use download_file for large files.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "write_file",
        files.WriteFile,
        files.WriteFileResult,
        "Write file",
        "Write UTF-8 text to a file, made if it does not exist. overwrite replaces it at once or leaves it as it was; "
        "append adds to its end. After FILE_TOO_LARGE use upload_file.",
        "destructive",
    ),
    _tool(
        "list_directory",
        trees.ListDirectory,
        trees.ListDirectoryResult,
        "List directory",
        "List a directory, or its tree to a depth: name, type, size_bytes and modified_at of each entry. Hidden names "
        "only with include_hidden. If truncated, call again with cursor = next_cursor; total_count says how many "
        "there are. " + ODD_NAMES,
        "readOnly",
        "idempotent",
    ),
    _tool(
        "download_file",
        files.DownloadFile,
        files.DownloadFileResult,
        "Download file",
        "Read a file of any size in base64 chunks: start at offset 0, then call with offset = chunk_offset + "
        "chunk_size of the answer until is_complete; the last chunk has the sha256 of the whole file, or "
        "sha256_missing says why not (gigabytes were not read before it: ask for that chunk again, which goes on). "
        "After FILE_CHANGED start again at offset 0.",
        "readOnly",
        "idempotent",
        bulk=frozenset({"chunk_data"}),
    ),
    _tool(
        "upload_file",
        files.UploadFile,
        files.UploadFileResult,
        "Upload file",
        "Write a file of any size in base64 chunks, in order: first with an empty transfer_id, then with the one "
        "returned, chunk_offset = bytes_received, and is_last true on the final chunk, which puts the file in place "
        "at once and returns its sha256. Repeating a chunk is safe. After TRANSFER_OFFSET_MISMATCH send the chunk at "
        "the expected offset.",
        "destructive",
    ),
    _tool(
        "get_system_info",
        sessions.GetSystemInfo,
        sessions.GetSystemInfoResult,
        "System information",
        "Host name, platform, CPU, memory (bytes) and disks (bytes) of the machine, its uptime in seconds, and which "
        "isolation layers are enforced.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "get_process_list",
        sessions.GetProcessList,
        sessions.GetProcessListResult,
        "List processes",
        "List the processes of a session, or without session_id those of the user that commands run as (command "
        "lines only for your own sessions). memory_rss is bytes.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "kill_process",
        sessions.KillProcess,
        sessions.KillProcessResult,
        "Signal process",
        "Send a signal to a process of the session (15 asks it to end, 9 ends it). It reaches only processes that the "
        "session started; find pids with get_process_list.",
        "destructive",
    ),
    _tool(
        "edit_file",
        trees.EditFile,
        trees.EditFileResult,
        "Edit file",
        "Replace old_text, which must occur exactly expected_count times (default once), by new_text; the file is "
        "replaced at once or left as it was. Returns a unified diff and the sha256 of the file now. With "
        "expected_sha256 it edits only the file you know. After FILE_EDIT_MISMATCH read the file again: blanks and "
        "line ends count.",
        "destructive",
    ),
    _tool(
        "search_files",
        trees.SearchFiles,
        trees.SearchFilesResult,
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
        trees.FindFiles,
        trees.FindFilesResult,
        "Find files",
        "Find files and directories of a tree by a glob: *.py at any depth, src/**/test_*.py from the directory "
        "searched. Symbolic links are not followed. Gives type, size_bytes and modified_at. " + ODD_NAMES,
        "readOnly",
        "idempotent",
    ),
    _tool(
        "stat_path",
        trees.StatPath,
        trees.StatPathResult,
        "Path information",
        "Type, size_bytes, modified_at, mode, owner and number of hard links of a path; with checksum the SHA-256 of "
        "a file, which edit_file takes as expected_sha256. follow_symlinks: false tells about a link itself.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "make_directory",
        trees.MakeDirectory,
        trees.MakeDirectoryResult,
        "Make directory",
        "Make a directory; with parents also those it is in, and then it is no error that it exists (created false).",
        "idempotent",
    ),
    _tool(
        "move_path",
        trees.MovePath,
        trees.MovePathResult,
        "Move or rename",
        "Give a file, link or directory a new path: destination is the new path itself. A file there is replaced only "
        "with overwrite. A directory that holds paths the policy keeps closed is not moved.",
        "destructive",
    ),
    _tool(
        "copy_path",
        trees.CopyPath,
        trees.CopyPathResult,
        "Copy",
        "Copy a file, or with recursive a directory, to destination, which is the new path itself. The copy appears "
        "at once when it is complete. Links in a tree are copied as links; what the policy keeps closed is left out "
        "and listed in skipped.",
        "destructive",
    ),
    _tool(
        "delete_path",
        trees.DeletePath,
        trees.DeletePathResult,
        "Delete",
        "Delete a file, a link (not what it leads to) or an empty directory; with recursive a directory and all it "
        "holds, which needs confirm: true (else POLICY_CONFIRMATION_REQUIRED). A directory that holds paths the "
        "policy keeps closed is not deleted.",
        "destructive",
    ),
    _tool(
        "open_transfer",
        transfers.OpenTransfer,
        transfers.OpenTransferResult,
        "Open transfer",
        "Make a URL for one file of any size, or a directory (archive), for a program of yours that speaks HTTP: its "
        "bytes pass neither through you nor through base64. Run the curl line where the local file is. One use, until "
        "expires_at; a cut transfer goes on at next_offset (curl -C). Then stat_transfer has the sha256. Without HTTP "
        "use download_file, upload_file.",
        "destructive",
    ),
    _tool(
        "stat_transfer",
        transfers.StatTransfer,
        transfers.StatTransferResult,
        "Transfer state",
        "How far a transfer of open_transfer is: state, bytes_done, where to go on, its sha256 when it is complete, "
        "error when it failed.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "finish_transfer",
        transfers.FinishTransfer,
        transfers.FinishTransferResult,
        "Finish upload",
        "Put an upload in place with what was received so far, at once. Not needed after a PUT of the whole file. "
        "After TRANSFER_MISMATCH send what is missing.",
        "destructive",
        "idempotent",
    ),
    _tool(
        "cancel_transfer",
        transfers.CancelTransfer,
        transfers.CancelTransferResult,
        "Cancel transfer",
        "Close the URL of a transfer and end the request that uses it. What an unfinished upload received is "
        "discarded; the destination is as it was.",
        "destructive",
        "idempotent",
    ),
    _tool(
        "read_output",
        commands.ReadOutput,
        commands.ReadOutputResult,
        "Read output",
        "Read what a command said from cursor on, while it runs or after: go on with next_cursor. With wait_seconds it "
        "answers as soon as there is more. It is over when running is false and next_cursor is total_bytes. "
        "evicted_bytes and dropped_bytes say exactly what is missing.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "write_stdin",
        commands.WriteStdin,
        commands.WriteStdinResult,
        "Write to a command",
        "Answer a prompt: write text to the standard input of a running command (started with background, wait_seconds "
        "or terminal). Lines need their newline. close true ends the input.",
        "destructive",
        "openWorld",
    ),
    _tool(
        "list_commands",
        commands.ListCommands,
        commands.ListCommandsResult,
        "List commands",
        "List the commands of a session, running and ended, with their command_id, state and how much they said. For "
        "when you have lost track of what you started.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "wait_command",
        commands.WaitCommand,
        commands.WaitCommandResult,
        "Wait for a command",
        "Wait until a command is done, at most wait_seconds, and answer what execute_command would have: with running "
        "true if it goes on.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "signal_command",
        commands.SignalCommand,
        commands.SignalCommandResult,
        "Signal a command",
        "End a command and all it started (END), or send it a signal by name: SIGINT as Ctrl-C does, SIGKILL to end "
        "it at once. Then read what it said last with read_output.",
        "destructive",
    ),
    _tool(
        "search_output",
        commands.SearchOutput,
        commands.SearchOutputResult,
        "Search output",
        "Find the lines of a command's output that match a regular expression, with lines of context: the way to find "
        "the error in a long log. Each match has the cursor of its line for read_output of that stream.",
        "readOnly",
        "idempotent",
    ),
    _tool(
        "resize_terminal",
        commands.ResizeTerminal,
        commands.ResizeTerminalResult,
        "Resize terminal",
        "Give the terminal of a command another size; its program is told. Only for a command started with terminal.",
        "idempotent",
    ),
)

TOOLS: Mapping[str, Tool] = MappingProxyType({tool.name: tool for tool in _ROWS})
"""All of them, by name, in the order in which they are announced: the customer's eleven first."""


def find_tool(name: str) -> Tool:
    """Return the tool of that name.

    Raises:
        BrokerError: there is none (INVALID_ARGUMENTS, with the nearest name).
    """
    if tool := TOOLS.get(name):
        return tool
    near = nearest(name, TOOLS)
    meant = f"did you mean {near}?" if near else f"the tools are {', '.join(TOOLS)}"
    raise BrokerError(ErrorCode.INVALID_ARGUMENTS, f"there is no tool {quoted(name)}; {meant}")
