"""The parts of the running program: every place it executes or reads as code, as the interpreter itself tells it.

Present or not: a module that is not there yet is found by the next start if somebody puts it there. Looks at the
interpreter, the environment and /proc/self/maps. Knows nothing of configuration, policy or sessions.
"""

from __future__ import annotations

import json
import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

import broker
import config
import policy
import sandbox
import transfers
from config.places import PROJECT, is_checkout

PACKAGES = (broker, config, policy, sandbox, transfers)
PREFIXES = ("prefix", "exec_prefix", "base_prefix", "base_exec_prefix")
NAMED_BY_ENVIRONMENT = (
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONUSERBASE",
    "PYTHONPYCACHEPREFIX",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "LD_AUDIT",
    "GCONV_PATH",
    "LOCPATH",
    "OPENSSL_CONF",
    "OPENSSL_MODULES",
    "OPENSSL_ENGINES",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "MAGIC",
)
"""Variables whose value is a path, or several, of something that is loaded into the broker."""
MAGIC_FILES = (
    "/etc/magic",
    "/etc/magic.mgc",
    "/usr/share/misc/magic",
    "/usr/share/misc/magic.mgc",
    "/usr/share/file",
    "/usr/lib/file",
    "/usr/local/share/misc/magic.mgc",
)
"""Return where libmagic has its database; in a home it is not looked for."""
BESIDE_INTERPRETER = ("pyvenv.cfg", "pybuilddir.txt", "../pyvenv.cfg")
"""Files by which an interpreter learns at its start where its modules are, from its own folder."""


def program_places() -> Iterator[tuple[str, str]]:
    """Yield every place as it is spelled where we learn of it, absolute, with what it is to us."""
    yield from _packages()
    yield from _search_path()
    yield from _interpreter()
    yield from _loaded_modules()
    yield from _mapped()
    yield from _environment()


def databases() -> Iterator[tuple[str, str]]:
    """Yield what a library of ours may read: whoever reads it looks for himself if it is to be believed."""
    for file in MAGIC_FILES:
        yield file, "a database of libmagic"


def own_folders() -> tuple[str, ...]:
    """Return where our packages are, each by the name under which it was loaded."""
    return tuple(str(Path(package.__file__ or "").parent) for package in PACKAGES)


def checkout() -> str | None:
    """The checkout of this project that we run from, or None."""
    folder = Path(broker.__file__ or "").parent.parent
    return str(folder) if is_checkout(folder) else None


def installed_from() -> str | None:
    """The local folder that pip built us from, which the next start by the README's command builds from again."""
    try:
        told = json.loads(distribution(PROJECT).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    url = urlsplit(told.get("url", ""))
    return unquote(url.path) if url.scheme == "file" and "dir_info" in told else None


def _packages() -> Iterator[tuple[str, str]]:
    if folder := checkout():
        yield folder, "the checkout that the broker runs from"
    if folder := installed_from():
        yield folder, "the folder that the broker was installed from, and will be again"
    for folder in own_folders():
        yield folder, "a package of the broker"


def _search_path() -> Iterator[tuple[str, str]]:
    """Return where modules are looked for: sys.path, what site adds to it, the targets of .pth files, the prefixes."""
    for entry in sys.path:
        if not entry.endswith(".__path_hook__"):  # of an editable install: the name of a hook, not of a file
            yield os.path.abspath(entry), "on the module search path (sys.path)"
    for name in PREFIXES:
        if (prefix := os.path.abspath(getattr(sys, name))) != "/":
            yield prefix, f"what Python is installed in (sys.{name})"
    for name in ("stdlib", "platstdlib", "purelib", "platlib"):
        yield os.path.abspath(sysconfig.get_path(name)), f"a folder of Python's modules ({name})"
    for folder in (*site.getsitepackages(), *_user_site()):
        yield os.path.abspath(folder), "a folder of installed packages"
    for folder in (*sys.path, *site.getsitepackages(), *_user_site()):
        yield from _pth_targets(os.path.abspath(folder))
    if sys.pycache_prefix:
        yield os.path.abspath(sys.pycache_prefix), "where compiled modules are kept (sys.pycache_prefix)"


def _user_site() -> tuple[str, ...]:
    return (site.getusersitepackages(),) if site.ENABLE_USER_SITE else ()


def _pth_targets(folder: str) -> Iterator[tuple[str, str]]:
    """The folders that the .pth files in a folder of packages name, there or not; site skips what is not there."""
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".pth")]
    except OSError:  # not there, or a zip
        return
    for name in names:
        try:
            text = Path(folder, name).read_text(encoding="utf-8-sig", errors="surrogateescape")
        except OSError:  # a dangling link, which is in a place that is closed
            continue
        for line in map(str.strip, text.splitlines()):
            if line and not line.startswith(("#", "import ", "import\t")):
                yield os.path.abspath(os.path.join(folder, line)), f"named by {folder}/{name}"


def _interpreter() -> Iterator[tuple[str, str]]:
    """The files that are the interpreter, what lies beside it, and the script that started us."""
    executables = dict.fromkeys([sys.executable, getattr(sys, "_base_executable", sys.executable)])
    for path in filter(None, executables):
        yield path, "the interpreter"
        for folder in dict.fromkeys([os.path.dirname(path), os.path.dirname(os.path.realpath(path))]):
            for name in (*BESIDE_INTERPRETER, f"{os.path.basename(path)}._pth"):
                yield os.path.abspath(os.path.join(folder, name)), "tells the interpreter where its modules are"
    if sys.argv and os.path.isfile(sys.argv[0]):
        yield os.path.abspath(sys.argv[0]), "the script that starts the broker"


def _loaded_modules() -> Iterator[tuple[str, str]]:
    for name, module in tuple(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and os.path.isabs(file):
            folder = os.path.dirname(file) if hasattr(module, "__path__") else file
            yield folder, f"the module {name}"


def _mapped() -> Iterator[tuple[str, str]]:
    """The folders of the files that are mapped as code into this process: an other file may be taken from there."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and "x" in fields[1] and os.path.isfile(fields[5]):
            yield os.path.dirname(fields[5]), f"holds {os.path.basename(fields[5])}, which is loaded"


def _environment() -> Iterator[tuple[str, str]]:
    for name in NAMED_BY_ENVIRONMENT:
        value = os.environ.get(name)
        if value:
            separated = value.replace(" ", ":") if name == "LD_PRELOAD" else value
            for entry in separated.split(":"):
                if name != "LD_PRELOAD" or "/" in entry:  # else a name that the loader looks up
                    yield os.path.abspath(entry), f"named by the environment variable {name}"
