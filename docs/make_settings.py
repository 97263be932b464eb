"""Write docs/settings.md from the classes and the comments of the shipped files: `python docs/make_settings.py`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from config.keys import Key, all_keys  # noqa: E402  the checkout's own, installed or not

SHOWN_DEFAULT = 60
HEAD = """# Settings

Made by `python docs/make_settings.py` from the settings classes and the comments of the shipped files; edit those.
`<name>` is the name of a command. A default of `-` means that the shipped file decides, or that there is none.

| key | type | default | meaning |
|---|---|---|---|
"""


def row(key: Key) -> str:
    """One line of the table."""
    default = key.default if key.default not in {None, ""} else "-"
    shown = default if len(default) <= SHOWN_DEFAULT else "see the shipped file"
    unit = f" ({key.unit})" if key.unit else ""
    return f"| `{key.name}` | {key.type}{unit} | `{shown}` | {key.doc.replace('|', chr(92) + '|')} |\n"


if __name__ == "__main__":
    (HERE / "settings.md").write_text(HEAD + "".join(row(key) for key in all_keys()))
