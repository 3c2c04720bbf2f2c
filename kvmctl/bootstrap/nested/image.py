"""The image of the nested host: a whole Debian from this machine's own package sources, ready for kvmctl, which is not
in it: that is copied in when it runs, so that the image outlives changes of the code."""

import fcntl
import hashlib
import json
import re
import shutil
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kvmctl.bootstrap import cpio, environment, microguest, packages
from kvmctl.bootstrap.microguest import CACHE, open_folder, point
from kvmctl.bootstrap.nested import debian
from kvmctl.bootstrap.progress import run, step
from kvmctl.host.files import make_private_directory, write_atomic
from kvmctl.host.lock import lock
from kvmctl.model.errors import KvmctlError

PLACE = "/opt/kvmctl"
"""Where kvmctl is copied to in the host."""
GUEST = "/srv/guest"
"""Where the host has kernel and initrd of its own guests: `vmlinuz` and `initrd.gz`."""

_PACKAGES = (
    "systemd-sysv", "dbus", "udev", "kmod", "procps", "iproute2", "openssh-server", "sudo", "python3",
    "python3-libvirt", "libvirt-daemon-system", "libvirt-clients", "qemu-system-x86", "qemu-utils", "dnsmasq-base",
    "linux-image-amd64", "busybox-static", "pciutils", "pci.ids", "nvme-cli", "zstd", "cron",
)  # fmt: skip
_LEFT_OUT = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*",
    # It would build an initrd that is not used, which takes longer than all that is.
    "/etc/kernel/postinst.d/initramfs-tools",
)  # fmt: skip
_ROOT_DRIVERS = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
_GUEST_DRIVERS = ("e1000e", "nvme", "igbvf")
"""Of devices that are passed to the host's guests."""
_SERVICES = ("systemd-networkd", "ssh", "libvirtd")
_MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "libvirt-guests.service", "systemd-networkd-wait-online.service",
)  # fmt: skip
_NO_NETWORK = re.compile(
    "Could not resolve|Temporary failure|Could not connect|Unable to connect|Connection (?:refused|failed|timed out)"
    "|Network is unreachable|Failed to establish a new connection"
)
"""What apt and pip say then."""
_SIZE = "6G"
_BUILD_SECONDS = 1500.0
_KEEP_SECONDS = 86400.0
"""For how long after its last use an image stays: two checkouts would build theirs in turns."""
_PYTHON = "usr/local/lib/python3/dist-packages"
_FILES: Mapping[str, str] = {
    "etc/hostname": "nested\n",
    "etc/hosts": "127.0.0.1 localhost nested\n",
    "etc/fstab": "/dev/vda / ext4 noatime 0 1\n",
    # Each host makes its own at its first boot.
    "etc/machine-id": "",
    # The spare cards stay without an address, so that they can be given to guests.
    "etc/systemd/network/10-spare.network": "[Match]\nMACAddress=52:54:00:aa:00:01 52:54:00:aa:00:02\n"
    "[Link]\nUnmanaged=yes\n",
    "etc/systemd/network/90-own.network": "[Match]\nDriver=virtio_net\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\n",
    "etc/ssh/sshd_config.d/nested.conf": "UseDNS no\nMaxSessions 64\n",
    "etc/sudoers.d/vagrant": "vagrant ALL=(ALL) NOPASSWD: ALL\n",
    "etc/modules-load.d/nested.conf": "vfio-pci\n",
    "usr/local/bin/kvmctl": "#!/usr/bin/python3\nimport sys\n\n"
    f"sys.path[:0] = ['{PLACE}', '/{_PYTHON}']\n\nfrom kvmctl.__main__ import main\n\nsys.exit(main())\n",
}


@dataclass(frozen=True, slots=True)
class Image:
    """The files of one build, in a folder of their own."""

    folder: Path

    @property
    def disk(self) -> Path:
        """The root file system, as qcow2; never written to."""
        return self.folder / "disk.qcow2"

    @property
    def kernel(self) -> Path:
        """What it is booted with."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """What it is booted with."""
        return self.folder / "initrd.gz"

    @property
    def key(self) -> Path:
        """The private key with which root and vagrant are let in."""
        return self.folder / "id"

    @property
    def known_hosts(self) -> Path:
        """The key of the host itself, under the name `nested`."""
        return self.folder / "known_hosts"

    @property
    def emulator(self) -> Path | None:
        """A newer QEMU than the machine's own, unpacked; None where Debian offers none for this release."""
        program = self.folder / "qemu/usr/bin/qemu-system-x86_64"
        return program if program.exists() else None

    @property
    def stamp(self) -> Path:
        """The versions of its packages: what is written last."""
        return self.folder / "versions.json"

    @property
    def complete(self) -> bool:
        """Whether all of it is there."""
        return self.stamp.exists()


def ensure(cache: Path = CACHE) -> Image:
    """Build the image unless it is there for the packages that the sources now offer and for this builder.

    Raises KvmctlError where packages cannot be fetched, or a tool is missing.
    """
    check_tools()
    debian.lists()
    versions = debian.versions(_PACKAGES)
    image = Image(cache / "nested" / _digest(versions))
    if not image.complete:
        with lock("the nested host's image", _BUILD_SECONDS):
            if not image.complete:
                _try_to_build(image, versions)
    return image


def _try_to_build(image: Image, versions: Mapping[str, str]) -> None:
    try:
        _build(image, versions)
    except KvmctlError as error:
        mirrors = ", ".join(dict.fromkeys(source.uri for source in debian.sources()))
        what = "there is no network to the package sources" if _NO_NETWORK.search(error.message) else "see above"
        raise KvmctlError(
            f"{error.message}\nThe image of the nested host could not be built: {what}.",
            f"make reachable {mirrors} and the Python package index, then run this again",
        ) from error


def _digest(versions: Mapping[str, str]) -> str:
    """Names all that an image is made of and by: what is equal here need not be built again."""
    here = Path(__file__).parent
    files = [Path(__file__), here / "debian.py", here / "initrd", Path(microguest.__file__), Path(cpio.__file__)]
    files += sorted((here.parent / "guest").iterdir())
    contents = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    parts = [sorted(versions.items()), _requirements(), contents]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _requirements() -> list[str]:
    """What kvmctl needs from the Python package index: all but libvirt's binding, which Debian has."""
    project = tomllib.loads((environment.CHECKOUT / "pyproject.toml").read_text())["project"]
    return [one for one in project["dependencies"] if not one.startswith("libvirt-python")]


def _build(image: Image, versions: Mapping[str, str]) -> None:
    store = open_folder(image.folder.parent)
    for old in store.iterdir():
        if old.is_dir() and not old.is_symlink() and not _is_used(Image(old)):
            shutil.rmtree(old)  # of other versions, or left half done
    with tempfile.TemporaryDirectory(dir=store, prefix=".building-") as scratch:
        root, made = Path(scratch) / "root", Path(scratch) / "made"
        made.mkdir(mode=0o755)
        with step("Installing a Debian for the nested host"):
            _install(root)
        with step("Setting up the nested host"):
            _set_up(root, made, store)
        with step("Writing the nested host's disk"):
            _write_disk(root, made)
        with step("Fetching a newer QEMU, if Debian offers one"):
            (made / "qemu").mkdir()
            if not debian.fetch_backported_qemu(made / "qemu"):
                shutil.rmtree(made / "qemu")
        write_atomic(made / "versions.json", json.dumps(versions, indent=2) + "\n", 0o644)
        made.replace(image.folder)
    point(store / "current", image.folder)


@contextmanager
def using(image: Image) -> Iterator[None]:
    """For as long as the block runs, and a day, the image stays, also where another checkout builds one of its own."""
    image.stamp.touch()
    with image.stamp.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _is_used(image: Image) -> bool:
    with suppress(OSError):
        if time.time() - image.stamp.stat().st_mtime < _KEEP_SECONDS:
            return True
    try:
        with image.stamp.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # half done, or gone meanwhile
    return False


def _install(root: Path) -> None:
    command = ["mmdebstrap", "--variant=minbase", "--mode=root", "--format=directory", "--quiet"]
    command += ["--aptopt=Apt::Install-Recommends false", "--aptopt=Acquire::Retries 2"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
    command += [f"--include={','.join(_PACKAGES)}", debian.release(), str(root)]
    run([*command, *(source.line for source in debian.sources())], timeout=_BUILD_SECONDS)


def _set_up(root: Path, made: Path, store: Path) -> None:
    for name, text in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "usr/local/bin/kvmctl").chmod(0o755)
    (root / "etc/sudoers.d/vagrant").chmod(0o440)
    (root / PLACE.lstrip("/")).mkdir(parents=True)
    inside = ["chroot", str(root)]
    run([*inside, "useradd", "--create-home", "--shell", "/bin/bash", "--groups", "libvirt,kvm", "vagrant"])
    run([*inside, "systemctl", "enable", *_SERVICES])
    run([*inside, "systemctl", "mask", *_MASKED])
    _let_in(root, made, _key(store.with_name("nested-key")))
    _add_python(root)
    _add_kernels(root, made)


def _key(folder: Path) -> Path:
    """The private key of all images: with one for each, a host that outlives its image would be shut."""
    key = folder / "id"
    if not key.with_suffix(".pub").exists():  # written last
        make_private_directory(folder)
        key.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "nested", "-f", str(key)])
    return key


def _let_in(root: Path, made: Path, key: Path) -> None:
    shutil.copy(key, made / "id")
    public = key.with_suffix(".pub").read_text()
    for user, home in (("root", "root"), ("vagrant", "home/vagrant")):
        folder = root / home / ".ssh"
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "authorized_keys").write_text(public)
        run(["chroot", str(root), "chown", "-R", f"{user}:{user}", f"/{home}/.ssh"])
    own = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()
    write_atomic(made / "known_hosts", f"nested {own[0]} {own[1]}\n", 0o644)


def _add_python(root: Path) -> None:
    """Install what kvmctl needs for the interpreter in the image, whichever this one is."""
    found = max((root / "usr/bin").glob("python3.[0-9]*"))
    version = found.name.removeprefix("python")
    command = [str(environment.PYTHON), "-m", "pip", "install", "--quiet", "--no-input", "--no-compile"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={version}"]
    for platform in ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64"):
        command += ["--platform", platform]
    command += ["--target", str(root / _PYTHON), *_requirements()]
    run(command, {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}, timeout=_BUILD_SECONDS)
    # Otherwise each host that is booted compiles it again, emulated.
    run(["chroot", str(root), "python3", "-m", "compileall", "-q", f"/{_PYTHON}"], timeout=_BUILD_SECONDS)


def _add_kernels(root: Path, made: Path) -> None:
    kernel = max((root / "boot").glob("vmlinuz-*"))
    write_atomic(made / "vmlinuz", kernel.read_bytes(), 0o644)
    write_atomic(made / "initrd.gz", cpio.archive(_initrd(root)), 0o644)
    guest = root / GUEST.lstrip("/")
    guest.mkdir(parents=True)
    (guest / "vmlinuz").write_bytes(kernel.read_bytes())
    (guest / "initrd.gz").write_bytes(microguest.initramfs(root, (*microguest.DRIVERS, *_GUEST_DRIVERS)))


def _initrd(root: Path) -> list[cpio.Entry]:
    folders = [cpio.folder(name) for name in ("bin", "dev", "proc", "new", "modules")]
    programs = [
        cpio.program("bin/busybox", (root / "bin/busybox").read_bytes()),
        cpio.program("init", Path(__file__).with_name("initrd").read_bytes()),
    ]
    console = cpio.character_device("dev/console", 5, 1)
    return [*folders, console, *programs, *microguest.module_files(root, _ROOT_DRIVERS)]


def _write_disk(root: Path, made: Path) -> None:
    raw = made.parent / "disk.raw"
    options = ["-q", "-t", "ext4", "-E", "lazy_itable_init=1,root_owner=0:0"]
    run(["mke2fs", *options, "-d", str(root), str(raw), _SIZE], timeout=_BUILD_SECONDS)
    convert = ["qemu-img", "convert", "-m", "4", "-W", "-c", "-o", "compression_type=zstd", "-O", "qcow2"]
    run([*convert, str(raw), str(made / "disk.qcow2")], timeout=_BUILD_SECONDS)
    (made / "disk.qcow2").chmod(0o644)


def check_tools() -> None:
    """Raise KvmctlError naming the programs that are missing here."""
    missing = [name for name in ("mmdebstrap", "mke2fs", "qemu-img", "ssh", "ssh-keygen") if not shutil.which(name)]
    if missing:
        raise KvmctlError(
            f"the nested host cannot be built: {', '.join(missing)} is missing",
            f"apt-get install {' '.join(packages.NESTED)}",
        )
