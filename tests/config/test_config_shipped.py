"""The shipped files, the defaults and the list of keys say the same thing."""

from __future__ import annotations

import pytest

from config.keys import SHIPPED_DIR, Key, all_keys
from config.load import load_config
from config.yamlnodes import parse_yaml


def plain(name: str) -> dict[str, dict[str, object]]:
    document = parse_yaml((SHIPPED_DIR / name).read_text(), name)
    assert document.faults == ()
    value: dict[str, dict[str, object]] = document.root.plain()
    return value


def test_the_shipped_server_file_shows_every_default() -> None:
    assert plain("server.yaml")["server"] == plain("defaults.yaml")["server"]


def test_the_shipped_policy_keeps_the_defaults_beside_its_own_commands_and_paths() -> None:
    shipped, defaults = plain("policy.yaml")["policy"], plain("defaults.yaml")["policy"]
    own = {"allowed_commands", "allowed_paths"}
    assert {k: v for k, v in shipped.items() if k not in own} == {k: v for k, v in defaults.items() if k not in own}


def test_the_shipped_files_load() -> None:
    config = load_config(SHIPPED_DIR)
    assert config.policy.allowed_commands
    assert config.policy.allowed_paths


@pytest.mark.parametrize("key", all_keys(), ids=lambda k: k.name)
def test_every_key_is_explained_in_the_shipped_file(key: Key) -> None:
    assert key.doc


@pytest.mark.parametrize("key", [k for k in all_keys() if k.name.startswith("server.")], ids=lambda k: k.name)
def test_every_server_key_has_a_default(key: Key) -> None:
    derived = key.name == "server.logging.error_log"  # from audit_log
    assert (key.default is None) == derived


@pytest.mark.parametrize("key", [k for k in all_keys() if k.unit], ids=lambda k: k.name)
def test_every_number_says_its_unit(key: Key) -> None:
    said = key.doc.casefold()
    assert key.unit.removesuffix("s").casefold() in said


def test_the_list_of_keys_is_complete_and_typed() -> None:
    keys = {key.name: key for key in all_keys()}
    assert len(keys) == len(all_keys())
    assert keys["server.port"].type == "whole number"
    assert keys["server.port"].default == "8080"
    assert keys["server.logging.format"].type == "one of json, text"
    assert keys["server.sandbox.require"].type == "list of text"
    assert keys["policy.allowed_commands.<name>.executable"].type == "text"
    assert keys["policy.allowed_commands.<name>.examples.allow"].type == "list of text or list of text"
    assert keys["policy.allowed_commands.<name>.env"].type == "mapping of text"
    assert keys["policy.resource_limits.memory_max"].default is not None
