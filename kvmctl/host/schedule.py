"""The entry by which cron or systemd runs `kvmctl rebalance` every minute: written, removed, examined."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvmctl.host import access, daemons
from kvmctl.host.files import read_text, write_atomic
from kvmctl.host.schedule_text import crontab, is_ours, program, service, timer
from kvmctl.model.errors import ConflictError, KvmctlError, RefusedError, UnreachableError

Kind = Literal["cron", "systemd"]

# No dot in its name: cron passes over such files.
CRONTAB = "etc/cron.d/kvmctl"
SERVICE = "etc/systemd/system/kvmctl-rebalance.service"
TIMER = "etc/systemd/system/kvmctl-rebalance.timer"
_WANTED = "etc/systemd/system/timers.target.wants/kvmctl-rebalance.timer"
_UNIT = "kvmctl-rebalance.timer"
_FILES: dict[Kind, tuple[str, ...]] = {"cron": (CRONTAB,), "systemd": (SERVICE, TIMER)}
_MODE = 0o644

CRON_DAEMONS = ("cron", "crond")
# Not this shell's: root would run what whoever may write to one of its folders puts there.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FOLDERS = ("KVMCTL_STATE_DIR", "KVMCTL_RUN_DIR", "KVMCTL_HOST_FILE")
_PACKAGE = Path(__file__).resolve().parents[1]
_SYSTEMCTL_SECONDS = 30.0
_START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """What is run: a command by absolute paths, and all of the environment that it needs."""

    words: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done to one file. `text` is what a kept or written file holds."""

    path: Path
    action: Literal["write", "keep", "remove"]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Installed:
    """One kind of entry as it is on this machine. `fault` is what keeps it from being run by those who would."""

    kind: Kind
    path: Path
    ours: bool
    fault: str = ""


def check_root() -> None:
    """Raise UnreachableError unless this is root."""
    if os.geteuid() != 0:
        raise UnreachableError("only root may change what cron or systemd runs", "run this as root, or add --dry-run")


def choose(wanted: Kind | None) -> Kind:
    """The kind that is wanted, else systemd where it runs, else cron. Raises RefusedError where that
    kind would never be run here."""
    if wanted != "cron" and daemons.has_systemd():
        return "systemd"
    if wanted == "systemd":
        raise RefusedError("systemd does not run this host, so it would start nothing", "use --cron")
    if any(map(daemons.installed, CRON_DAEMONS)):
        return "cron"
    raise RefusedError("no cron daemon is installed, so nothing would be run", "apt-get install cron, then try again")


def job(argv0: str, arguments: Sequence[str]) -> Job:
    """This kvmctl, started as `argv0`, with `arguments`: as cron can run it, in whatever folder and with no
    environment but the job's. Raises KvmctlError where it would not start."""
    kept = {name: str(Path(value).absolute()) for name in _FOLDERS if (value := os.environ.get(name))}
    environment = {"PATH": _PATH, **kept}
    script = shutil.which(argv0) if argv0.endswith("kvmctl") else None
    if script:
        program: tuple[str, ...] = (str(Path(script).absolute()),)
    else:
        # Run as `python -m kvmctl`. -P: a folder named kvmctl where cron starts it is not what is meant.
        program = (str(Path(sys.executable).absolute()), "-P", "-m", "kvmctl")
        environment["PYTHONPATH"] = str(_PACKAGE.parent)
    _check_start(program, environment)
    return Job((*program, *arguments), environment)


def _check_start(program: Sequence[str], environment: Mapping[str, str]) -> None:
    command = [*program, "--version"]
    try:
        done = subprocess.run(
            command,
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_START_SECONDS,
            check=False,
        )
        failed = done.returncode != 0
    except (OSError, subprocess.TimeoutExpired):
        failed = True
    if failed:
        given = shlex.join(f"{name}={value}" for name, value in environment.items())
        raise KvmctlError(
            f"{program[0]} does not start kvmctl without this shell's environment, as cron runs it",
            f"see why: cd / && env -i {given} {shlex.join(command)}",
        )


def changeable(wanted: Job) -> Path | None:
    """What of the command another user than root may change, and so become root; None where nothing."""
    for path in (Path(wanted.words[0]).resolve(), _PACKAGE):
        for part in (path, *path.parents):
            status = part.stat()
            if status.st_uid != 0 or (status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX):
                return part
    return None


def plan(kind: Kind, wanted: Job, root: Path = Path("/")) -> list[Step]:
    """What to do to have the one entry of this kind under `root`, and none of ours of the other kind.

    Raises ConflictError where a file is not ours, RefusedError where cron or systemd cannot carry the command.
    """
    if kind == "cron":
        texts = [crontab(wanted.words, wanted.environment)]
    else:
        texts = [service(wanted.words, wanted.environment), timer()]
    return [
        *(_step(root / name, text) for name, text in zip(_FILES[kind], texts, strict=True)),
        *_removals(kind="systemd" if kind == "cron" else "cron", root=root),
    ]


def _step(path: Path, text: str) -> Step:
    found = _look(path)
    if found is not None and not is_ours(found):
        raise ConflictError(
            f"{path} is not kvmctl's, so it is not overwritten", "if nothing needs it, delete it and try again"
        )
    return Step(path, "keep" if found == text and not _fault(path) else "write", text)


def _removals(kind: Kind, root: Path) -> list[Step]:
    found = ((root / name, _look(root / name)) for name in _FILES[kind])
    return [Step(path, "remove") for path, text in found if text is not None and is_ours(text)]


def removals(root: Path = Path("/")) -> list[Step]:
    """What to do to have no entry of ours under `root`."""
    return [*_removals("cron", root), *_removals("systemd", root)]


def foreign(root: Path = Path("/")) -> list[Path]:
    """Files under `root` that bear the names of ours and are not."""
    paths = (root / name for names in _FILES.values() for name in names)
    return [path for path in paths if (text := _look(path)) is not None and not is_ours(text)]


def _look(path: Path) -> str | None:
    """The text of a file; None where there is none, and none of ours where it is no plain file."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return None
    return read_text(path) if stat.S_ISREG(mode) else ""


def _fault(path: Path) -> str:
    status = path.stat()
    if status.st_uid != 0:
        return f"{path} belongs to {access.user_name(status.st_uid)}, not to root"
    if stat.S_IMODE(status.st_mode) != _MODE:
        return f"{path} has mode {stat.S_IMODE(status.st_mode):04o}, not {_MODE:04o}"
    return ""


def _missing(program: str) -> str:
    try:
        Path(program or "/none").stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"{program or 'the program that it runs'} is not there any more"
    except OSError:  # this user may not see it; root runs it
        pass
    return ""


def perform(steps: Sequence[Step], root: Path = Path("/")) -> None:
    """Do the steps, and have systemd and its timer follow where it runs. Raises KvmctlError."""
    timer_path = root / TIMER
    if any(step.path == timer_path and step.action == "remove" for step in steps):
        if _obeys(root):
            _systemctl("disable", "--now", _UNIT)
        _delete(root / _WANTED)
    for step in steps:
        if step.action == "write":
            write_atomic(step.path, step.text, _MODE)
        elif step.action == "remove":
            _delete(step.path)
    units = {step.action for step in steps if step.path.parent == timer_path.parent}
    if units - {"keep"} and _obeys(root):
        _systemctl("daemon-reload")
    if units - {"remove"} and _obeys(root):
        _systemctl("enable", "--now", _UNIT)


def _obeys(root: Path) -> bool:
    """Whether systemd runs, and what is under `root` is its."""
    return root == Path("/") and daemons.has_systemd()


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise KvmctlError(f"cannot delete {path}: {error.strerror}", f"look at it: ls -la {path.parent}") from error


def timer_runs() -> bool:
    """Whether systemd starts our service every minute, and will after a reboot too."""
    try:
        _systemctl("is-enabled", _UNIT)
    except KvmctlError:
        return False
    return bool(daemons.unit_is_active(_UNIT))


def _systemctl(*words: str) -> None:
    command = ["systemctl", *words]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SYSTEMCTL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KvmctlError(f"{shlex.join(command)} failed: {error}", "see whether systemctl status answers") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or f"it ended with {done.returncode}"
        raise KvmctlError(f"{shlex.join(command)} failed: {said}", f"look at it with systemctl status {_UNIT}")


def cron_runs() -> bool:
    """Whether a cron daemon runs on this machine."""
    return bool(daemons.running(CRON_DAEMONS))


def start_cron() -> str:
    """The shell command that starts this host's cron daemon."""
    name = next(filter(daemons.installed, CRON_DAEMONS), CRON_DAEMONS[0])
    return f"systemctl enable --now {name}" if daemons.has_systemd() else f"service {name} start"


def installed(root: Path = Path("/")) -> list[Installed]:
    """The entries under `root`; files that only bear their names are not ours."""
    found = []
    for kind, names in _FILES.items():
        path = root / names[0]
        text = _look(path)
        if text is not None and is_ours(text):
            found.append(Installed(kind, path, True, _fault(path) or _missing(program(text))))
        elif text is not None:
            found.append(Installed(kind, path, False))
    return found
