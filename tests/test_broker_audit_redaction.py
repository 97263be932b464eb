"""What the audit must not know: contents, standard input, secrets; wherever in a call they were."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from broker.audit import AuditSettings, Event, EventType, open_audit
from broker.contract import TOOLS, InvalidArguments
from broker.redact import REDACTED, redact_arguments, redact_text
from broker.secretwords import is_secret_name, without_secrets

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
