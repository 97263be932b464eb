"""Real programs do real work inside the new root, behind the filter, in all namespaces."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sandbox.kernel.seccomp import Options
from tests.sandbox.kernel.test_walls_namespaces import WORKSPACE, Walls, as_each, behind, memfd_is_executable, workspace
from tests.sandbox.kernel.test_walls_seccomp import fence

__all__ = ["workspace"]

PROGRAM_S = 100
C_SOURCE = '#include <stdio.h>\nint main(void) { puts("built"); return 0; }\n'
MAKEFILE = "hello: hello.c\n\tcc -O2 -flto -o $@ $<\n"

WORK = {
    "git": "git init -q a && cd a && echo x >f && git add f && git -c user.name=a -c user.email=a@b commit -qm m "
    "&& git clone -q . ../b && cd ../b && git log --oneline | wc -l && git worktree add -q ../c && git status --short",
    "gcc": "gcc -O2 -flto -o hello hello.c && ./hello",
    "make": "make -s hello && ./hello",
    "python3": 'python3 -c "import multiprocessing as m; print(sum(m.Pool(2).map(abs, [-1, -2])))"',
    "venv": "python3 -m venv --without-pip v && v/bin/python -c 'import sys; print(sys.prefix)'",
    "subprocess": "python3 -c \"import subprocess; print(subprocess.check_output(['id', '-u']))\"",
    "pty": "python3 -c \"import pty; pty.spawn(['tty'])\"",
    "node": "node -e \"const {Worker} = require('worker_threads'); new Worker('1', {eval: true}).on('exit', () => "
    "console.log(Object.keys(require('os').networkInterfaces())[0]))\"",
    "npm": "npm --version --offline",
    "tar": "tar czf t.tgz hello.c && tar tzf t.tgz",
    "perl": "perl -e 'print qx(echo perl)'",
    "ps": "ps ax -o pid= | head -1",
    "sort": "seq 200000 | sort -S 1M -R | wc -l",
    "df": "df . | wc -l",
    "lock": 'python3 -c "import multiprocessing; print(multiprocessing.Lock())"',
}
SPEAKS = {"git": "1", "gcc": "built", "make": "built", "python3": "3", "node": "lo", "perl": "perl", "ps": "1"}


@as_each
@pytest.mark.parametrize("what", WORK)
def test_it_works_inside(who: str, what: str, workspace: Path) -> None:
    program = WORK[what].split()[0]
    if shutil.which(program, path="/usr/bin:/bin") is None:
        pytest.skip(f"{program} is not installed")
    (workspace / "hello.c").write_text(C_SOURCE)
    (workspace / "Makefile").write_text(MAKEFILE)

    def work() -> list[object]:
        fence(Options(internet=True, plain_memfds=not memfd_is_executable()))
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(workspace), "TMPDIR": "/tmp", "GIT_CONFIG_NOSYSTEM": "1"}
        done = subprocess.run(
            ["/bin/sh", "-c", WORK[what]],
            cwd=workspace,
            env=environment,
            capture_output=True,
            timeout=PROGRAM_S,
            check=False,
        )
        return [done.returncode, done.stdout.decode(), done.stderr.decode()]

    code, stdout, stderr = behind(Walls(who=who, binds=((str(workspace), WORKSPACE),)), work)
    assert code == 0, stderr
    assert SPEAKS.get(what, "") in stdout, stderr
    assert os.path.isdir(workspace)
