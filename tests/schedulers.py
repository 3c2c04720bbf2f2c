"""A real cron daemon and a real systemd, each in namespaces of its own, with files of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kvmctl.host.daemons import has_systemd
from tests.conftest import Ran, cannot
from tests.support import PREFIX, until

CHECKOUT = Path(__file__).parents[1]

# In its folder is what is bound over the machine's own files. /run/systemd is not in it: no systemd runs there.
_PRIVATE = """
set -e
cd "$1"; shift
mount --bind cron.d /etc/cron.d
mount --bind units /etc/systemd/system
mount --bind crontab /etc/crontab
mount --bind spool /var/spool/cron
mount --bind run /run
cd /
exec "$@"
"""
_NAMESPACES = ("--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


class Machine:
    """This machine with crontabs, units and /run of its own, empty at first."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        """`env` is the environment of the command line. Skips or fails where there is no cron, or no root."""
        if os.geteuid() != 0 or not shutil.which("cron", path="/usr/sbin"):
            cannot("a cron daemon of one's own needs root and the package cron")
        self.folder, self._env = folder, env
        for name in ("cron.d", "units", "spool", "run"):
            (folder / name).mkdir(parents=True)
        (folder / "crontab").touch()
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def crontab(self) -> Path:
        """What is /etc/cron.d/kvmctl there."""
        return self.folder / "cron.d" / "kvmctl"

    def _inside(self, *command: str) -> list[str]:
        return ["unshare", *_NAMESPACES, "sh", "-c", _PRIVATE, "sh", str(self.folder), *command]

    def kvmctl(self, *words: str, code: int = 0, program: Sequence[str] = ("-m", "kvmctl")) -> Ran:
        """The command line on that machine; fails unless it ends with the expected code."""
        return _ran(self._inside(sys.executable, *program, *words), words, code, self._env)

    @contextlib.contextmanager
    def cron(self) -> Iterator[list[str]]:
        """A cron daemon while the context lasts; what to put before a command that is to see it."""
        with subprocess.Popen(self._inside("/usr/sbin/cron", "-f"), env={"PATH": "/usr/bin:/bin"}) as daemon:
            try:
                child = until(lambda: _children(daemon.pid), bool, 10, "the process that becomes cron")[0]
                comm = Path(f"/proc/{child}/comm")
                until(lambda: _text(comm), lambda name: name == "cron\n", 10, "the program's name")
                yield ["nsenter", f"--target={child}", "--mount", "--pid"]
            finally:
                # Its process namespace, with all that it has started, ends with it.
                daemon.kill()

    def kvmctl_beside(self, enter: Sequence[str], *words: str, code: int = 0) -> Ran:
        """The command line beside that cron daemon."""
        return _ran([*enter, sys.executable, "-m", "kvmctl", *words], words, code, self._env)


def _ran(command: Sequence[str], words: tuple[str, ...], code: int, env: dict[str, str]) -> Ran:
    done = subprocess.run(command, env=env, capture_output=True, timeout=120, check=False)
    ran = Ran(words, done.returncode, done.stdout.decode(), done.stderr.decode())
    assert ran.code == code, f"{words}: exit {ran.code}, not {code}\n{ran.out}\n{ran.err}"
    assert "Traceback" not in ran.err, ran.err
    return ran


def _children(pid: int) -> list[str]:
    return _text(Path(f"/proc/{pid}/task/{pid}/children")).split()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


# The container's root is this machine's, with a layer over it that is gone with the mount namespace.
_LAYERED = """
set -e
mount -t tmpfs tmpfs "$1"
cd "$1"; shift
mkdir upper work root
[ -d /run/systemd/system ] || mount -t tmpfs tmpfs /run
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
for tree in $TREES; do echo 0 >"$tree/cgroup.procs"; done
exec "$@"
"""
_HIERARCHIES = ("systemd", "unified", ".")


class Systemd:
    """A systemd that has booted in a container: this machine's files, and whatever is written is lost."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        """`env` is the environment of the command line; `folder` is empty."""
        self._env = env
        self._trees = [] if has_systemd() else self._make_trees()
        seen = {str(path) for path in (CHECKOUT, sys.prefix, sys.base_prefix)}
        command = [
            *("unshare", "--mount", "sh", "-c", _LAYERED, "sh", str(folder)),
            *("systemd-nspawn", "--directory=root", f"--machine={PREFIX}{os.getpid()}", "--register=no"),
            *(("--keep-unit",) if self._trees else ()),
            *("--link-journal=no", "--private-network", "--console=pipe"),
            *(f"--bind-ro={path}" for path in sorted(seen)),
            *("--boot", "systemd.unit=basic.target", "systemd.show_status=0"),
        ]
        environment = {"PATH": os.environ["PATH"], "TREES": " ".join(map(str, self._trees))}
        self._container = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)

    @staticmethod
    def _make_trees() -> list[Path]:
        """Control groups to contain it: nspawn takes those of who calls it, where no systemd gives it some."""
        found = [Path("/sys/fs/cgroup") / name for name in _HIERARCHIES]
        trees = [path / f"{PREFIX}{os.getpid()}" for path in found if (path / "cgroup.procs").exists()]
        for tree in trees:
            tree.mkdir()
        return trees

    def wait(self) -> None:
        """Wait until it has booted."""

        def state() -> str:
            assert self._container.poll() is None, "the container has ended"
            return self.run("systemctl", "is-system-running", code=None).out.strip() if self._enter() else ""

        until(state, lambda found: found in ("running", "degraded"), 60, "systemd")

    def _enter(self) -> list[str]:
        (leader,) = _children(self._container.pid) or [""]
        names = ("mount", "pid", "uts", "ipc", "net", "cgroup")
        return ["nsenter", f"--target={leader}", *(f"--{name}" for name in names)] if leader else []

    def run(self, *command: str, code: int | None = 0) -> Ran:
        """A program in the container."""
        done = subprocess.run([*self._enter(), *command], env=self._env, capture_output=True, timeout=120, check=False)
        ran = Ran(command, done.returncode, done.stdout.decode(), done.stderr.decode())
        assert code is None or ran.code == code, f"{command}: exit {ran.code}, not {code}\n{ran.out}\n{ran.err}"
        return ran

    def kvmctl(self, *words: str, code: int = 0) -> Ran:
        """The command line in the container."""
        return self.run(sys.executable, "-m", "kvmctl", *words, code=code)

    def close(self) -> None:
        """Halt it, and remove what contained it."""
        self._container.terminate()
        try:
            self._container.wait(30)
        except subprocess.TimeoutExpired:
            self._container.kill()
            self._container.wait()
        for tree in self._trees:
            for path, _folders, _files in os.walk(tree, topdown=False):
                until(lambda path=path: _removed(Path(path)), bool, 10, path)  # type: ignore[misc]


def _removed(path: Path) -> bool:
    """Whether a control group is gone: a process that ended a moment ago may still be in it."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
