"""What is fuzzed: one function for each parser that meets a stranger's bytes, each with what must be true of any.

A target takes bytes and raises AssertionError, or whatever the parser should not raise. What it may raise, it catches.
Where another implementation reads the same (`tarfile`, `json`, `yaml`, `jsonschema`, git, regular expressions), both
must agree. Each is also an ordinary function: `test_fuzz_corpus.py` calls it with what is kept in `corpus/`.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import re
import tarfile
import urllib.parse
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any

import h11
import jsonschema  # type: ignore[import-untyped]  # it brings no types
import trio
import yaml
from pydantic_core import from_json

from broker.audit.redact import REDACTED, VALUE_CHARACTERS, hide_secrets, redact_arguments, redact_text
from broker.audit.secret_words import hidden_in, without_secrets
from broker.contract.encode import is_unicode, json_value, safe_text
from broker.contract.errors import BrokerError
from broker.contract.faults import SHOWN_FAULTS, InvalidArguments
from broker.contract.table import TOOLS
from broker.http.body_shape import BodyShape
from broker.http.bulk import BULK_BYTES, Bulk
from broker.http.connections import _framing_fault
from broker.http.origins import LOOPBACK_NAMES, host_rules
from broker.http.transfer_head import UnsatisfiableRange, upload_head, wanted_range
from broker.tools.ansi import SEQUENCE_BYTES, strip_ansi, whole_sequences
from config.yamlnodes import _LOADER, parse_yaml
from policy.grammar import check_pattern
from policy.pattern import ANY_DEPTH, components, matched_depths
from sandbox import wire
from sandbox.files.errors import FileError
from sandbox.files.opener_client import Answer, open_exchange
from sandbox.inside.worker.aftermath import (
    _OF_A_NAME,
    _OF_A_SECTION,
    is_plain_common,
    is_plain_configuration,
    is_plain_pointer,
)
from sandbox.inside.worker.globs import compile_globs
from sandbox.inside.worker.job import Job
from sandbox.inside.worker.tar_members import Members
from sandbox.inside.worker.tar_pipe import Inlet
from sandbox.kernel.files import Refused
from tests.config.test_config_arbitrary import check_answer, loaded
from tests.sandbox.inside.worker.test_sandbox_gitconfig import keys as keys_that_git_reads
from tests.support.tarbytes import summed

LONG = b"QUJD" * (BULK_BYTES // 4)
SECRET = "Zq7-very/secret+Value"  # noqa: S105  made up
SLOW_CHARACTERS = 200  # for references that take exponential time


def _text(data: bytes) -> str:
    """Any text: a name that is no UTF-8 comes as lone surrogates, as from the kernel."""
    return data.decode("utf-8", "surrogateescape")


def _parsed(parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parse(data)
    except (ValueError, RecursionError):
        return ValueError


# --- what a client sends


_STRING = rb'"(?:[^"\\]|\\.)*"'
_TOKEN = re.compile(_STRING + rb"|[][{},:]|[^][{},:\"\s]+")


def body_shape(data: bytes) -> None:
    """Fed in slices (the first byte says how long), JSON has what its tokens say; more is never built than counted."""
    body, slice_bytes = data[1:], 1 + (data[0] if data else 0) % 16
    shape = BodyShape()
    for start in range(0, len(body), slice_bytes):
        shape.feed(body[start : start + slice_bytes])
    built: list[Any] = []
    note, extend = built.append, built.extend
    try:
        json.loads(body.decode(), parse_int=note, parse_float=note, parse_constant=note, object_pairs_hook=extend)
    except (ValueError, RecursionError):
        assert len(built) <= shape.elements
        return
    tokens = _TOKEN.findall(body)
    empty = sum(pair in {(b"[", b"]"), (b"{", b"}")} for pair in itertools.pairwise(tokens))
    assert shape.elements == empty + sum(token not in b"]},:" for token in tokens)
    assert len(built) <= shape.elements - empty
    assert shape.outside_bytes == len(re.sub(_STRING, b"", body))


def bulk(data: bytes) -> None:
    """Taken out and given back, the long string (`@` stands for most of it) is what any parser finds."""
    body = data.replace(b"@", LONG, 1)
    passing = Bulk()
    rest = passing.take(body)
    if rest is body or rest == body:
        return
    for parse in (json.loads, from_json):
        whole, left = _parsed(parse, body), _parsed(parse, rest)
        if left is not ValueError:
            left["params"]["arguments"] = passing.give_back(left["params"]["arguments"])
        assert left == whole


def bulk_answer(data: bytes) -> None:
    """Held back and filled in, a long result is the result."""
    result = {"name": "n", "chunk_data": LONG.decode() + _text(data)}
    passing = Bulk()
    held = passing.hold(result, ["chunk_data"])
    body = json.dumps(held).encode()
    filled = b"".join(passing.fill(body))
    assert json.loads(filled) == result
    assert passing.growth(body) == len(filled) - len(body)


@functools.cache
def _tools() -> tuple[tuple[Any, Any], ...]:
    return tuple((tool, jsonschema.Draft202012Validator(tool.input_schema)) for _, tool in sorted(TOOLS.items()))


def arguments(data: bytes) -> None:
    """The arguments of a tool (the first byte says which) are refused in bounded words, or fit the schema."""
    given = _parsed(from_json, data[1:])
    if not data or given is ValueError:
        return
    tool, schema = _tools()[data[0] % len(_tools())]
    said = _refusal(tool, given)
    assert len(said) < 1200 * (SHOWN_FAULTS + 1)
    assert said.isascii()
    assert said or given is None or schema.is_valid(given), given


def _refusal(tool: Any, given: Any) -> str:
    try:
        tool.decode(given)
    except InvalidArguments as invalid:
        return invalid.message
    return ""


def request_head(data: bytes) -> None:
    """A head that is let through has one length, and a Host that other readers take for a loopback name as well."""
    connection = h11.Connection(h11.SERVER)
    try:
        connection.receive_data(data + b"\r\n\r\n")
        request = connection.next_event()
    except h11.RemoteProtocolError:
        return
    if not isinstance(request, h11.Request):
        return
    named = [name for name, _ in request.headers if name in {b"content-length", b"transfer-encoding"}]
    if _framing_fault(request) is None and b"transfer-encoding" in named:
        assert named == [b"transfer-encoding"]
        assert request.http_version == b"1.1"
    rules = host_rules("127.0.0.1", ["box.example:8000"], ["https://app.example:*"])
    for name, value in request.headers:
        text = value.decode("latin-1")
        if name == b"host" and (host := rules.canonical_host(text)) is not None:
            there = urllib.parse.urlsplit(f"//{host}").hostname
            assert host == "box.example:8000" or there in {bare.strip("[]") for bare in LOOPBACK_NAMES}
        if name == b"origin" and rules.origin_allowed(text):
            there = urllib.parse.urlsplit(text).hostname
            assert there in {*(bare.strip("[]") for bare in LOOPBACK_NAMES), "app.example"}


def transfer_head(data: bytes) -> None:
    """The head of an upload agrees with itself; a range is the bytes it names, of those there are."""
    first, *lines = data.split(b"\n")
    headers = [(name, value) for name, _, value in (line.partition(b":") for line in lines)]
    method = "PATCH" if first.startswith(b"P") else "PUT"
    with suppress(BrokerError):
        head = upload_head(method, headers)
        assert head.offset >= 0
        assert head.total_bytes is None or head.total_bytes >= 0
        assert head.body_bytes is None or head.body_bytes >= 0
        names = {name.decode("latin-1").lower() for name, _ in headers}
        assert method == "PUT" or names & {"upload-offset", "content-range"}
        assert not names & {"upload-offset", "content-range"} or head.offset == _told_offset(headers)
    size = len(first)
    with suppress(UnsatisfiableRange):
        wanted = wanted_range(headers, size, "tag")
        if wanted is not None:
            assert 0 <= wanted[0] < wanted[1] <= size
            assert range(size)[_told_slice(headers)] == range(*wanted)


def _last(headers: list[tuple[bytes, bytes]], wanted: bytes) -> bytes:
    found = [value.strip(b" \t") for name, value in headers if name.lower() == wanted]
    return found[-1] if found else b""


def _told_offset(headers: list[tuple[bytes, bytes]]) -> int:
    ranged = re.fullmatch(rb"bytes (\d+)-(\d+)/(\d+|\*)", _last(headers, b"content-range"))
    offset = _last(headers, b"upload-offset")
    return int(ranged[1] if ranged else offset or b"0")


def _told_slice(headers: list[tuple[bytes, bytes]]) -> slice:
    begin, _, last = _last(headers, b"range").removeprefix(b"bytes=").partition(b"-")
    if not begin:
        return slice(-int(last), None) if int(last) else slice(0, 0)
    return slice(int(begin), int(last) + 1 if last else None)


# --- what comes from inside the walls


@contextmanager
def _no_descriptor_left() -> Any:
    """The lowest free number is the lowest free number afterwards."""
    os.close(before := os.dup(0))
    yield
    os.close(after := os.dup(0))
    assert after == before


def inside_message(data: bytes) -> None:
    """A packet (first byte: with a descriptor, by memory file) is a message or breaks the wire, and leaks nothing."""
    with _no_descriptor_left():
        ours, theirs = wire.pair()
        with ours, theirs, open(os.memfd_create("x"), "w+b") as memory:
            kind, packet = data[:1], data[1:]
            if kind == b"M":
                memory.write(packet)
                memory.flush()
                packet = b"M"
            wire._send(ours, packet, [memory.fileno()] if kind in (b"M", b"F") else [])
            with suppress(wire.WireBroken):
                received = wire.receive(theirs)
                if received is not None:
                    message, fds = received
                    for fd in fds:
                        os.close(fd)
                    wire.send(ours, message)
                    assert wire.receive(theirs) == (message, [])


def opener_answers(data: bytes) -> None:
    """Whatever answers a question (packets, blank lines between), it gets an answer or a file's error, and no other."""
    packets = [packet for packet in data.split(b"\n\n") if packet][:8]

    async def ask() -> None:
        ours, theirs = wire.pair()
        with theirs:
            theirs.setblocking(False)
            async with open_exchange(ours, answer_s=5) as exchange, trio.open_nursery() as nursery:
                nursery.start_soon(answer, theirs)
                with suppress(FileError):
                    got = await exchange.ask("look", "/a", {}, undo="forget")
                    assert isinstance(got, Answer)
                    got.close()

    async def answer(theirs: Any) -> None:
        await trio.lowlevel.wait_readable(theirs)
        assert wire.receive(theirs)
        for packet in packets:
            with suppress(BrokenPipeError):
                theirs.send(b"J" + packet)
        theirs.shutdown(1)

    with _no_descriptor_left():
        trio.run(ask)


def tar(data: bytes) -> None:
    """What we take from an archive, Python's tarfile finds in it, and nothing else. Headers get their checksums."""
    data += bytes(-len(data) % 512)
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    whole = b"".join(summed(block) if block[257:262] == b"ustar" else block for block in blocks) + bytes(1024)
    try:
        ours = _members(whole)
    except Refused:
        return
    theirs = []
    with suppress(tarfile.TarError), tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        # An old header says directory by a slash at its end; GNU tar looks at the end of the whole name, as we do.
        directories = [i.isdir() or (i.type == tarfile.AREGTYPE and i.name.endswith("/")) for i in archive]
        theirs = [
            (os.path.normpath(_name_of(i, whole)), d, i.size, int(i.mtime))
            for i, d in zip(archive, directories, strict=True)
        ]
    assert theirs == ours[: len(theirs)]  # it stops at owners that are no numbers, which we do not read


def _name_of(info: tarfile.TarInfo, whole: bytes) -> str:
    """Return its name without the prefix of a header that has no such field: GNU tar and we read it in ustar alone."""
    head = whole[info.offset_data - 512 : info.offset_data]
    name, prefix = (
        field.partition(b"\0")[0].decode("utf-8", "surrogateescape") for field in (head[:100], head[345:500])
    )
    joined = {f"{prefix}/{name}", f"{prefix}/{name.rstrip('/')}"}  # a directory's name without its slash
    return name if head[257:263] != b"ustar\0" and info.name in joined else info.name


def _members(whole: bytes) -> list[tuple[str, bool, int, int]]:
    ours, theirs = wire.pair()
    with ours, theirs, open(os.memfd_create("x"), "w+b") as memory:
        memory.write(whole)
        memory.seek(0)
        job = Job(ours, {"timeout_s": 60})
        inlet = Inlet(job, memory.fileno(), max_bytes=1 << 20, gzip=False)
        found = []
        for member in Members(inlet, max_entries=64):
            found.append((member.relative or ".", member.is_directory, member.size, _seconds(member.mtime_ns)))
            inlet.exactly(member.size)
        return found


def _seconds(ns: int) -> int:
    return abs(ns) // 1_000_000_000 * (1 if ns >= 0 else -1)


def git_configuration(data: bytes) -> None:
    """In what counts as plain, git reads nothing but what is listed; a plain pointer leads to no other place."""
    if is_plain_configuration(data):
        for key, named in keys_that_git_reads(data):
            assert key in (_OF_A_NAME if named else _OF_A_SECTION)
    if is_plain_pointer(data):
        target = data.removeprefix(b"gitdir: ").rstrip(b"\n")
        below = re.split(rb"\.git/(?:modules|worktrees)/", target)[-1]
        assert b".." not in below.split(b"/")
    assert not is_plain_common(data) or data.strip() == b"../.."


def text(data: bytes) -> None:
    """Any text becomes Unicode, once and for all; a JSON value stays what it is."""
    shown = safe_text(_text(data))
    assert is_unicode(shown)
    shown.encode()
    assert safe_text(shown) == shown
    assert len(shown) == len(_text(data))
    value = _parsed(json.loads, data)
    if value is not ValueError:
        json.dumps(json_value(value), allow_nan=False).encode()
        plain = _parsed(json.loads, json.dumps(json_value(value)).encode())
        assert json_value(plain) == plain


def ansi(data: bytes) -> None:
    """Plain output has no control characters, grows by nothing, and stays as it is; what is cut off is a beginning."""
    plain = strip_ansi(data.decode("utf-8", "replace"))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", plain)
    assert strip_ansi(plain) == plain
    assert len(plain) <= len(data)
    whole = whole_sequences(data)
    assert data.startswith(whole)
    assert len(data) - len(whole) <= SEQUENCE_BYTES
    assert whole_sequences(whole) == whole or b"\x1b" in whole
    assert whole == data or data[len(whole) :].startswith(b"\x1b")


# --- what is written down about it


def redaction(data: bytes) -> None:
    """A secret, wherever it stands in what is hidden, is in no record; and records are bounded text."""
    around = _text(data)
    secret = f"{around[: len(around) // 2]}{SECRET}{around[len(around) // 2 :]}"
    arguments = {
        "content": secret,
        "stdin_input": secret,
        around[:20]: {"nested": [secret]},
        "environment": {"API_KEY": secret, "X": around},
        "argv": [around.split(" ")[0], "--password", secret, around],
        "path": around,
    }
    if around[:20] not in {"path", "argv", "environment"}:
        redacted = redact_arguments(arguments)
        said = json.dumps(redacted.shown)
        assert SECRET not in said
        assert len(said) < 8 * 12 * (VALUE_CHARACTERS * 2 + 100)
        for quoted in (secret, repr(secret), json.dumps(secret)):
            assert SECRET not in redacted.scrub(f"failed on {quoted}!")
    shown = redact_text(around)
    assert is_unicode(shown)
    assert len(shown) <= 2 * VALUE_CHARACTERS + 40
    hide_secrets(around).encode()
    parsed = _parsed(json.loads, data)
    if parsed is not ValueError:
        json.dumps(redact_arguments(parsed).shown).encode()


def secret_words(data: bytes) -> None:
    """A word that hides a secret is what is shown and the secret; a script loses its secrets and nothing else."""
    script = _text(data)
    words = script.split(" ")
    for word, hidden in zip(words, hidden_in(words), strict=True):
        if hidden is not None:
            assert hidden.secret in word
            assert word.startswith(hidden.shown.rstrip()) or ":" in word
    shown, secrets = without_secrets(script, REDACTED)
    assert shown.count(REDACTED) == script.count(REDACTED) + len(secrets) - sum(s.count(REDACTED) for s in secrets)
    assert all(secret in script for secret in secrets)
    if not secrets:
        assert shown == script


# --- what an operator or an agent writes


def yaml_document(data: bytes) -> None:
    """What is read without a fault is what PyYAML reads; a fault names a line that there is."""
    try:
        written = data.decode()
    except UnicodeDecodeError:
        return
    document = parse_yaml(written, "f")
    for fault in document.faults:
        assert 1 <= fault.line <= len(re.split(r"\r\n|[\n\r\x85\u2028\u2029]", written)) + 1
        assert str(fault).isprintable()
    if not document.faults:
        # Of `<<` and dates, which are keys and texts to us; a ValueError is a day that no month has.
        with suppress(yaml.constructor.ConstructorError, ValueError):
            theirs = yaml.load(written, _LOADER)  # noqa: S506  a safe one
            assert _same(document.root.plain(), theirs)


def _same(ours: Any, theirs: Any) -> bool:
    """Dates are text to us, and `<<` and `=` keys like others: there the readers differ on purpose."""
    if isinstance(ours, dict):
        return "<<" in ours or (
            isinstance(theirs, dict)
            and ours.keys() == {str(key) for key in theirs}
            and all(_same(ours[str(key)], value) for key, value in theirs.items())
        )
    if isinstance(ours, list):
        return isinstance(theirs, list) and all(map(_same, ours, theirs)) and len(ours) == len(theirs)
    return (type(ours) is type(theirs) and ours == theirs) or (isinstance(ours, str) and not isinstance(theirs, str))


def configuration(data: bytes) -> None:
    """Two files (a NUL between) are a configuration, or all that is wrong with them."""
    server, _, policy = data.partition(b"\0")
    check_answer(loaded(server, policy))


def path_pattern(data: bytes) -> None:
    """A pattern and a path (a line each) match as the regular expression does that the documents describe."""
    pattern, _, path = _text(data[:SLOW_CHARACTERS]).partition("\n")
    try:
        check_pattern("p", pattern)
    except ValueError:
        return
    parts, names = components(pattern), components(path)
    pieces = ["(?:/[^/]+)*" if part == ANY_DEPTH else f"/{_wild(part)}" for part in parts]
    if pieces.count("(?:/[^/]+)*") > 4 or sum(part.count("*") for part in parts) > 8:
        return
    expected = [
        depth
        for depth in range(len(names) + 1)
        if re.fullmatch("".join(pieces), "".join(f"/{name}" for name in names[:depth]), re.DOTALL)
    ]
    assert list(matched_depths(parts, names)) == expected


def _wild(part: str) -> str:
    return "".join({"*": "[^/]*", "?": "[^/]"}.get(c, re.escape(c)) for c in re.sub(r"\*+", "*", part))


def tree_glob(data: bytes) -> None:
    """A glob of a search is refused, or matches as a plain reading of it does; sets and braces at least compile."""
    glob, _, path = _text(data[:SLOW_CHARACTERS]).partition("\n")
    try:
        matches = compile_globs([glob])
    except Refused:
        assert set(glob) & set("[{")
        return
    assert matches is not None
    if set(glob) & set("[]{},\\") or glob.count("*") > 8 or "" in path.split("/"):
        return
    assert bool(matches(path)) == _reads(glob.lstrip("/"), path, anywhere="/" not in glob)


def _reads(glob: str, path: str, *, anywhere: bool) -> bool:
    if anywhere and "/" in path and glob != "**":
        return _walks(glob, path.rpartition("/")[2], fresh=True)
    return _walks(glob, path, fresh=True)


@functools.lru_cache(maxsize=4096)
def _walks(glob: str, path: str, *, fresh: bool) -> bool:
    """Character by character. *fresh*: a component begins here."""
    if fresh and glob == "**":
        return bool(path)
    if fresh and glob.startswith("**/"):
        name, slash, below = path.partition("/")
        return _walks(glob[3:], path, fresh=True) or (bool(name and slash) and _walks(glob, below, fresh=True))
    if not glob:
        return not path
    if glob[0] == "*":
        return _walks(glob[1:], path, fresh=False) or (
            bool(path) and path[0] != "/" and _walks(glob, path[1:], fresh=False)
        )
    fits = bool(path) and (glob[0] == path[0] or (glob[0] == "?" and path[0] != "/"))
    return fits and _walks(glob[1:], path[1:], fresh=glob[0] == "/")


TARGETS: Mapping[str, Callable[[bytes], None]] = MappingProxyType(
    {
        target.__name__: target
        for target in (
            *(body_shape, bulk, bulk_answer, arguments, request_head, transfer_head, inside_message, opener_answers),
            *(tar, git_configuration, text, ansi, redaction, secret_words, yaml_document, configuration),
            *(path_pattern, tree_glob),
        )
    }
)
