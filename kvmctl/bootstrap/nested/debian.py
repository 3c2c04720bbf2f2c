"""What this machine's own package sources offer: Debian's mirrors, versions, and a newer QEMU where there is one."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvmctl.bootstrap import packages
from kvmctl.bootstrap.progress import run, say
from kvmctl.host.files import make_private_directory, write_atomic
from kvmctl.model.errors import KvmctlError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_FORMAT = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(ORIGIN)"
_QEMU = ("qemu-system-x86", "qemu-system-data", "qemu-system-common", "seabios", "ipxe-qemu")
_UPDATE_SECONDS = 120.0
_NO_SUCH_RELEASE = "does not have a Release file"
"""What apt says of a mirror that answers, and has no backports."""


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
    the mirror has none, or where libraries are missing for it. Nothing is installed.

    Raises KvmctlError where the mirror does not answer, or what it has is not signed with Debian's key.
    """
    mirror = next(source for source in sources() if source.release == release())
    apt = _private_apt(folder, f"{mirror.uri} {mirror.release}-backports")
    try:
        run(["apt-get", "--quiet", *apt, "update"], timeout=_UPDATE_SECONDS)
    except KvmctlError as error:
        if _NO_SUCH_RELEASE in error.message:
            return ""
        said = packages.complaints(error.message) or error.message
        raise KvmctlError(f"the backports of {mirror.uri} could not be read:\n{said}") from error
    found = {name: version for name in _QEMU if (version := _offered(name, apt))}
    if _QEMU[0] not in found:
        return ""
    words = [f"{name}={version}" for name, version in found.items()]
    run(["apt-get", "--quiet", *apt, "download", *words], folder=folder)
    for package in folder.glob("*.deb"):
        run(["dpkg-deb", "--extract", str(package), str(folder)])
        package.unlink()
    shutil.rmtree(folder / "apt")
    missing = re.findall(r"(\S+) => not found", run(["ldd", str(folder / "usr/bin/qemu-system-x86_64")]))
    if missing:
        say(f"QEMU {found[_QEMU[0]]} is not used: {', '.join(sorted(missing))} is missing here")
    return "" if missing else found[_QEMU[0]]


def _offered(name: str, apt: Sequence[str]) -> str:
    found = re.search(r"\| (\S+) \|", run(["apt-cache", *apt, "madison", name]))
    return found[1] if found else ""


def _private_apt(folder: Path, repository: str) -> list[str]:
    """Options by which apt sees one repository of Debian alone, and no list of this machine's is touched.

    apt itself checks that the release file is signed by Debian's keyring, and no other key will do; the release file
    has the digests of the lists, and they those of the packages.
    """
    place = folder / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        make_private_directory(place / name)
    write_atomic(place / "sources.list", f"deb [signed-by={KEYRING}] {repository} main\n")
    settings = {
        "Dir::Etc::sourcelist": place / "sources.list",
        "Dir::Etc::sourceparts": "/nonexistent",
        "Dir::Etc::preferences": "/nonexistent",
        "Dir::Etc::preferencesparts": "/nonexistent",
        "Dir::State::lists": place / "lists",
        "Dir::Cache": place / "cache",
        # Whatever this machine's apt is allowed.
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::AllowWeakRepositories": "false",
        "APT::Get::AllowUnauthenticated": "false",
        # A mirror that does not answer is no success.
        "APT::Update::Error-Mode": "any",
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
