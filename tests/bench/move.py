"""What `kvmctl export` and `import` cost, against Debian's tools on the same disk in the same rounds.

    python -m tests.bench.move [--size 1024] [--rounds 3] [--folder DIR] [--json FILE]

Needs qemu:///system, root, and three times SIZE MiB in DIR (default: /var/lib/libvirt). The disk holds the programs and
libraries of this machine, repeated, so that it compresses as disks do. Guests are named kvmctl-test-move-N and are
removed at the end. Compared are, with the same zstd settings:

    export    qemu-img convert to qcow2, then tar through zstd; the same with sums made beforehand, as an archive has
    import    tar -x through zstd into a pool's folder, synced; the same with sha256sum -c, as an import has
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt

from tests.bench.columns import Kvmctl
from tests.bench.timing import medians, once, table, write_json

URI = "qemu:///system"
NAME = "kvmctl-test-move"
BAR = 1.15
"""The most that an export or import may take, in multiples of the same work by Debian's tools."""
SOURCES = ("/usr/lib", "/usr/bin", "/usr/share")


def main() -> None:
    """Measure, print, and write the figures where wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB of data on the disk")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/var/lib/libvirt"))
    parser.add_argument("--json")
    options = parser.parse_args()
    with _guest(options.folder, options.size) as folder:
        disk, archive = folder / "pool" / "disk.qcow2", folder / "guest.tar.zst"
        export = medians(_exports(folder, disk, archive), options.rounds)
        imported = medians(_imports(folder, archive), options.rounds)
        print(table(f"export of {options.size} MiB", export, "convert, tar, zstd"))
        print(table(f"import of {options.size} MiB", imported, "tar -x, sync"))
        ratios = {
            "export": export["kvmctl export"] / export["convert, tar, zstd"],
            "import": imported["kvmctl import"] / imported["tar -x, sync"],
        }
        for name, ratio in ratios.items():
            print(f"{name}: {ratio:.2f} times Debian's tools; the bar is {BAR}: {'kept' if ratio <= BAR else 'missed'}")
        sizes = {"disk": disk.stat().st_size, "archive": archive.stat().st_size}
    write_json(options.json, {"export": export, "import": imported, "ratios": ratios, "bar": BAR, "sizes": sizes})


@contextmanager
def _guest(parent: Path, size: int) -> Iterator[Path]:
    """A folder with a pool, and a guest that is off with a disk of `size` MiB of data."""
    folder = Path(tempfile.mkdtemp(prefix=f"{NAME}-", dir=parent))
    connection = libvirt.open(URI)
    (folder / "pool").mkdir()
    text = f"<pool type='dir'><name>{NAME}</name><target><path>{folder}/pool</path></target></pool>"
    try:
        _fill(folder, size)
        pool = connection.storagePoolCreateXML(text)
        try:
            connection.defineXML(
                f"<domain type='qemu'><name>{NAME}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>"
                "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><disk type='file' device='disk'>"
                f"<driver name='qemu' type='qcow2'/><source file='{folder}/pool/disk.qcow2'/>"
                "<target dev='vda' bus='virtio'/></disk></devices></domain>"
            )
            yield folder
        finally:
            for domain in connection.listAllDomains():
                if domain.name().startswith(NAME):
                    domain.undefine()
            pool.destroy()
    finally:
        shutil.rmtree(folder)
        connection.close()


def _fill(folder: Path, size: int) -> None:
    """A disk of what is on this machine's own, `size` MiB of it, in one of four times that size."""
    raw = folder / "raw"
    with raw.open("wb") as file:
        while file.tell() < size << 20:
            command = ["tar", "--exclude=*.pyc", "-cf", "-", *SOURCES]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tar:
                assert tar.stdout
                while (left := (size << 20) - file.tell()) > 0 and (data := tar.stdout.read(min(1 << 20, left))):
                    file.write(data)
                tar.kill()
        file.truncate(4 * (size << 20))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, folder / "pool/disk.qcow2"], check=True)
    raw.unlink()


def _sh(script: str, *values: object) -> Callable[[], float]:
    return lambda: once(["sh", "-e", "-c", script, *map(str, values)])


def _exports(folder: Path, disk: Path, archive: Path) -> dict[str, Callable[[], float]]:
    kvmctl, work = Kvmctl(folder / "state"), folder / "work"
    work.mkdir()
    convert = 'cd "$0"; rm -f vda.qcow2 out; qemu-img convert -f qcow2 -O qcow2 "$1" vda.qcow2; '
    pack = 'tar -I "zstd -q -3 -T0 --check" -cf out vda.qcow2; sync out; rm vda.qcow2'

    def ours() -> float:
        archive.unlink(missing_ok=True)
        return once(kvmctl.command("export", NAME, "-o", str(archive)), kvmctl.env)

    return {
        "convert, tar, zstd": _sh(convert + pack, work, disk),
        "convert, sha256sum, tar, zstd": _sh(f"{convert}sha256sum vda.qcow2 >sums; {pack}", work, disk),
        "kvmctl export": ours,
    }


def _imports(folder: Path, archive: Path) -> dict[str, Callable[[], float]]:
    kvmctl, work, pool = Kvmctl(folder / "state"), folder / "taken", folder / "pool"
    connection = libvirt.open(URI)
    take = 'rm -rf "$0"; mkdir "$0"; cd "$0"; tar -I zstd -xf "$1"; sync disks/*'
    copy = f"{NAME}-2"

    def ours() -> float:
        taken = once(kvmctl.command("import", str(archive), "--name", copy), kvmctl.env)
        connection.lookupByName(copy).undefine()
        for path in pool.glob(f"{copy}-*"):
            path.unlink()
        return taken

    return {
        "tar -x, sync": _sh(take, work, archive),
        "tar -x, sha256sum -c, sync": _sh(f"{take}; sha256sum -c --quiet SHA256SUMS", work, archive),
        "kvmctl import": ours,
    }


if __name__ == "__main__":
    main()
