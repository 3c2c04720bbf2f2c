"""The virtual environment in the checkout, which everything but the bootstrap runs in."""

import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from kvmctl.bootstrap.progress import run, step
from kvmctl.host.files import read_text, write_atomic
from kvmctl.model.errors import KvmctlError

CHECKOUT = Path(__file__).resolve().parents[2]
ENVIRONMENT = CHECKOUT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
KVMCTL = ENVIRONMENT / "bin" / "kvmctl"

_PARTS = ("dependencies", "optional-dependencies", "scripts")
_STAMP = ENVIRONMENT / "kvmctl-dependencies"
_CHECK_SECONDS = 60.0


def ensure() -> None:
    """Make the environment where it is missing or broken, and bring it up to date when what kvmctl
    depends on changed. Raises KvmctlError where this is no checkout, or packages cannot be fetched.
    """
    wanted = _dependencies()
    works = _works("import click, libvirt, kvmctl")
    if works and read_text(_STAMP) == wanted:
        return
    if not works and not _works("import pip"):
        with step(f"Making the virtual environment {ENVIRONMENT}"):
            shutil.rmtree(ENVIRONMENT, ignore_errors=True)
            run([sys.executable, "-m", "venv", str(ENVIRONMENT)])
    _install()
    write_atomic(_STAMP, wanted, 0o644)


def _dependencies() -> str:
    """A digest of all in pyproject.toml that the environment is made from."""
    text = read_text(CHECKOUT / "pyproject.toml")
    if text is None:
        raise KvmctlError(
            f"{CHECKOUT} is not a checkout of kvmctl: it has no pyproject.toml",
            "the bootstrap sets up a checkout; an installed kvmctl needs none: run kvmctl itself",
        )
    project = tomllib.loads(text)["project"]
    parts = json.dumps([project.get(key) for key in _PARTS], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest() + "\n"


def _works(statement: str) -> bool:
    if not PYTHON.exists():
        return False
    try:
        answer = subprocess.run(
            [PYTHON, "-c", statement],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CHECK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0


def _install() -> None:
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--no-input", "--editable", f"{CHECKOUT}[test]"]
    try:
        with step("Installing kvmctl and the Python packages it needs into .venv"):
            run(command, {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"})
    except KvmctlError as error:
        raise KvmctlError(
            f"{error.message}\nThe Python packages that kvmctl needs could not be installed.",
            f"make the Python package index reachable, then run this again, or by hand: {' '.join(command)}",
        ) from error
