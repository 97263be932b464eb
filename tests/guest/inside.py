"""What runs inside the guest: two stages of PID 1 as shell scripts, written for one job.

Stage one, in the initramfs, builds the root: the host's own, read-only over 9p, under an overlay in memory. Stage
two makes a small Linux of it as systemd would: /run, /tmp, /dev, one pure cgroup v2 tree, a service with a delegated
subtree, the user. Then it runs the command and reports over three virtio ports: its output, its errors, and `up` and
`status N` on the control port. Each output port ends with the job's mark, so that nothing of it can be lost.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import attrs

USER = "guest"
UID = 61183  # below the range that a broker of root takes its dynamic users from
HOME = f"/home/{USER}"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SERVICE = "/sys/fs/cgroup/system.slice/guest.service"
BROKEN = 125  # the exit status when the service could not be entered
TASKS_MAX = 4096  # a fork bomb that escapes its fence stops here, and the guest can still report it
# Folders that test tools write beneath the working directory: for the plain user they are empty and its own.
TOOL_FOLDERS = (".hypothesis", ".pytest_cache")

STAGE_ONE = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for module in /modules/*.ko; do insmod "$module" || echo "guest: cannot load $module"; done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host || poweroff -f
mount -t tmpfs -o mode=755 memory /memory
mkdir /memory/upper /memory/work /memory/root
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work overlay /memory/root || poweroff -f
for each in proc sys dev; do mount --move /$each /memory/root/$each; done
mount -t tmpfs -o mode=755,nosuid,nodev run /memory/root/run
mkdir /memory/root/run/guest; cp /bin/busybox /stage-two /memory/root/run/guest/
exec switch_root /memory/root /run/guest/busybox sh /run/guest/stage-two
"""

SYSTEM = r"""
export PATH="$GUEST_PATH"
b=/run/guest/busybox
$b mkdir -p /dev/pts /dev/shm /run/lock /run/user
$b mount -t devpts -o ptmxmode=666,mode=620,gid=5 devpts /dev/pts
$b mount -t tmpfs -o mode=1777,nosuid,nodev shm /dev/shm
$b ln -sfn /proc/self/fd /dev/fd; $b ln -sfn fd/0 /dev/stdin; $b ln -sfn fd/1 /dev/stdout; $b ln -sfn fd/2 /dev/stderr
$b chmod 1777 /run/lock
$b mount -t securityfs -o nosuid,nodev,noexec securityfs /sys/kernel/security
$b mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate cgroup2 /sys/fs/cgroup
$b hostname guest; echo '127.0.0.1 guest' >>/etc/hosts
$b ifconfig lo 127.0.0.1 netmask 255.0.0.0 up
# The ports come with interrupts of their own, a moment after their driver: nothing here could be waited for instead.
tries=0; until [ -c /dev/vport0p3 ] || [ $tries = 200 ]; do $b usleep 50000; tries=$((tries + 1)); done
exec 3>/dev/vport0p1 4>/dev/vport0p2 5<>/dev/vport0p3
$b grep -q landlock /sys/kernel/security/lsm || echo 'guest: this kernel has no Landlock' >&4
# As systemd has it: PID 1 in a leaf, every controller handed down, limits of the service owned by root.
$b mkdir -p /sys/fs/cgroup/init.scope "$GUEST_SERVICE"
echo $$ >/sys/fs/cgroup/init.scope/cgroup.procs
for slice in /sys/fs/cgroup "${GUEST_SERVICE%/*}"; do
  for controller in $($b cat $slice/cgroup.controllers); do echo "+$controller" >$slice/cgroup.subtree_control; done
done 2>&4
"""

PRIVATE_TMP = r"""
$b mkdir /run/guest/tmp; $b mount --bind /tmp /run/guest/tmp; $b mount -t tmpfs -o mode=1777,nosuid,nodev tmp /tmp
"""

FINISH = r"""
status=$?
$b sync
printf %s "$GUEST_MARK" >&3; printf %s "$GUEST_MARK" >&4; echo "status $status" >&5
read -r released <&5 # until the host has everything, or is gone
$b poweroff -f
"""


@attrs.frozen(kw_only=True)
class Sized:
    """A tmpfs of a fixed size, to run out of space in."""

    path: Path
    size_mib: int


@attrs.frozen(kw_only=True)
class Job:
    """What to run inside, where, as whom, and what of the host it needs to see.

    `shared` are folders of the host that stay visible although they are beneath /tmp; the plain user may also pass
    through what is above them (/root, where a Python may live). `writable` are shared with the host for real.
    """

    command: tuple[str, ...]
    working_dir: Path
    as_user: bool = False
    memory_max_mib: int = 768
    shared: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    sized: tuple[Sized, ...] = ()


def stage_two(job: Job, mark: str) -> str:
    """Return the script of PID 1 in the new root for *job*; the output ports end with *mark*."""
    settings = {"GUEST_PATH": PATH, "GUEST_SERVICE": SERVICE, "GUEST_MARK": mark}
    head = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    mounts = [PRIVATE_TMP, *_shared(job), *_writable(job), *_sized(job)]
    user = _user(job) if job.as_user else []
    return "\n".join([*head, SYSTEM, *mounts, *_service(job), *user, "echo up >&5", _start(job), FINISH])


def _shared(job: Job) -> list[str]:
    """Bring back what lies beneath /tmp on the host and is needed; then forget the host's /tmp."""
    beneath = [os.path.relpath(path, "/tmp") for path in job.shared if path.is_relative_to("/tmp")]
    return [
        *(
            f"$b mkdir -p {_in('/tmp', name)}; $b mount --bind {_in('/run/guest/tmp', name)} {_in('/tmp', name)}"
            for name in beneath
        ),
        "$b umount -l /run/guest/tmp",
    ]


def _in(folder: str, name: str) -> str:
    return shlex.quote(os.path.join(folder, name))


def _writable(job: Job) -> list[str]:
    options = "trans=virtio,version=9p2000.L,msize=512000,cache=none"
    places = [(number, shlex.quote(str(path))) for number, path in enumerate(job.writable)]
    return [f"$b mkdir -p {path}; $b mount -t 9p -o {options} rw{number} {path}" for number, path in places]


def _sized(job: Job) -> list[str]:
    owner = f"uid={UID},gid={UID}," if job.as_user else ""
    places = [(shlex.quote(str(sized.path)), sized.size_mib) for sized in job.sized]
    return [f"$b mkdir -p {path}; $b mount -t tmpfs -o {owner}size={size}m sized {path}" for path, size in places]


def _service(job: Job) -> list[str]:
    """Limit the service from above; a delegated one is its user's, but for the limits (systemd's list of files)."""
    lines = [f"echo {job.memory_max_mib}M >{SERVICE}/memory.max; echo {TASKS_MAX} >{SERVICE}/pids.max"]
    if job.as_user:
        own = " ".join(SERVICE + name for name in ("", "/cgroup.procs", "/cgroup.subtree_control", "/cgroup.threads"))
        lines.append(f"$b chown {UID}:{UID} {own}")
    return lines


def _user(job: Job) -> list[str]:
    """Make the user with its home, let it through to what is shared, and give it the working directory."""
    own = f"mode=700,uid={UID},gid={UID}"
    above = sorted({str(parent) for path in job.shared for parent in (path, *path.parents)} - {"/"})
    here = str(job.working_dir)
    return [
        f"echo '{USER}:x:{UID}:{UID}::{HOME}:/bin/sh' >>/etc/passwd; echo '{USER}:x:{UID}:' >>/etc/group",
        f"$b mkdir -p {HOME} /run/user/{UID}",
        *(f"$b mount -t tmpfs -o {own},nosuid,nodev own {folder}" for folder in (HOME, f"/run/user/{UID}")),
        f'for each in {shlex.join(above)}; do [ -d "$each" ] && $b chmod o+x "$each"; done 2>&4',
        f"$b chown {UID}:{UID} {shlex.quote(here)}",
        *(f"[ -d {_in(here, name)} ] && $b mount -t tmpfs -o {own} own {_in(here, name)}" for name in TOOL_FOLDERS),
    ]


def _start(job: Job) -> str:
    """Enter the service and become the command, in a session of its own and with an environment from nothing."""
    environment = {"PATH": PATH, "LANG": "C.UTF-8", "TERM": "dumb", "HOME": "/root", "USER": "root", "GUEST": "root"}
    become: list[str] = []
    if job.as_user:
        environment |= {"HOME": HOME, "USER": USER, "GUEST": "user", "XDG_RUNTIME_DIR": f"/run/user/{UID}"}
        become = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--init-groups", "--inh-caps=-all", "--"]
    words = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *become, *job.command]
    enter = f"echo 0 >{SERVICE}/cgroup.procs && cd {shlex.quote(str(job.working_dir))} || exit {BROKEN}"
    # The host's shell: busybox's own would take its applets for `env` and `setpriv`.
    return (
        f"$b setsid /bin/sh -c {shlex.quote(f'{enter}; exec {shlex.join(words)}')} </dev/null >&3 2>&4 3>&- 4>&- 5>&-"
    )
