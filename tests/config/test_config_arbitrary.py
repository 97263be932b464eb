"""Whatever the files hold, the answer is a Config or ConfigFaults, never another exception."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from config.faults import ConfigFaults
from config.keys import all_keys
from config.load import Config, load_config

KEYS = sorted({step for key in all_keys() for step in key.name.split(".")} | {"git", "nonsense"})

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["~/**", "/srv/**", "/bin/ls", "json", "**", "512", "127.0.0.1", "ls -l"])
)
keys = st.sampled_from(KEYS) | st.text(max_size=8)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6), max_leaves=25
)


def loaded(server: bytes, policy: bytes) -> Config | ConfigFaults:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in (("server.yaml", server), ("policy.yaml", policy)):
            (folder / file).write_bytes(content)
            (folder / file).chmod(0o644)
        try:
            return load_config(folder)
        except ConfigFaults as faults:
            return faults


def check_answer(answer: Config | ConfigFaults) -> None:
    if isinstance(answer, ConfigFaults):
        assert answer.faults
        assert len(str(answer).splitlines()) == len(answer.faults)
        assert all(fault.line >= 1 for fault in answer.faults)
    else:
        assert answer.server.logging.audit_log.is_absolute()


@pytest.mark.long
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes(server: bytes, policy: bytes) -> None:
    check_answer(loaded(server, policy))


@pytest.mark.long
@given(st.fixed_dictionaries({"server": trees}), st.fixed_dictionaries({"policy": trees}))
def test_any_tree_of_known_and_unknown_keys(server: object, policy: object) -> None:
    check_answer(loaded(*(yaml.safe_dump(tree, allow_unicode=True).encode() for tree in (server, policy))))


@pytest.mark.long
@given(st.sampled_from(all_keys()), trees)
def test_any_value_under_any_key(key: object, value: object) -> None:
    path = key.name.replace("<name>", "git").split(".")  # type: ignore[attr-defined]
    tree = value
    for step in reversed(path):
        tree = {step: tree}
    text = yaml.safe_dump(tree).encode()
    check_answer(loaded(text, b"") if path[0] == "server" else loaded(b"", text))
