"""Debian packages: which are missing, installing them, and fetching some without installing them."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kvmctl.bootstrap.progress import run, say, step
from kvmctl.model.errors import KvmctlError

_HYPERVISOR = (
    "libvirt-daemon-system",
    "libvirt-clients",
    "qemu-system-x86",
    "qemu-utils",
    "zstd",
    "dnsmasq-base",
    "ovmf",
)
_BUILD = ("libvirt-dev", "pkg-config", "gcc", "libc6-dev")
"""libvirt's Python binding comes as source."""
_INTERPRETER = ("python3-venv", "python3-dev")
"""What Debian splits off from its own interpreter; any other interpreter brings it along."""
_TESTS = ("cron", "iproute2", "swtpm", "swtpm-tools")
"""What only tests need: `rebalance install --cron` is tried with a real daemon, hosts in namespaces get a cable, and a
guest has an emulated TPM."""
NESTED = ("mmdebstrap", "e2fsprogs", "qemu-utils", "openssh-client", "zstd")
"""What the nested host is built and reached with."""
VAGRANT = ("vagrant", "vagrant-libvirt")
"""What the nested host's box is tried with."""
_INIT_SCRIPTS = "libvirt-daemon-system-sysv"

_APT = ("apt-get", "--quiet", "--yes", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=2")


def missing(tests: bool = False, vagrant: bool = False) -> list[str]:
    """What has to be installed, for the interpreter that runs now, and for the `tests` and `vagrant` too.

    Raises KvmctlError where this is no Debian.
    """
    interpreter = _INTERPRETER if sys.base_prefix == "/usr" else ()
    wanted = _HYPERVISOR + _BUILD + interpreter
    wanted += (_TESTS + NESTED if tests else ()) + (VAGRANT if vagrant else ())
    found = lacking(wanted)
    if "libvirt-daemon-system" in found and lacking(["systemd-sysv"]):
        # Left to itself, apt would make systemd the init system of a machine that has another, or none.
        found.append(_INIT_SCRIPTS)
    return found


def lacking(names: Sequence[str]) -> list[str]:
    """Those of `names` that are not installed."""
    if not shutil.which("dpkg-query"):
        raise KvmctlError(
            "this is no Debian system: dpkg-query is missing",
            f"install what these Debian packages hold, then kvmctl itself with pip: {' '.join(names)}",
        )
    answer = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *names],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    installed = {line.split()[0] for line in answer.stdout.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in installed]


def install(names: Sequence[str]) -> None:
    """Install packages, without those they only recommend. Raises KvmctlError naming what is missing and why."""
    said = ""
    try:
        said = update()
        say(f"these Debian packages are missing: {' '.join(names)}")
        with step(f"Installing {len(names)} Debian packages"):
            run([*_APT, "install", "--no-install-recommends", *names], {"DEBIAN_FRONTEND": "noninteractive"})
    except KvmctlError as error:
        reasons = complaints(f"{said}\n{error.message}") or error.message
        raise KvmctlError(
            f"these Debian packages are missing and could not be installed: {' '.join(names)}\n{reasons}",
            "make the package sources reachable, then run this again, or install them by hand: "
            f"apt-get update && apt-get install --no-install-recommends {' '.join(names)}",
        ) from error


def complaints(said: str) -> str:
    """The first few lines in which apt says what is wrong; it does not fail when it cannot fetch lists."""
    lines = [line.strip() for line in said.splitlines()]
    found = dict.fromkeys(f"    {line}" for line in lines if line.startswith(("W: ", "E: ")))
    return "\n".join(list(found)[:6])


def update() -> str:
    """Fetch the lists of the package sources; what apt said."""
    with step("Fetching the lists of Debian packages"):
        return run([*_APT, "update"])


def depended_on(metapackage: str, pattern: str) -> str:
    """The package that a metapackage stands for now: the first it depends on that matches `pattern`."""
    description = run(["apt-cache", "show", "--no-all-versions", metapackage])
    match = re.search(rf"^Depends:.*?({pattern})", description, re.MULTILINE)
    if not match:
        raise KvmctlError(f"the package sources of this machine have no {metapackage}")
    return match[1]


def download(names: Sequence[str], folder: Path) -> list[Path]:
    """Fetch packages into `folder`, in the order of `names`, without installing anything."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as scratch, step(f"Fetching {', '.join(names)}"):
        # apt would drop to a user of its own, who cannot write into a folder that only root may fill.
        run([*_APT, "-o", "APT::Sandbox::User=root", "download", *names], folder=Path(scratch))
        files = [next(Path(scratch).glob(f"{name}_*.deb")) for name in names]
        return [file.replace(folder / file.name) for file in files]
