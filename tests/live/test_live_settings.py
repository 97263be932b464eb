"""Every key of both configuration files changes behaviour; a key without a row here fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from config.keys import all_keys
from tests.support import live_settings_policy, live_settings_server
from tests.support.live import running_broker
from tests.support.live_settings_server import Brokers

pytestmark = [
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),  # the legacy client's, not ours
    pytest.mark.long,
    pytest.mark.once,
]

ROWS = {**live_settings_server.ROWS, **live_settings_policy.ROWS}


@pytest.fixture(scope="module")
def brokers() -> Iterator[Brokers]:
    with (
        running_broker() as usual,
        running_broker(live_settings_server.CHANGED_SERVER, live_settings_policy.CHANGED_POLICY) as changed,
    ):
        yield Brokers(usual, changed)


def test_every_key_has_a_row() -> None:
    assert set(ROWS) == {key.name for key in all_keys()}


@pytest.mark.parametrize("key", ROWS)
async def test_a_key_changes_behaviour(brokers: Brokers, key: str) -> None:
    await ROWS[key](brokers)
