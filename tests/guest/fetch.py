"""Get what a guest needs from Debian's packages: QEMU and busybox installed, a kernel unpacked but never installed.

The unpacked kernel lives in a cache folder as an uncompressed vmlinux (QEMU starts it directly, which saves TCG
the seconds of decompression) and the few modules a guest loads, in the order of their dependencies.
Run it alone to fill the cache: `python -m tests.guest.fetch [SERIES]`.
"""

from __future__ import annotations

import lzma
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from .unpack import UnknownKernel, module_closure, vmlinux

NO_GUEST = 77  # the exit status that automake calls a skipped test: visible, and no verdict
ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".nox" / "guest-kernel"
PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "zstd": "zstd",
    "setpriv": "util-linux",
}
MODULES = ("virtio_pci", "virtio_console", "overlay", "9pnet_virtio", "9p")
# Generic kernels only: Debian's cloud flavour has no 9p, rt is another scheduler, -unsigned and -dbg are other things.
KERNEL_NAME = re.compile(r"linux-image-(?P<version>\d[\w.+~-]*?)-amd64")
KERNELS_TO_TRY = 3  # apt's lists may name a kernel that the mirror has already replaced
INSTALL_S = 600
DOWNLOAD_S = 300


class NoGuest(Exception):
    """No guest can be started on this machine; the text says why and what would help."""


@attrs.frozen(kw_only=True)
class Kernel:
    """An unpacked kernel: its release, its image, and the modules to load, in order (built-in ones left out)."""

    release: str
    image: Path
    modules: tuple[Path, ...]


def ensure_kernel(cache: Path, series: str = "") -> Kernel:
    """Return the newest cached kernel of *series* ("6.12", "" for any) or fetch one; programs are seen to first.

    Raises:
        NoGuest: something is missing and cannot be installed here.
    """
    if platform.machine() != "x86_64":
        raise NoGuest(f"the guest is x86-64 and this machine is {platform.machine()}")
    refreshed = _install_programs()
    cached = [path for path in cache.glob("*/vmlinux") if _is_of(path.parent.name, series)]
    if not cached:
        return _fetch_kernel(cache, series, refresh=not refreshed)
    return _cached(max(cached, key=lambda path: version_key(path.parent.name)).parent)


def version_key(release: str) -> tuple[int, ...]:
    """Order kernels by the numbers in their names: 6.1.0-56 before 6.12.117+deb12."""
    return tuple(int(number) for number in re.findall(r"\d+", release))


def _is_of(release: str, series: str) -> bool:
    wanted = version_key(series)
    return version_key(release)[: len(wanted)] == wanted


def _cached(folder: Path) -> Kernel:
    modules = tuple(sorted(folder.glob("*.ko")))
    return Kernel(release=folder.name, image=folder / "vmlinux", modules=modules)


def _install_programs() -> bool:
    """Install the missing programs; true if apt's lists were refreshed for it."""
    missing = sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None})
    if not missing:
        return False
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NoGuest(f"these packages are missing: {' '.join(missing)} (with root and apt-get they are installed)")
    _run_apt("update", "-qq", for_s=DOWNLOAD_S)
    _run_apt("install", "-y", "-qq", "--no-install-recommends", *missing, for_s=INSTALL_S)
    return True


def _fetch_kernel(cache: Path, series: str, *, refresh: bool) -> Kernel:
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise NoGuest(f"no kernel in {cache}, and no apt-get and dpkg to get Debian's")
    if refresh and os.geteuid() == 0:  # a plain user downloads by the lists that are there
        _run_apt("update", "-qq", for_s=DOWNLOAD_S)
    why = f"apt's sources offer no kernel {series}".rstrip()
    for package in list(_kernel_packages(series))[:KERNELS_TO_TRY]:
        try:
            return _unpack(package, cache)
        except NoGuest as failed:
            why = str(failed)
    raise NoGuest(why)


def _kernel_packages(series: str) -> Iterator[str]:
    """The kernel packages of *series* that apt knows, newest first."""
    known = _run("apt-cache", "search", "--names-only", "^linux-image-[0-9].*-amd64$", for_s=DOWNLOAD_S)
    named = [match for line in known.splitlines() if (match := KERNEL_NAME.fullmatch(line.split(" ")[0]))]
    generic = [match for match in named if not match["version"].endswith(("-cloud", "-rt"))]
    for match in sorted(generic, key=lambda match: version_key(match["version"]), reverse=True):
        if _is_of(match["version"], series):
            yield match[0]


def _unpack(package: str, cache: Path) -> Kernel:
    """Download *package* and put what a guest needs of it into the cache, whole or not at all."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=cache) as scratch:
        _run_apt("download", "-qq", package, for_s=DOWNLOAD_S, cwd=scratch)
        (archive,) = Path(scratch).glob("*.deb")
        _run("dpkg", "-x", str(archive), f"{scratch}/tree", for_s=INSTALL_S)
        (packed,) = Path(scratch, "tree", "boot").glob("vmlinuz-*")
        release = packed.name.removeprefix("vmlinuz-")
        kept = Path(scratch, release)
        kept.mkdir()
        _keep(Path(scratch, "tree", "lib", "modules", release), packed, kept)
        if not (cache / release).exists():
            kept.rename(cache / release)
    return _cached(cache / release)


def _keep(library: Path, packed: Path, kept: Path) -> None:
    try:
        kept.joinpath("vmlinux").write_bytes(vmlinux(packed.read_bytes()))
        for number, (name, module) in enumerate(module_closure(library, MODULES).items()):
            kept.joinpath(f"{number:02}-{name}.ko").write_bytes(module)
    except (UnknownKernel, subprocess.SubprocessError, lzma.LZMAError) as why:
        raise NoGuest(f"{packed.name}: {why}") from why


def _run_apt(*words: str, for_s: float, cwd: str | None = None) -> str:
    # The download user _apt may not write to our folder; the packages are checked by their signatures all the same.
    return _run("apt-get", "-o", "APT::Sandbox::User=root", *words, for_s=for_s, cwd=cwd)


def _run(*command: str, for_s: float, cwd: str | None = None) -> str:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        ended = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            timeout=for_s,
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.CalledProcessError as failed:
        raise NoGuest(f"`{' '.join(command)}` failed: {failed.stderr.strip()[-500:]}") from failed
    except subprocess.TimeoutExpired as late:
        raise NoGuest(f"`{' '.join(command)}` took more than {for_s:g} s") from late
    return ended.stdout


def main(arguments: Sequence[str]) -> int:
    """Fill the cache and say what is in it."""
    try:
        kernel = ensure_kernel(CACHE, *arguments[:1])
    except NoGuest as why:
        sys.stderr.write(f"no guest can be started: {why}\n")
        return NO_GUEST
    sys.stdout.write(f"{kernel.release}: {kernel.image}, {len(kernel.modules)} modules\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
