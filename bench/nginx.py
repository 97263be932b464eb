"""The yardstick of raw transfers: nginx on loopback, which serves a folder with sendfile and takes PUTs into it.

It keeps its files on the disk of the folder it is given, so that both sides write to the same one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.support.live import free_port

STOP_BOUND_S = 10
SEARCHED = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
CONFIG = """
daemon off; master_process off; pid {base}/pid; error_log {base}/error.log;
events {{}}
http {{
  access_log off; sendfile on; tcp_nopush on; client_max_body_size 0;
  client_body_temp_path {base}/body; proxy_temp_path {base}/proxy; fastcgi_temp_path {base}/fastcgi;
  uwsgi_temp_path {base}/uwsgi; scgi_temp_path {base}/scgi;
  server {{ listen 127.0.0.1:{port}; root {base}/files; dav_methods PUT; }}
}}
"""


def find_nginx() -> str | None:
    """Where nginx is, if it is installed."""
    return shutil.which("nginx", path=SEARCHED)


def _lay_out(base: Path) -> None:
    base.chmod(0o755)
    for name in ("files", "body"):
        (base / name).mkdir()


@asynccontextmanager
async def running_nginx(program: str, base: Path) -> AsyncIterator[str]:
    """Serve `base/files`; gives the URL in front of its names. Ended by its process id."""
    _lay_out(base)
    port = free_port()
    (base / "nginx.conf").write_text(CONFIG.format(base=base, port=port))
    process = await trio.lowlevel.open_process(
        [program, "-c", str(base / "nginx.conf"), "-p", str(base), "-e", str(base / "error.log")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        with trio.move_on_after(STOP_BOUND_S, shield=True):
            await process.wait()
