"""The trusted places: all that the broker executes, obeys and keeps is listed, by every name that leads to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from broker.trusted.places import Names, TrustedPlaces, find_trusted, names_of
from broker.trusted.program import program_places
from config.load import Config, load_config
from config.places import searched_places, state_dir
from sandbox.plan.plan import SessionUser

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "config").mkdir(mode=0o755)
    (tmp_path / "config" / "server.yaml").write_text("server:\n")
    (tmp_path / "config" / "server.yaml").chmod(0o644)
    return load_config(tmp_path / "config")


def user(home: Path) -> SessionUser:
    return SessionUser(uid=1, gid=1, groups=(), name="somebody", home=str(home), dedicated=False)


def look(config: Config, home: str = "/home/somebody") -> TrustedPlaces:
    return find_trusted(config, user(Path(home)))


def within(path: str | Path, places: tuple[str, ...]) -> bool:
    return any(Path(path) == Path(place) or Path(place) in Path(path).parents for place in places)


def test_every_file_that_was_loaded_is_sealed_by_its_name_and_by_its_real_path(config: Config) -> None:
    sealed = look(config).sealed
    files = [module.__file__ for module in tuple(sys.modules.values()) if getattr(module, "__file__", None)]
    maps = Path("/proc/self/maps").read_text().splitlines()
    files += [line.split(maxsplit=5)[5] for line in maps if " r-xp " in line and " /" in line]
    assert len(files) > 100
    for file in (*files, sys.executable, *sys.path, sys.prefix, sys.base_prefix, f"{sys.prefix}/pyvenv.cfg"):
        for path in (os.path.abspath(str(file)), os.path.realpath(str(file))):
            assert within(path, sealed), path


def test_a_checkout_is_sealed_whole_and_names_that_are_not_there_yet_with_it(config: Config) -> None:
    sealed = look(config).sealed
    for name in ("sandbox/inside/init/main.py", "sitecustomize.py", "new.pth", ".git/config", "bench/not-there.py"):
        assert within(ROOT / name, sealed)
    assert within(f"{sys.prefix}/lib/not-there.pth", sealed)


def test_what_is_obeyed_and_kept_is_hidden_whether_it_is_there_or_not(config: Config, tmp_path: Path) -> None:
    hidden = look(config).hidden
    names = ("config/policy.yaml", "config/server.yaml", "data/output/x", "data/anything", "log/audit.log.7", "log/new")
    for path in (*(tmp_path / name for name in names), state_dir(), *(place.config_dir for place in searched_places())):
        assert within(path, hidden), path
    assert not within(tmp_path / "ws", hidden)
    assert not within(tmp_path, hidden)


def test_the_home_that_the_broker_keeps_is_a_hole(config: Config, tmp_path: Path) -> None:
    home = tmp_path / "data" / "home"
    for name in ("home", "output", "other"):
        (tmp_path / "data" / name).mkdir(parents=True)
    places = look(config, str(home))
    assert places.holes == (str(home),)
    for name in ("output", "other"):
        assert within(tmp_path / "data" / name, places.hidden)
    assert look(config, str(tmp_path / "data" / "other")).holes == ()  # nobody's home is there


def test_a_log_among_other_things_is_hidden_with_all_its_rotations(config: Config, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "notes").touch()
    logging = attrs.evolve(config.server.logging, audit_log=shared / "a.log", error_log=shared / "e.log")
    config = attrs.evolve(config, server=attrs.evolve(config.server, logging=logging))
    hidden = look(config).hidden
    assert within(shared / "a.log", hidden)
    assert within(shared / "a.log.1", hidden)
    assert within(shared / f"e.log.{logging.most_backups}", hidden)
    assert not within(shared / "notes", hidden)
    (shared / "notes").rename(shared / "a.log.2026")
    assert within(shared / "anything", look(config).hidden)


def test_a_place_is_known_by_every_name_and_each_link_on_the_way_is_listed(config: Config, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "trail").mkdir()
    (tmp_path / "second").symlink_to("real")
    (tmp_path / "first").symlink_to(tmp_path / "second")
    logging = attrs.evolve(config.server.logging, audit_log=tmp_path / "first/trail/a", error_log=tmp_path / "log/e")
    places = look(attrs.evolve(config, server=attrs.evolve(config.server, logging=logging)))
    for name in ("first", "second", "real"):
        assert within(tmp_path / name / "trail", places.hidden)
        assert not within(tmp_path / name, places.hidden)
    assert {str(tmp_path / "first"), str(tmp_path / "second")} <= set(places.links)


def test_names_end_where_links_do_not(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert names_of(f"{tmp_path}/loop/x").paths == (f"{tmp_path}/loop/x",)
    assert f"{tmp_path}/loop" in names_of(f"{tmp_path}/loop").links
    assert names_of("/proc/version") == Names(("/proc/version",), ())


def test_a_name_through_the_parent_of_a_link_is_the_kernels(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "c").touch()
    (tmp_path / "b").symlink_to("a/b")
    (tmp_path / "c").symlink_to("b/../c")
    names = names_of(f"{tmp_path}/c")
    assert names.paths[-1] == os.path.realpath(tmp_path / "c") == f"{tmp_path}/a/c"


def test_neither_root_nor_a_home_is_listed(config: Config) -> None:
    places = look(config, str(Path.home()))
    for place in ("/", "/home", str(Path.home())):
        assert place not in places.sealed + places.hidden


def listed_in(folder: Path, code: str = "", **environment: str) -> set[str]:
    """What `program_places` says in an interpreter of its own, started in *folder*."""
    script = f"import sys; sys.path.append({str(ROOT)!r}); {code}\n"
    script += "from broker.trusted.program import program_places\nfor path, _ in program_places(): print(path)"
    command = [sys.executable, "-P", "-c", script]
    said = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=60
    )
    return set(said.stdout.splitlines())


def test_what_the_environment_adds_is_listed_there_or_not(tmp_path: Path) -> None:
    added = {
        "PYTHONPATH": f"{tmp_path}/modules:relative",
        "LD_LIBRARY_PATH": f"{tmp_path}/libraries:",
        "OPENSSL_CONF": f"{tmp_path}/openssl.cnf",
        "PYTHONPYCACHEPREFIX": f"{tmp_path}/compiled",
        "HOME": str(tmp_path / "home"),
    }
    before, after = listed_in(tmp_path), listed_in(tmp_path, **added)
    names = {f"{tmp_path}/{name}" for name in ("modules", "relative", "libraries", "openssl.cnf", "compiled")}
    names.add(str(tmp_path))  # the empty entry of LD_LIBRARY_PATH: libraries are looked for in the current folder
    assert not names & before
    assert names <= after


def test_what_pth_files_name_is_listed_there_or_not(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "some.pth").write_text(f"# a remark\nimport sys\n{tmp_path}/absent\nbeside\n\n")
    (folder / "dangling.pth").symlink_to("nowhere")
    listed = listed_in(tmp_path, f"import site; site.addsitedir({str(folder)!r})")
    assert {str(folder), f"{tmp_path}/absent", f"{folder}/beside"} <= listed


def test_every_place_says_what_it_is() -> None:
    assert all(path.startswith("/") and reason for path, reason in program_places())
