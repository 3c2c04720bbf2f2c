"""The micro guest: a real Linux in seconds, made of Debian's cloud kernel, busybox and one script.

Nothing of it is installed on the host: the packages are fetched and unpacked in a cache folder.
"""

import hashlib
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvmctl.bootstrap import cpio, packages
from kvmctl.bootstrap.progress import run, step
from kvmctl.host.files import write_atomic
from kvmctl.host.lock import lock
from kvmctl.model.errors import KvmctlError

CACHE = Path("/var/cache/kvmctl")
READY = b"micro-ready"
"""How the line starts that the guest prints when it is up, on its console."""

_BUSYBOX = "busybox-static"
_SOURCES = Path(__file__).with_name("guest")
DRIVERS = (
    "virtio_pci", "virtio_balloon", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "button", "evdev",
    "virtio_scsi", "ata_piix", "sd_mod", "sr_mod", "isofs",
)  # fmt: skip
_BUILD_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Flavour:
    """One kernel for micro guests, and the folder in the cache for what is made with it."""

    folder: str
    metapackage: str
    package: str
    """A pattern for the name of the package that the metapackage stands for."""
    drivers: tuple[str, ...] = DRIVERS


CLOUD = Flavour("micro", "linux-image-cloud-amd64", r"linux-image-[^\s_]+-cloud-amd64")
"""Small and quick, with drivers for virtio and little else."""
FULL = Flavour(
    "micro-full",
    "linux-image-amd64",
    r"linux-image-\d[^\s_-]*-\d+-amd64",
    (*DRIVERS, "ahci", "e1000e", "e1000", "pktgen"),
)
"""With drivers for the hardware that QEMU emulates, and a generator of packets."""


@dataclass(frozen=True, slots=True)
class MicroGuest:
    """Two files that every user can read, at paths that stay the same when they are built anew."""

    kernel: Path
    initrd: Path


def ensure(cache: Path = CACHE, flavour: Flavour = CLOUD) -> MicroGuest:
    """Build the micro guest unless this version of it is there, which takes no time.

    Raises KvmctlError where the packages cannot be fetched, or by a user who may not write to `cache`.
    """
    current = cache / flavour.folder / "current"
    guest = MicroGuest(current / "vmlinuz", current / "initrd.gz")
    if not _is_current(guest, current):
        with lock("the micro guest", _BUILD_SECONDS):
            if not _is_current(guest, current):
                _build(cache, current, flavour)
    return guest


def _is_current(guest: MicroGuest, current: Path) -> bool:
    return current.resolve().name.endswith(_recipe()) and guest.kernel.is_file() and guest.initrd.is_file()


def _recipe() -> str:
    """A digest of everything here that the guest is made of or by."""
    files = [Path(__file__), Path(cpio.__file__), *sorted(_SOURCES.iterdir())]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _build(cache: Path, current: Path, flavour: Flavour) -> None:
    store = open_folder(open_folder(cache) / "packages")
    kernel, busybox = _cached(store, flavour) or _fetch(store, flavour)
    place = open_folder(open_folder(cache / flavour.folder) / f"{_version(kernel)}+{_version(busybox)}-{_recipe()}")
    with step("Building the micro guest"), tempfile.TemporaryDirectory(dir=cache, prefix=".building-") as scratch:
        root = Path(scratch)
        for package in (kernel, busybox):
            run(["dpkg-deb", "--extract", str(package), scratch])
        write_atomic(place / "vmlinuz", next((root / "boot").glob("vmlinuz-*")).read_bytes(), 0o644)
        write_atomic(place / "initrd.gz", initramfs(root, flavour.drivers), 0o644)
    point(current, place)


def open_folder(path: Path) -> Path:
    """A folder that QEMU's user, which is not root under libvirt, can enter whatever the umask is."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)
    except OSError as error:
        raise KvmctlError(f"cannot make the folder {path}: {error.strerror}", "run this as root") from error
    return path


def _cached(store: Path, flavour: Flavour) -> tuple[Path, Path] | None:
    """The packages that were fetched last, if they are still here: then no network is needed."""
    with suppress(ValueError):
        kernels = [file for file in store.glob("*.deb") if re.match(rf"{flavour.package}_", file.name)]
        return (
            max(kernels, key=lambda file: file.stat().st_mtime),
            max(store.glob(f"{_BUSYBOX}_*.deb"), key=lambda file: file.stat().st_mtime),
        )
    return None


def _fetch(store: Path, flavour: Flavour) -> tuple[Path, Path]:
    try:
        return _download(store, flavour)
    except KvmctlError:
        # The lists were never fetched, or name what the server has replaced.
        packages.update()
    return _download(store, flavour)


def _download(store: Path, flavour: Flavour) -> tuple[Path, Path]:
    kernel = packages.depended_on(flavour.metapackage, flavour.package)
    files = packages.download([kernel, _BUSYBOX], store)
    return files[0], files[1]


def _version(package: Path) -> str:
    return re.sub(r"%3a", ":", package.name).split("_")[1].replace(":", ".")


def point(link: Path, target: Path) -> None:
    """Make `link` a symbolic link to `target`, in one step whatever it was."""
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(link)


def initramfs(root: Path, drivers: tuple[str, ...]) -> bytes:
    """The micro guest's user space with the busybox below `root` and these modules of its kernel."""
    return cpio.archive(_contents(root, drivers))


def _contents(root: Path, drivers: tuple[str, ...]) -> Iterator[cpio.Entry]:
    for path in ("bin", "dev", "etc", "modules", "proc", "sys"):
        yield cpio.folder(path)
    # The kernel opens it before there is any file system but this one.
    yield cpio.character_device("dev/console", 5, 1)
    yield cpio.program("bin/busybox", (root / "bin/busybox").read_bytes())
    for script in sorted(_SOURCES.iterdir()):
        yield cpio.program(script.name, script.read_bytes())
    yield from module_files(root, drivers)


def module_files(root: Path, drivers: tuple[str, ...]) -> Iterator[cpio.Entry]:
    """The modules of the kernel below `root` for these drivers, and `modules/order`, in which to load them."""
    modules = {file.stem.replace("-", "_"): file for file in (root / "lib/modules").rglob("*.ko")}
    order = load_order(drivers, {name: _depends(file.read_bytes()) for name, file in modules.items()})
    for name in order:
        yield cpio.Entry(f"modules/{name}.ko", stat.S_IFREG | 0o644, modules[name].read_bytes())
    yield cpio.Entry("modules/order", stat.S_IFREG | 0o644, "".join(f"{name}.ko\n" for name in order).encode())


def _depends(module: bytes) -> tuple[str, ...]:
    """What a kernel module says it needs, in its `.modinfo` section."""
    match = re.search(rb"\0depends=([\w,-]*)\0", module)
    return tuple(name for name in match[1].decode().replace("-", "_").split(",") if name) if match else ()


def load_order(wanted: tuple[str, ...], needs: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The wanted modules and all that they need, each after what it needs itself; those that `needs`
    does not know are part of the kernel and left out."""
    order: dict[str, None] = {}

    def add(name: str) -> None:
        for needed in needs.get(name, ()):
            add(needed)
        if name in needs:
            order.setdefault(name)

    for name in wanted:
        add(name)
    return list(order)
