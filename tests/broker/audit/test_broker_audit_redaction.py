"""What the audit must not know: contents, standard input, secrets; wherever in a call they were."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from broker.audit.audit import AuditSettings, Event, EventType, open_audit
from broker.audit.redact import (
    DIGEST_BYTES,
    LOOKED_AT,
    REDACTED,
    SCRUBBED_VALUES,
    SHOWN_ITEMS,
    SHOWN_NUMBER,
    VALUE_CHARACTERS,
    redact_arguments,
    redact_text,
)
from broker.audit.secret_words import hidden_in, is_secret_name, without_secrets
from broker.contract.faults import InvalidArguments
from broker.contract.table import TOOLS

# A busy machine is no failure.
unhurried = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
SECRET = "Zq7-very/secret+Value"  # noqa: S105  made up


def raw_logs(folder: Path, arguments: object, error: str = "", exception: Exception | None = None) -> bytes:
    """Record a call with everything that can be known of it; return every byte of both logs."""
    settings = AuditSettings(audit_log=folder / "a", error_log=folder / "b", max_bytes=0, backup_count=0)
    with open_audit(settings) as audit:
        event = Event(
            event_type=EventType.TOOL_FAILED,
            arguments=redact_arguments(arguments),
            error=error or None,
            exception=exception,
        )
        trio.run(audit.begin, event)
        audit.end(event)
    return (folder / "a").read_bytes() + (folder / "b").read_bytes()


SECRET_CALLS: list[object] = [
    {"path": "a", "content": SECRET},
    {"path": "a", "content": {"nested": [SECRET, {SECRET: SECRET}]}},
    {"argv": ["psql"], "stdin_input": SECRET},
    {"argv": ["psql"], "stdin_input": [SECRET]},
    {"chunk_data": SECRET},
    {"contnet": SECRET},
    {"path": {"content": SECRET}},
    {"environment": SECRET},
    {"environment": {"API_KEY": SECRET, "GITHUB_TOKEN": SECRET, "dbPassword": SECRET, "PGPASS": SECRET}},
    {"environment": {"A": [SECRET]}},
    {"environment": {"DATABASE_URL": f"postgres://user:{SECRET.replace('/', '')}@db/x"}},
    {"argv": ["mysql", f"--password={SECRET}"]},
    {"argv": ["mysql", "--password", SECRET]},
    {"argv": ["curl", "-H", f"Authorization: Bearer {SECRET}"]},
    {"argv": ["x", f'{{"api_key": "{SECRET}"}}', f"token: '{SECRET} with spaces {SECRET}'"]},
    {"argv": ["env", f"AWS_SECRET_ACCESS_KEY={SECRET}"]},
    {"argv": ["curl", "-u", f"user:{SECRET}", "https://h/"]},
    {"argv": ["curl", f"-uuser:{SECRET}", "https://h/"]},
    {"argv": ["curl", f"-sSuuser:{SECRET}"]},
    {"argv": ["curl", "-sSu", f"user:{SECRET}"]},
    {"argv": ["/usr/bin/curl", "--user", f"user:{SECRET}"]},
    {"argv": ["curl", f"--user=user:{SECRET}"]},
    {"argv": ["curl", "--proxy-user", f"user:{SECRET}"]},
    {"argv": ["curl", "--oauth2-bearer", SECRET]},
    {"argv": ["curl", f"--header=PRIVATE-TOKEN: {SECRET}"]},
    {"argv": ["curl", "--header", f"PRIVATE-TOKEN: {SECRET}"]},
    {"argv": ["curl", "-H", f"X-Api-Key: {SECRET}"]},
    {"argv": ["curl", "-H", f"Cookie: a=b; session={SECRET}; c=d"]},
    {"argv": ["curl", f"-HX-Auth-Token: {SECRET}"]},
    {"argv": ["curl", "-H", f"Authorization: AWS4-HMAC-SHA256 Credential=x, Signature={SECRET}"]},
    {"argv": ["http", "-a", f"user:{SECRET}", "h"]},
    {"argv": ["mysql", "-u", "root", f"-p{SECRET}", "db"]},
    {"argv": ["mysqldump", f"-p{SECRET}", "db"]},
    {"argv": ["timeout", "5", "mysql", f"-p{SECRET}"]},
    {"argv": ["sshpass", "-p", SECRET, "ssh", "h"]},
    {"argv": ["sshpass", f"-p{SECRET}", "ssh", "h"]},
    {"argv": ["docker", "login", "-u", "me", "-p", SECRET, "registry"]},
    {"argv": ["redis-cli", "-a", SECRET, "ping"]},
    {"argv": ["ldapsearch", "-D", "cn=me", "-w", SECRET]},
    {"argv": ["smbclient", "//h/s", "-U", f"me%{SECRET}"]},
    {"argv": ["zip", "-P", SECRET, "a.zip", "a"]},
    {"argv": ["7z", "a", f"-p{SECRET}", "a.7z"]},
    {"argv": ["openssl", "enc", "-k", SECRET]},
    {"argv": ["jq", "-n", "--arg", "token", SECRET, "$token"]},
    {"argv": ["git", "config", "--global", "user.password", SECRET]},
    {"argv": ["aws", "configure", "set", "aws_secret_access_key", SECRET]},
    {"argv": ["npm", "config", "set", f"//registry/:_authToken={SECRET}"]},
    {"argv": ["x", "--token", SECRET]},
    {"argv": ["x", f"--token={SECRET}"]},
    {"argv": ["psql", f"postgres://user:{SECRET.replace('/', '')}@db/x"]},
    {"argv": ["sh", "-c", f"cd /x && mysql -uroot -p{SECRET} db < dump"]},
    {"argv": ["sh", "-c", f"curl -u 'user:{SECRET}' -H \"X-Api-Key: {SECRET}\" https://h/"]},
    {"argv": ["sh", "-c", f"sshpass -p '{SECRET} and {SECRET}' ssh h"]},
    {"argv": ["sh", "-c", f"deploy --password {SECRET}"]},
    {"argv": [[SECRET]]},
    {"argv": SECRET},
    {"mode": [SECRET], "offset": SECRET, "confirm": SECRET, "session_id": 3},
    SECRET,
    [SECRET],
]


@pytest.mark.parametrize("arguments", SECRET_CALLS, ids=range(len(SECRET_CALLS)))
def test_secrets_never_reach_a_log(tmp_path: Path, arguments: object) -> None:
    assert SECRET.replace("/", "") in json.dumps(arguments).replace("/", "")
    logs = raw_logs(tmp_path, arguments)
    assert SECRET.encode() not in logs
    assert SECRET.replace("/", "").encode() not in logs


def test_an_error_that_quotes_what_was_hidden_is_scrubbed(tmp_path: Path) -> None:
    odd = 'line one\n"quoted" \u00e9 line two'
    for arguments in ({"content": odd}, {"argv": ["x", "--password", odd]}, {"environment": {"A_TOKEN": odd}}):
        error = f"cannot use {odd} nor {odd!r} nor {json.dumps(odd)}"
        logs = raw_logs(tmp_path, arguments, error, ValueError(error))
        assert b"line one" not in logs
        assert b"line two" not in logs
        assert b"cannot use" in logs


def test_a_refused_call_is_logged_without_its_contents(tmp_path: Path) -> None:
    arguments = {"session_id": "s", "path": "a", "content": [SECRET], "mode": "overwite", "extra": SECRET}
    with pytest.raises(InvalidArguments) as caught:
        TOOLS["write_file"].decode(arguments)
    logs = raw_logs(tmp_path, arguments, caught.value.message, caught.value)
    assert SECRET.encode() not in logs
    assert b"overwite" in logs


unlikely = st.text("QXZ", min_size=12, max_size=20)


@unhurried
@given(secret=unlikely, before=st.text(max_size=20), after=st.text(max_size=20), data=st.data())
def test_hidden_arguments_stay_hidden_in_any_text_about_them(
    secret: str, before: str, after: str, data: st.DataObject
) -> None:
    whole = before + secret + after
    name = data.draw(st.sampled_from(["content", "stdin_input", "chunk_data", "whatever"]))
    redacted = redact_arguments({name: whole, "environment": {"X_SECRET": whole}, "argv": ["--token", whole]})
    assert secret not in json.dumps(redacted.shown)
    for quoted in (whole, repr(whole), json.dumps(whole)):
        assert secret not in redacted.scrub(f"failed on {quoted}!")
    assert secret not in repr(redacted)


def test_what_was_hidden_is_taken_out_of_a_text_as_it_is_and_as_it_is_quoted() -> None:
    odd = 'line one\n"quoted" \u00e9'
    redacted = redact_arguments({"content": odd})
    assert redacted.scrub(odd) == REDACTED
    assert redacted.scrub(f"{odd!r} or {json.dumps(odd)}") == f"'{REDACTED}' or \"{REDACTED}\""


def test_of_two_secrets_the_longer_one_is_taken_out_first() -> None:
    for names in (("content", "stdin_input"), ("stdin_input", "content")):
        redacted = redact_arguments(dict(zip(names, ("hunter2", "hunter2-and-more"), strict=True)))
        assert redacted.scrub("hunter2-and-more hunter2") == f"{REDACTED} {REDACTED}"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"argv": [["hunter2"]]}, id="no word"),
        pytest.param({"argv": ["x", "--token", "hunter2"]}, id="behind an option"),
        pytest.param({"argv": ["sh", "-c", "curl -u me:hunter2"]}, id="in a command line"),
        pytest.param({"environment": {"TOKEN": "hunter2"}}, id="a variable"),
        pytest.param({"content": [[{"a": "hunter2"}]]}, id="deep inside"),
        pytest.param("hunter2", id="no arguments at all"),
        pytest.param(["hunter2"], id="a list instead of arguments"),
    ],
)
def test_wherever_a_secret_was_hidden_it_is_taken_out_of_texts(arguments: object) -> None:
    assert redact_arguments(arguments).scrub("not hunter2 again") == f"not {REDACTED} again"


def test_a_short_secret_is_left_in_texts_where_it_may_stand_by_chance() -> None:
    assert redact_arguments({"content": "abcdef"}).scrub("abcdef") == REDACTED
    assert redact_arguments({"content": "abcde"}).scrub("abcde") == "abcde"


def test_of_many_little_strings_so_many_are_taken_out_of_texts() -> None:
    strings = [f"string {number:04d}." for number in range(2 * SCRUBBED_VALUES)]
    text = redact_arguments({"content": strings}).scrub(" ".join(strings))
    assert text.count(REDACTED) == SCRUBBED_VALUES


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
)
names = st.sampled_from(["argv", "environment", "content", "path", "offset", "timeout_seconds"])


@unhurried
@given(json_values | st.dictionaries(names, json_values, max_size=6))
def test_any_arguments_can_be_redacted(arguments: object) -> None:
    redact_arguments(arguments).scrub("text")


def test_contents_show_their_size_and_digest() -> None:
    shown = redact_arguments({"content": "hé", "stdin_input": "hé", "chunk_data": "aGk="}).shown
    digest = hashlib.sha256("hé".encode()).hexdigest()
    # No digest of standard input: of a short password it is as good as the password.
    assert shown == {
        "content": {"bytes": 3, "sha256": digest},
        "stdin_input": {"bytes": 3},
        "chunk_data": {"bytes": 4},
    }


def test_contents_up_to_so_many_bytes_have_a_digest() -> None:
    for size, digested in ((DIGEST_BYTES, True), (DIGEST_BYTES + 1, False)):
        (shown,) = redact_arguments({"content": "x" * size}).shown.values()
        assert isinstance(shown, dict)
        assert shown["bytes"] == size
        assert ("sha256" in shown) == digested


def test_what_is_no_object_shows_its_size_without_a_digest() -> None:
    assert redact_arguments("hé").shown == {"arguments": {"bytes": 3}}
    assert redact_arguments([1]).shown == {"arguments": {"type": "list"}}
    assert redact_arguments({"argv": ["ls", 1, ["x"]]}).shown == {"argv": ["ls", {"type": "int"}, {"type": "list"}]}


def test_so_many_items_are_shown_and_the_others_counted() -> None:
    for count, more in ((SHOWN_ITEMS, 0), (SHOWN_ITEMS + 1, 1)):
        names = {f"unknown{number}": None for number in range(count)}
        shown = redact_arguments(names).shown
        assert list(shown) == [*list(names)[:SHOWN_ITEMS], *(["..."] * more)]
        assert shown.get("...") == (f"{more} more" if more else None)
        listed = redact_arguments({"argv": list(names), "environment": dict.fromkeys(names, "x")}).shown
        assert listed["argv"] == [*list(names)[:SHOWN_ITEMS], *([f"... {more} more"] * more)]
        variables = dict.fromkeys(list(names)[:SHOWN_ITEMS], "x")
        assert listed["environment"] == variables | ({"...": f"{more} more"} if more else {})


def test_secret_variables_and_what_is_no_text_show_their_names() -> None:
    environment = {"API_TOKEN": "x", "LANG": ["C"], "TERM": "vt100"}
    shown = redact_arguments({"environment": environment}).shown
    assert shown == {"environment": {"API_TOKEN": REDACTED, "LANG": REDACTED, "TERM": "vt100"}}


def test_globs_are_shown_one_by_one() -> None:
    arguments = {"include": ["*.py"], "exclude": ["*.pyc", "a b"]}
    assert redact_arguments(arguments).shown == arguments


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_is_shown_unless_it_is_enormous(sign: int) -> None:
    largest = sign * (SHOWN_NUMBER - 1)
    assert redact_arguments({"offset": largest}).shown == {"offset": largest}
    assert redact_arguments({"offset": sign * SHOWN_NUMBER}).shown == {"offset": "a number"}


def test_a_text_is_cut_behind_so_many_characters_and_says_its_size() -> None:
    longest = "é" * VALUE_CHARACTERS
    assert redact_text(longest) == longest
    assert redact_text(longest + "x") == f"{longest}... [{2 * VALUE_CHARACTERS + 1} bytes]"


def test_a_text_of_many_short_secrets_is_cut_where_it_has_grown_to_more_than_twice_what_is_shown() -> None:
    grown = f"pin={REDACTED}"
    assert redact_text("pin=1", len(grown) // 2) == grown
    assert redact_text("pin=1", len(grown) // 2 - 1) == f"{grown[: len(grown) // 2 - 1]}... [5 bytes]"


def test_a_long_command_line_shows_its_whole_size() -> None:
    script = "ls a; " * LOOKED_AT * VALUE_CHARACTERS
    assert redact_arguments({"argv": [script]}).shown == {"argv": [redact_text(script)]}


def test_what_follows_a_name_that_is_no_secret_may_be_one() -> None:
    assert redact_text("key: token=hunter2, host=h") == f"key: token={REDACTED}, host=h"
    assert redact_text("token=") == "token="


def test_what_happened_stays_readable() -> None:
    arguments: dict[str, Any] = {
        "session_id": "s-1",
        "argv": ["git", "log", "--author=me", "-n", "5", "--", "src/key.py", "https://host:8080/x", "ssh://git@h/r"],
        "timeout_seconds": 2.5,
        "confirm": True,
        "path": "/home/u/tokens/a.txt",
        "environment": {"LANG": "C", "PWD": "/tmp", "KEYBOARD": "de", "AUTHOR": "me"},
        "working_dir": None,
    }
    assert redact_arguments(arguments).shown == arguments


@pytest.mark.parametrize(
    "argv",
    [
        ["docker", "run", "-p", "8080:80", "-u", "1000:1000", "--user", "1000:1000", "image"],
        ["mysql", "-u", "root", "-p", "db", "--host=h", "-P", "3306"],
        ["ssh", "-p", "22", "me@h", "ls -la /tmp"],
        ["mkdir", "-p", "a/b"],
        ["curl", "-sSfL", "-o", "out", "-H", "Accept: text/html", "https://h:8080/x?user=me"],
        ["curl", "-u", "user"],
        ["jq", "--arg", "name", "value", "-r", ".[] | .key"],
        ["git", "config", "--global", "user.name", "Somebody"],
        ["git", "commit", "-m", "say how tokens are counted: twice"],
        ["python3", "-c", "import sys; print(sys.argv, end='')"],
        ["sed", "-i", "s/a/b/", "password.txt"],
        ["unzip", "-p", "a.zip", "b"],
        ["make", "-j4", "CFLAGS=-O2 -g", "all"],
    ],
    ids=" ".join,
)
def test_what_is_no_secret_stays_readable(argv: list[str]) -> None:
    assert redact_arguments({"argv": argv}).shown == {"argv": argv}


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        # an option whose value is a secret
        ("x --token a after", "x --token * after"),
        ("x --token password after", "x --token * after"),
        ("x --token -v after", "x --token * after"),
        ("x --password --token a after", "x --password * * after"),
        ("x =a after", "x =a after"),
        ("x --token=a after", "x --token=* after"),
        ("env API_KEY=a after", "env API_KEY=* after"),
        ("openssl -passin pass:a after", "openssl -passin * after"),
        ("openssl -passin=pass:a after", "openssl -passin=* after"),
        ("x -passin pass:a -passin=pass:a", "x -passin pass:a -passin=pass:a"),
        ("mysql -pa=b after", "mysql -p* after"),
        ("/usr/bin/mysql -pa -p after", "/usr/bin/mysql -p* -p after"),
        # a user and a password
        ("curl -u me:a after", "curl -u me:* after"),
        ("curl -u -k me:a", "curl -u -k me:a"),
        ("curl -s me:a", "curl -s me:a"),
        ("curl -sSu me:a after", "curl -sSu me:* after"),
        ("curl -sSume:a after", "curl -sSume:* after"),
        ("curl --user=me:a after", "curl --user=me:* after"),
        ("smbclient -U me%a:b after", "smbclient -U me%* after"),
        ("sort -u me:a -uk1:2", "sort -u me:a -uk1:2"),
        ("docker login -p a after", "docker login -p * after"),
        ("ssh login -p 22", "ssh login -p 22"),
        ("docker run -p 80:80", "docker run -p 80:80"),
        # more than one program, or a word that is the name of one by chance
        ("curl -o ab -u me:a after", "curl -o ab -u me:* after"),
        ("curl -o ab -sSume:a after", "curl -o ab -sSume:* after"),
        ("mysql ab -pa after", "mysql ab -p* after"),
        ("zip ab -P a after", "zip ab -P * after"),
        ("sshpass -p a mysql -pb after", "sshpass -p * mysql -p* after"),
        ("docker ab login -p a after", "docker ab login -p * after"),
        ("docker login -p a docker run -p 80:80", "docker login -p * docker run -p 80:80"),
        # a header
        ("curl -H X-Api-Key:a after", "curl -H 'X-Api-Key: *' after"),
        ("curl '--header=X-Api-Key: a' after", "curl '--header=X-Api-Key: *' after"),
        ("curl -H Authorization after", "curl -H Authorization after"),
        ("curl -H Host:token", "curl -H Host:token"),
        ("curl -H -k Cookie:a", "curl -H -k Cookie:a"),
        # a name, and then its value
        ("git config user.password a after", "git config user.password * after"),
        ("git config --global user.password a after", "git config --global user.password * after"),
        ("git config user.name a --global b", "git config user.name a --global b"),
        ("jq --arg token a after", "jq --arg token * after"),
        ("jq --arg token=1 a after", "jq --arg token=1 * after"),
    ],
)
def test_of_a_word_the_secret_is_hidden_and_nothing_else(line: str, shown: str) -> None:
    words = shlex.split(line)
    hidden = hidden_in(words)
    said = [word if found is None else f"{found.shown}*" for word, found in zip(words, hidden, strict=True)]
    assert said == shlex.split(shown)
    secrets = [found.secret for found in hidden if found is not None]
    script, found = without_secrets(line.replace("'", '"'), "*")
    assert (" ".join(shlex.split(script)), found) == (" ".join(said), secrets)


word = st.text("abcdefgh0123456789./_", min_size=1, max_size=8).filter(lambda text: not is_secret_name(text))
option = st.from_regex(r"--?[a-gi-oq-z]{1,5}", fullmatch=True).filter(lambda text: not is_secret_name(text.strip("-")))
programs = st.sampled_from(["curl", "mysql", "sshpass", "docker", "jq", "ls", "/usr/bin/python3"])
hiding = {
    "curl": (["-u", "u:{}"], ["--user=u:{}"], ["-H", "X-Api-Key: {}"], ["--header=PRIVATE-TOKEN: {}"]),
    "mysql": (["-p{}"], ["--password={}"]),
    "sshpass": (["-p", "{}"], ["-p{}"]),
    "docker": (["login", "-p", "{}"], ["--password", "{}"]),
    "jq": (["--arg", "token", "{}"],),
    "ls": (["--token={}"],),
    "/usr/bin/python3": (["--token", "{}"],),
}


@unhurried
@given(programs, st.lists(word, max_size=4), st.lists(word, max_size=4), unlikely, st.data())
def test_a_secret_is_hidden_among_words_and_the_words_are_not(
    program: str, before: list[str], after: list[str], secret: str, data: st.DataObject
) -> None:
    template = data.draw(st.sampled_from(hiding[program]))
    argv = [program, *before, *(part.format(secret) for part in template), *after]
    redacted = redact_arguments({"argv": argv})
    (shown,) = redacted.shown.values()
    assert isinstance(shown, list)
    assert len(shown) == len(argv)
    assert secret not in json.dumps(shown)
    assert secret not in redacted.scrub(f"cannot use {secret}")
    assert shown[: len(before) + 1] == [program, *before]
    assert shown[len(argv) - len(after) :] == after
    script = redact_arguments({"argv": ["sh", "-c", " ".join(f"'{w}'" if " " in w else w for w in argv)]})
    assert secret not in json.dumps(script.shown)


@unhurried
@given(programs, st.lists(word | option, max_size=12))
def test_words_and_options_that_are_no_secrets_survive(program: str, words: list[str]) -> None:
    argv = ["env", program, *(text for text in words if text not in {"-u", "-b", "-U"})]
    kept = [text for text in argv if not text.startswith("-u") or program != "curl"]
    cluster = program == "curl" and any(text.endswith("u") and text.startswith("-") for text in kept)
    assert cluster or redact_arguments({"argv": kept}).shown == {"argv": kept}


TELLING_NAMES = """
    PASSWORD DB_PASSWORD PGPASSWORD PGPASS MYSQL_PWD SECRET AWS_SECRET_ACCESS_KEY GITHUB_TOKEN TOKEN API_KEY APIKEY
    apiKey STRIPE_KEY SSH_KEYS KEY HTTP_COOKIE NPM_AUTH AUTH_HEADER GOOGLE_CREDENTIALS SENTRY_DSN private-key JWT
"""
INNOCENT_NAMES = "PATH HOME PWD OLDPWD LANG AUTHOR KEYBOARD MONKEY COMPASS EDITOR TERM"


@pytest.mark.parametrize("name", TELLING_NAMES.split())
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", INNOCENT_NAMES.split())
def test_innocent_names(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "text",
    [
        "ghp_0123456789abcdefghijABCDEFGHIJ",
        "https://ghp_0123456789abcdefghij@github.com/a/b",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nMIIabc",
    ],
)
def test_things_that_look_like_keys_are_hidden_anywhere(text: str) -> None:
    hidden = redact_text(f"before {text} after")
    assert text not in hidden
    assert "MIIabc" not in hidden
    assert hidden.startswith("before ")
    assert REDACTED in hidden


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "a-",
        "-",
        "a:",
        "://",
        "a://b",
        "a=",
        "token",
        "token=",
        "'",
        '"',
        "k: ",
        "eyJ",
        "curl -u a:b ",
        'mysql -p"',
        "--token '",
    ],
)
def test_redaction_takes_time_in_proportion(unit: str) -> None:
    """A client can send a megabyte of anything: twice the text may take twice the time, not four times."""

    def cost_s(characters: int) -> float:
        text = unit * (characters // len(unit))
        started_s = time.process_time()
        redact_text(text, characters)
        without_secrets(text, REDACTED)
        return time.process_time() - started_s

    assert cost_s(200_000) < 2.0  # quadratic patterns take minutes for this
