"""What is accepted, what fills the gaps, and where relative paths lead."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from config.faults import ConfigFaults
from config.load import Config, load_config
from policy.rules import ClosedPath

if TYPE_CHECKING:
    from collections.abc import Callable

    from config.settings import ServerSettings

    Load = Callable[..., Config]


EITHER = "an entry has either use (the name of a pack) or path (a pattern)"


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def write_and_load(*, server: str = "", policy: str = "") -> Config:
        folder = tmp_path / "config"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        for name, text in (("server.yaml", server), ("policy.yaml", policy)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o644)
        return load_config(folder)

    return write_and_load


@pytest.mark.parametrize("text", ["", "# nothing\n", "server:\n", "server: {}\n", "server:\n  logging:\n"])
def test_an_empty_server_file_takes_every_default(load: Load, text: str) -> None:
    server = load(server=text).server
    assert (server.host, server.port, server.drain_s) == ("127.0.0.1", 8080, 5)
    assert server.max_body_bytes == 20 * 1024 * 1024
    assert server.logging.level == "INFO"
    assert server.logging.max_size_bytes == 50 * 1024 * 1024


@pytest.mark.parametrize("text", ["", "policy:\n", "policy: {}\n", "policy:\n  allowed_commands:\n"])
def test_an_empty_policy_allows_nothing_and_says_so(load: Load, text: str) -> None:
    config = load(policy=text)
    assert config.policy.allowed_commands == {}
    assert config.policy.allowed_paths == ()
    assert config.policy.blocked_paths == (ClosedPath(use="persistence"), ClosedPath(use="secrets"))
    assert [w for w in config.warnings if "allows no command" in w]
    assert [w for w in config.warnings if "allows no path" in w]


def test_a_key_given_leaves_its_neighbours_at_their_defaults(load: Load) -> None:
    timeouts = load(server="server:\n  timeouts:\n    command_max: 900\n").server.timeouts
    assert (timeouts.command_max, timeouts.command_default, timeouts.kill_grace) == (900, 30, 2)


def test_own_lists_replace_the_defaults_and_absent_ones_keep_them(load: Load) -> None:
    policy = load(policy="policy:\n  blocked_paths: ['/srv/secret/**']\n").policy
    assert policy.blocked_paths == ("/srv/secret/**",)
    assert ".so" in policy.file_limits.blocked_extensions


def test_blocked_paths_can_be_emptied_only_on_purpose(load: Load) -> None:
    assert load(policy="policy:\n  blocked_paths: []\n").policy.blocked_paths == ()
    with pytest.raises(ConfigFaults, match="expected a list, found nothing"):
        load(policy="policy:\n  blocked_paths:\n")


def test_an_entry_of_blocked_paths_is_a_pattern_a_pack_or_a_pattern_with_its_reason(load: Load) -> None:
    text = "policy:\n  blocked_paths: ['/a/**', {use: secrets}, {path: '**/x', close: writing, why: it is obeyed}]\n"
    assert load(policy=text).policy.blocked_paths == (
        "/a/**",
        ClosedPath(use="secrets"),
        ClosedPath(path="**/x", close="writing", why="it is obeyed"),
    )


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (
            "{use: secret}",
            "blocked_paths[1].use: use names no pack: 'secret'; there are persistence, secrets; did you mean secrets?",
        ),
        ("{uses: secrets}", "blocked_paths[1].uses: unknown key; did you mean use?"),
        ("{path: x}", "blocked_paths[1].path: path entry 'x' must begin with '/', '~/' or '**/'"),
        ("{path: /x, close: reading}", "blocked_paths[1].close: must be one of all, writing, is 'reading'"),
        (
            "{path: /x, use: secrets}",
            "blocked_paths[1]: an entry has either use (the name of a pack) or path (a pattern)",
        ),
        ("{}", "blocked_paths[1]: an entry has either use (the name of a pack) or path (a pattern)"),
        ("{use: secrets, close: all, why: x}", "blocked_paths[1]: close and why stand beside path; a pack has its own"),
        ("7", "blocked_paths[1]: expected text, found a whole number (7); put it in quotes"),
        ("[/x]", "blocked_paths[1]: expected text, found a list"),
    ],
)
def test_an_entry_that_says_nothing_clear_is_a_fault_with_its_line(load: Load, entry: str, fault: str) -> None:
    with pytest.raises(ConfigFaults) as caught:
        load(policy=f"policy:\n  blocked_paths:\n    - /a/**\n    - {entry}\n")
    assert [str(each).partition("policy.yaml:")[2] for each in caught.value.faults] == [f"4: policy.{fault}"]


def test_limits_of_one_command_may_be_written_as_digits(load: Load) -> None:
    rule = "{executable: /bin/ls, resource_override: {memory_max: '4096', pids_max: 4}}"
    text = f"policy:\n  allowed_commands:\n    ls: {rule}\n"
    override = load(policy=text).policy.allowed_commands["ls"].resource_override
    assert override
    assert (override.memory_max, override.pids_max, override.open_files_max) == (4096, 4, None)


def test_an_example_is_a_line_or_a_list(load: Load) -> None:
    text = (
        "policy:\n  allowed_commands:\n    ls:\n      executable: /bin/ls\n      max_args: 2\n"
        "      examples:\n        allow: [ls -l, [ls, 'a b']]\n        deny: ['ls a b']\n"
    )
    examples = load(policy=text).policy.allowed_commands["ls"].examples
    assert examples
    assert (examples.allow, examples.deny) == (("ls -l", ("ls", "a b")), ("ls a b",))


def test_a_whole_number_is_a_number(load: Load) -> None:
    assert load(server="server:\n  drain_s: 7\n").server.drain_s == 7.0


@pytest.mark.parametrize("port", [0, 1, 65535])
def test_ports_reach_from_a_free_one_to_the_last(load: Load, port: int) -> None:
    assert load(server=f"server:\n  port: {port}\n").server.port == port


@pytest.mark.parametrize("host", ["127.0.0.1", "::", "::1", "fe80::1%eth0", "localhost", "box.lan", "box.lan.", "a_b"])
def test_a_host_is_an_address_or_a_name(load: Load, host: str) -> None:
    assert load(server=f"server:\n  host: '{host}'\n").server.host == host


@pytest.mark.parametrize(
    "host", ["", " ", "*", "[::1]", "127.0.0.1:80", "300.1.1.1", "127.0.1", "a b", "-a", "a..b", "x" * 64, "a/b"]
)
def test_what_is_no_host_is_refused(load: Load, host: str) -> None:
    with pytest.raises(ConfigFaults, match=r"server\.host: must be an IP address or a host name"):
        load(server=f"server:\n  host: '{host}'\n")


def test_allowed_hosts_and_origins_are_kept_in_lower_case(load: Load) -> None:
    server = load(
        server=(
            "server:\n  allowed_hosts: [Box.LAN, 'box:80', 'box:*', 10.0.0.1, '[::1]:80', '[::1]']\n"
            "  allowed_origins: ['https://Box', 'http://box:3000', 'http://[::1]:*']\n"
        )
    ).server
    assert server.allowed_hosts == ("box.lan", "box:80", "box:*", "10.0.0.1", "[::1]:80", "[::1]")
    assert server.allowed_origins == ("https://box", "http://box:3000", "http://[::1]:*")


@pytest.mark.parametrize("entry", ["", "*", "*:80", "box:", "box:0", "box:65536", "box:x", "::1", "http://box", "a,b"])
def test_an_allowed_host_that_matches_nothing_is_refused(load: Load, entry: str) -> None:
    with pytest.raises(ConfigFaults, match="is not host, host:port or host:"):
        load(server=f"server:\n  allowed_hosts: ['{entry}']\n")


@pytest.mark.parametrize("entry", ["", "*", "null", "box", "ftp://box", "https://", "https://box/", "https://*"])
def test_an_allowed_origin_that_matches_nothing_is_refused(load: Load, entry: str) -> None:
    with pytest.raises(ConfigFaults, match="is not scheme://host"):
        load(server=f"server:\n  allowed_origins: ['{entry}']\n")


def test_relative_paths_start_in_the_folder_that_holds_config(load: Load, tmp_path: Path) -> None:
    server = load(server="server:\n  logging: {audit_log: a/b.jsonl}\n  sandbox: {cgroup_base: cg}\n").server
    assert server.logging.audit_log == tmp_path / "a" / "b.jsonl"
    assert server.logging.error_log == tmp_path / "a" / "b-errors.jsonl"
    assert server.sandbox.cgroup_base == "cg"  # names no cgroup, so it stays as it is


def test_absolute_and_home_paths_stay_where_they_are(load: Load) -> None:
    server = load(
        server="server:\n  logging: {audit_log: ~/a.log, error_log: /var/e.log}\n  sandbox: {cgroup_base: ''}\n"
    ).server
    assert server.logging.audit_log == Path.home() / "a.log"
    assert server.logging.error_log == Path("/var/e.log")
    assert server.sandbox.cgroup_base == ""


def test_missing_programs_are_one_warning_and_no_fault(load: Load) -> None:
    rules = "{gone: {executable: /no/gone}, also: {executable: /no/also}, ls: {executable: /bin/ls}}"
    text = f"policy:\n  allowed_commands: {rules}\n"
    found = [w for w in load(policy=text).warnings if "not on this machine" in w]
    assert found == ["programs that are not on this machine: gone (/no/gone), also (/no/also)"]


def test_command_line_overrides_are_checked_like_the_file(load: Load) -> None:
    server: ServerSettings = load().server
    assert attrs.evolve(server, port=0).port == 0
    with pytest.raises(ValueError, match="between 0 and 65535"):
        attrs.evolve(server, port=70000)
    with pytest.raises(ValueError, match="IP address"):
        attrs.evolve(server, host="a b")
