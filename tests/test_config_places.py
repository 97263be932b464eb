"""Which files are read, who may write them, and what happens when they are not what they seem."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from config.faults import ConfigFaults
from config.keys import SHIPPED_DIR
from config.load import load_config
from config.sources import FILE_BYTES_MAX, default_config_dir, place_of, writable_by_others


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "config"
    folder.mkdir()
    folder.chmod(0o755)
    write(folder / "server.yaml", "server:\n  port: 1\n")
    write(folder / "policy.yaml", "policy:\n")
    return folder


def write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(0o644)


def told(folder: Path) -> str:
    with pytest.raises(ConfigFaults) as caught:
        load_config(folder)
    return str(caught.value).replace(f"{folder}", "config")


def test_both_files_are_named_as_sources(folder: Path) -> None:
    config = load_config(folder)
    assert config.sources == (folder / "server.yaml", folder / "policy.yaml")


def test_without_a_policy_file_the_shipped_policy_holds_and_is_warned_of(folder: Path) -> None:
    (folder / "policy.yaml").unlink()
    config = load_config(folder)
    assert "git" in config.policy.allowed_commands
    assert config.server.port == 1
    assert any("the policy shipped with the broker holds" in warning for warning in config.warnings)


def test_without_a_server_file_the_defaults_hold(folder: Path) -> None:
    (folder / "server.yaml").unlink()
    config = load_config(folder)
    assert config.server.port == 8080
    assert config.sources == (folder / "policy.yaml",)


def test_a_folder_with_neither_file_is_a_mistake(tmp_path: Path) -> None:
    assert "holds neither server.yaml nor policy.yaml" in told(tmp_path)


def test_a_folder_that_is_missing_is_a_fault(tmp_path: Path) -> None:
    assert "cannot be read: No such file or directory" in told(tmp_path / "none")


def test_a_file_with_the_other_ending_is_not_passed_over(folder: Path) -> None:
    (folder / "policy.yaml").rename(folder / "policy.yml")
    assert told(folder) == "config/policy.yml:1: is not read: rename it to policy.yaml"


def test_files_that_cannot_be_read_are_faults_together(folder: Path) -> None:
    write(folder / "server.yaml", b"server:\n  host: \xff\n")
    (folder / "policy.yaml").unlink()
    os.mkfifo(folder / "policy.yaml")
    assert told(folder).splitlines() == [
        "config/policy.yaml:1: cannot be read: it is not a regular file",
        "config/server.yaml:2: is not UTF-8 text",
    ]


def test_a_directory_or_dangling_link_under_the_name_is_a_fault(folder: Path) -> None:
    (folder / "policy.yaml").unlink()
    (folder / "policy.yaml").mkdir()
    (folder / "server.yaml").unlink()
    (folder / "server.yaml").symlink_to(folder / "nowhere")
    assert told(folder).splitlines() == [
        "config/policy.yaml:1: cannot be read: Is a directory",
        "config/server.yaml:1: cannot be read: No such file or directory",
    ]


def test_a_huge_file_is_refused(folder: Path) -> None:
    write(folder / "policy.yaml", "#" * FILE_BYTES_MAX)
    load_config(folder)
    write(folder / "policy.yaml", "#" * (FILE_BYTES_MAX + 1))
    assert told(folder) == f"config/policy.yaml:1: cannot be read: it is larger than {FILE_BYTES_MAX} bytes"


def test_a_byte_order_mark_is_not_part_of_the_first_key(folder: Path) -> None:
    write(folder / "server.yaml", b"\xef\xbb\xbfserver:\n  port: 7\n")
    assert load_config(folder).server.port == 7


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_policy_that_others_may_write_is_no_policy(folder: Path, mode: int) -> None:
    path = folder / "policy.yaml"
    path.chmod(mode)
    said = f"others than its owner may write it (mode {mode:04o}): chmod go-w"
    warnings, faults = writable_by_others(path, path.stat(), as_root=False)
    assert (warnings, faults) == ((f"{path}: {said}",), ())
    if os.geteuid() == 0:
        assert told(folder) == f"config/policy.yaml:1: {said}"
    else:
        assert load_config(folder).warnings[0] == f"{path}: {said}"


def test_a_folder_that_others_may_write_counts_as_its_files(folder: Path) -> None:
    folder.chmod(0o777)
    if os.geteuid() == 0:
        assert told(folder) == "config:1: others than its owner may write it (mode 0777): chmod go-w"
    else:
        assert "mode 0777" in load_config(folder).warnings[0]


def test_a_policy_that_is_not_roots_own_is_warned_of_when_root_reads_it(folder: Path) -> None:
    path = folder / "policy.yaml"
    status = path.stat()
    other = os.stat_result((status.st_mode, *status[1:4], 1000, *status[5:]))
    (warning,), faults = writable_by_others(path, other, as_root=True)
    assert "belongs to user id 1000" in warning
    assert faults == ()


only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@only_root
@pytest.mark.parametrize("name", ["policy.yaml", "server.yaml", "."])
@pytest.mark.parametrize("mode", [0o775, 0o777])
def test_what_is_somebody_elses_and_writable_by_others_is_a_fault_for_root(folder: Path, name: str, mode: int) -> None:
    os.chown(folder / name, 1000, 1000)
    assert "belongs to user id 1000" in load_config(folder).warnings[0]
    (folder / name).chmod(mode)
    assert f"others than its owner may write it (mode {mode:04o}): chmod go-w" in told(folder)


def test_config_in_the_current_folder_is_the_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    place = default_config_dir()
    assert place.config_dir == Path("config")
    assert place.base_dir == folder.parent
    assert load_config().server.port == 1


def test_elsewhere_the_shipped_files_hold_and_logs_go_to_the_state_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert default_config_dir().config_dir == SHIPPED_DIR
    assert default_config_dir().base_dir == tmp_path / "state" / "remote-broker"
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_config_dir().base_dir == tmp_path / ".local" / "state" / "remote-broker"


def test_the_base_is_the_parent_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "config").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "config")
    assert place_of(Path()).base_dir == tmp_path / "a"
    assert place_of(Path("..")).base_dir == tmp_path
