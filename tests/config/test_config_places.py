"""Which files are read, who may write them, and what happens when they are not what they seem."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from config.faults import ConfigFaults
from config.keys import SHIPPED_DIR
from config.load import load_config
from config.places import STATE_WITHOUT_HOME, Place, default_place, is_checkout, place_of, searched_places, state_dir
from config.sources import FILE_BYTES_MAX, writable_by_others


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


def installed(tmp_path: Path) -> tuple[Place, ...]:
    """Where an installed broker looks, whose packages lie in no checkout; the machine's folder is `etc`."""
    (tmp_path / "site-packages" / "config").mkdir(parents=True, exist_ok=True)
    return searched_places(tmp_path / "site-packages", tmp_path / "etc")


def test_a_config_folder_in_the_current_folder_is_nobodys_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config(folder).server.port == 1  # named, it is obeyed
    monkeypatch.setenv("HOME", str(folder.parent))  # also where it is that of the home
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.chdir(folder.parent)
    assert default_place(installed(folder.parent)).config_dir == SHIPPED_DIR
    assert load_config().server.port == 8080


def test_the_users_folder_comes_before_the_machines_and_both_before_what_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    state = tmp_path / "state" / "remote-broker"
    assert default_place(installed(tmp_path)) == Place(config_dir=SHIPPED_DIR, base_dir=state)
    for system in (tmp_path / "etc", tmp_path / "home" / ".config" / "remote-broker"):
        system.mkdir(parents=True)
        assert default_place(installed(tmp_path)).config_dir != system  # an empty folder says nothing
        write(system / "policy.yaml", "policy:\n")
        assert default_place(installed(tmp_path)) == Place(config_dir=system, base_dir=state)


def test_a_dangling_link_in_the_users_folder_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    personal = tmp_path / ".config" / "remote-broker"
    personal.mkdir(parents=True)
    (personal / "policy.yaml").symlink_to(tmp_path / "nowhere")
    assert default_place(installed(tmp_path)).config_dir == personal
    assert "policy.yaml:1: cannot be read" in told(personal)


def test_a_checkout_of_ours_is_obeyed_from_wherever_it_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clone = tmp_path / "clone"
    (clone / "config").mkdir(parents=True)
    write(clone / "config" / "server.yaml", "server:\n")
    for project in ("", "[project\n", "project = 1\n", '[project]\nname = "other"\n'):
        write(clone / "pyproject.toml", project)
        assert not is_checkout(clone)
    write(clone / "pyproject.toml", '[project]\nname = "remote-mcp-exec-gateway"\n')
    assert default_place(searched_places(clone)) == Place(config_dir=clone / "config", base_dir=clone)


def test_the_state_is_in_the_state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_dir() == tmp_path / "remote-broker"
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_dir() == tmp_path / ".local" / "state" / "remote-broker"


def test_a_home_that_would_be_in_the_current_folder_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "relative")
    assert state_dir() == STATE_WITHOUT_HOME
    assert [place.config_dir for place in installed(tmp_path)] == [tmp_path / "etc"]


def test_the_base_is_the_parent_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "config").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "config")
    assert place_of(Path()).base_dir == tmp_path / "a"
    assert place_of(Path("..")).base_dir == tmp_path
