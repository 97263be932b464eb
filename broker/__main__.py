"""The entry points: `python -m broker`, and what the console scripts call. See `commandline.py` for what they do.

Imports nothing at first, because `-m` puts the current folder in front on the module search path: whatever lies there
under the name of one of our packages, of a library or of Python's own modules would be executed in its place. Python
itself has taken a few modules from there by then; only a start by the script, or with `python -P`, takes none.
"""

import os
import sys

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main() -> int:
    """Run one subcommand; returns the exit status."""
    _forget_path()
    from broker.commandline import main as run  # noqa: PLC0415  see the module

    return run()


def main_stdio() -> int:
    """The broker on standard input and output: what an MCP client starts as a command."""
    _forget_path()
    from broker.commandline import main as run  # noqa: PLC0415  see the module

    return run(["serve", "--stdio", *sys.argv[1:]])


def _forget_path() -> None:
    """Let nothing that runs outside the walls be looked up in the starter's PATH, where there are folders of a home.

    We name all programs by their paths; ctypes, which looks for libmagic, calls gcc and ld where ldconfig knows none.
    """
    os.environ["PATH"] = SYSTEM_PATH


def _leave_current_folder() -> None:
    """Take the current folder off the module search path, unless it is where this package came from."""
    try:
        here = os.getcwd()
    except FileNotFoundError:  # then Python did not put it there
        return
    if not sys.flags.safe_path and sys.path[0] == here != os.path.dirname(os.path.dirname(__file__)):
        del sys.path[0]


if __name__ == "__main__":
    _leave_current_folder()
    sys.exit(main())
