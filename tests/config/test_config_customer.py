"""The customer's two files, verbatim in tests/data/customer, and what is filled in around them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from config.load import Config, load_config

CUSTOMER = Path(__file__).parents[1] / "data" / "customer"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    folder = tmp_path / "config"
    folder.mkdir(mode=0o755)
    for name in ("server.yaml", "policy.yaml"):
        shutil.copyfile(CUSTOMER / name, folder / name)
        (folder / name).chmod(0o644)
    return load_config(folder)


def test_the_customers_server_settings_hold(config: Config, tmp_path: Path) -> None:
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8080)
    assert config.server.logging.audit_log == tmp_path / "log" / "audit.log"
    assert config.server.logging.error_log == tmp_path / "log" / "audit-errors.log"
    assert config.server.sandbox.unprivileged_user == ""
    assert config.server.sandbox.cgroup_base == "data/cgroup"  # no cgroup can be there: one is looked for
    assert config.server.sandbox.enable_cgroups is False
    assert config.base_dir == tmp_path


def test_the_customers_policy_holds(config: Config) -> None:
    git, ls = config.policy.allowed_commands["git"], config.policy.allowed_commands["ls"]
    assert (git.executable, git.max_args) == ("/usr/bin/git", 20)
    assert git.allowed_prefixes == ("status", "log", "diff", "pull", "fetch")
    assert (ls.executable, ls.max_args, ls.allowed_prefixes) == ("/bin/ls", 10, ())
    assert not git.requires_confirmation
    assert set(config.policy.allowed_commands) == {"git", "ls"}
    assert config.policy.allowed_paths == ("~//**", "/home/**", "/tmp/**")
    assert config.policy.blocked_paths == ("**/.ssh/**", "**/.gnupg/**", "**/.aws/**", "**/.env")


def test_memory_max_may_be_written_as_digits(config: Config) -> None:
    assert config.policy.resource_limits.memory_max == 536870912
    assert config.policy.resource_limits.pids_max == 32


def test_what_the_customers_files_leave_out_is_filled_in(config: Config) -> None:
    assert config.server.timeouts.command_max == 300
    assert config.server.sessions.max_session_age == 1800
    assert config.policy.file_limits.max_read_size > 0
    assert ".so" in config.policy.file_limits.blocked_extensions
