"""Our own tool table behind our own HTTP layer, with a handler that only echoes: what the generic scenarios need."""

from __future__ import annotations

import trio
from fixture_server import serve_until_eof

from broker.contract.table import TOOLS
from broker.endpoint.adapter import build_server
from tests.support.front import EchoHandler

if __name__ == "__main__":
    trio.run(serve_until_eof, build_server(EchoHandler(), TOOLS, version="1", instructions="Eleven tools."))
