"""What this machine's own package sources offer: Debian's mirrors, versions, and a newer QEMU where there is one."""

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvmctl.bootstrap import packages
from kvmctl.bootstrap.progress import run
from kvmctl.host.files import make_private_directory, write_atomic
from kvmctl.model.errors import KvmctlError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_FORMAT = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(ORIGIN)"
_QEMU = ("qemu-system-x86", "qemu-system-data", "qemu-system-common", "seabios", "ipxe-qemu")
_UPDATE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Source:
    """One component of one release on one mirror."""

    uri: str
    release: str
    component: str

    @property
    def line(self) -> str:
        """The source as a line of sources.list."""
        return f"deb {self.uri} {self.release} {self.component}"


def release() -> str:
    """The code name of this machine's Debian. Raises KvmctlError where this is none."""
    found = re.search(r"^VERSION_CODENAME=\"?([a-z]+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    if not found:
        raise KvmctlError("this is no release of Debian: /etc/os-release has no VERSION_CODENAME")
    return found[1]


def sources() -> tuple[Source, ...]:
    """The mirrors of this machine's release of Debian, with its updates, as apt is configured; main alone.

    Raises KvmctlError where there are none.
    """
    lines = run(["apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages"]).splitlines()
    name = release()
    wanted = {name, f"{name}-updates", f"{name}-security"}
    found = dict.fromkeys(
        Source(uri, of, component)
        for uri, of, component, origin in (line.split("\t") for line in lines if line.count("\t") == 3)
        if origin == "Debian" and of in wanted and component == "main"
    )
    if not any(source.release == name for source in found):
        raise KvmctlError(
            f"the package sources of this machine have no {name} of Debian", "see /etc/apt/sources.list.d"
        )
    return tuple(found)


def versions(names: Sequence[str]) -> dict[str, str]:
    """The versions that would be installed now, of those packages that the lists know."""
    text = run(["apt-cache", "policy", *names])
    return dict(re.findall(r"^(\S+):\n  Installed: .*\n  Candidate: (\S+)", text, re.MULTILINE))


def fetch_backported_qemu(folder: Path) -> str:
    """Unpack the QEMU that Debian offers for this release besides its own, into `folder`; its version, empty where
    the mirror has none, or where libraries are missing for it. Nothing is installed."""
    apt = _private_apt(folder)
    try:
        run(["apt-get", "--quiet", *apt, "update"], timeout=_UPDATE_SECONDS)
        found = re.search(r"\| (\S+) \|", run(["apt-cache", *apt, "madison", _QEMU[0]]))
    except KvmctlError:
        return ""
    if not found:
        return ""
    for name in _QEMU:
        version = re.search(r"\| (\S+) \|", run(["apt-cache", *apt, "madison", name]))
        if version:
            run(["apt-get", "--quiet", *apt, "download", f"{name}={version[1]}"], folder=folder)
    for package in folder.glob("*.deb"):
        run(["dpkg-deb", "--extract", str(package), str(folder)])
        package.unlink()
    shutil.rmtree(folder / "apt")
    program = folder / "usr/bin/qemu-system-x86_64"
    with suppress(KvmctlError):
        if "not found" not in run(["ldd", str(program)]):
            return found[1]
    return ""


def _private_apt(folder: Path) -> list[str]:
    """Options by which apt sees the backports of this machine's own mirror, and nothing of its lists is touched."""
    own = next(source for source in sources() if source.release == release())
    place = folder / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        make_private_directory(place / name)
    line = f"deb [signed-by={KEYRING}] {own.uri} {own.release}-backports main\n"
    write_atomic(place / "sources.list", line)
    settings = {
        "Dir::Etc::sourcelist": place / "sources.list",
        "Dir::Etc::sourceparts": "/nonexistent",
        "Dir::State::lists": place / "lists",
        "Dir::Cache": place / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::Retries": "2",
        "DPkg::Lock::Timeout": "120",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def lists() -> None:
    """Fetch the lists of the package sources where Debian's are not there yet."""
    try:
        known = sources() and versions(["systemd"])
    except KvmctlError:
        known = {}
    if not known:
        packages.update()
