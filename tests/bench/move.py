"""What `kvmctl export` and `import` cost, against Debian's tools on the same disk in the same rounds.

    python -m tests.bench.move [--size 1024] [--rounds 3] [--kinds compact,overlay,hollow] [--folder DIR] [--json FILE]

Needs qemu:///system, root, and four times SIZE MiB in DIR (default: /var/lib/libvirt). The disk holds the programs and
libraries of this machine, repeated, so that it compresses as disks do. Guests are named kvmctl-test-move-N and are
removed at the end. The disk is one image without unused blocks (compact), which an export reads where it lies; an
overlay with half of the data over a base with the other (overlay), which has to be made one image first; or an image
of which half is discarded by now (hollow), which has to be copied to become smaller. Compared are, with the same zstd
settings:

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
KINDS = ("compact", "overlay", "hollow")
SOURCES = ("/usr/lib", "/usr/bin", "/usr/share")


def main() -> None:
    """Measure, print, and write the figures where wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB of data on the disk")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/var/lib/libvirt"))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--json")
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    figures: dict[str, dict[str, float]] = {}
    ratios: dict[str, float] = {}
    sizes: dict[str, int] = {}
    with _guest(options.folder) as folder:
        disk, archive = folder / "pool" / "disk.qcow2", folder / "guest.tar.zst"
        for kind in kinds:
            _fill(folder, options.size, kind)
            found = medians(_exports(folder, disk, archive), options.rounds)
            print(table(f"export of {options.size} MiB, {kind}", found, "convert, tar, zstd"))
            figures[f"export, {kind}"] = found
            ratios[f"export, {kind}"] = found["kvmctl export"] / found["convert, tar, zstd"]
            sizes |= {f"disk, {kind}": disk.stat().st_size, f"archive, {kind}": archive.stat().st_size}
        found = medians(_imports(folder, archive), options.rounds)
        print(table(f"import of what is in the last, {kinds[-1]}", found, "tar -x, sync"))
        figures["import"] = found
        ratios["import"] = found["kvmctl import"] / found["tar -x, sync"]
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f} times Debian's tools; the bar is {BAR}: {'kept' if ratio <= BAR else 'missed'}")
    write_json(options.json, {"figures": figures, "ratios": ratios, "bar": BAR, "sizes": sizes})


@contextmanager
def _guest(parent: Path) -> Iterator[Path]:
    """A folder with a pool, and a guest that is off whose disk is to be made in it."""
    folder = Path(tempfile.mkdtemp(prefix=f"{NAME}-", dir=parent))
    connection = libvirt.open(URI)
    (folder / "pool").mkdir()
    text = f"<pool type='dir'><name>{NAME}</name><target><path>{folder}/pool</path></target></pool>"
    try:
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


def _fill(folder: Path, size: int, kind: str) -> None:
    """A disk of what is on this machine's own, `size` MiB of it, in one of four times that size."""
    raw, pool, disk = folder / "raw", folder / "pool", folder / "pool/disk.qcow2"
    for path in pool.iterdir():
        path.unlink()
    with raw.open("wb") as file:
        while file.tell() < size << 20:
            command = ["tar", "--exclude=*.pyc", "-cf", "-", *SOURCES]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tar:
                assert tar.stdout
                while (left := (size << 20) - file.tell()) > 0 and (data := tar.stdout.read(min(1 << 20, left))):
                    file.write(data)
                tar.kill()
        file.truncate(4 * (size << 20))
    base = pool / "base.qcow2" if kind == "overlay" else disk
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, base], check=True)
    raw.unlink()
    half = f"0 {size >> 1}M"
    if kind == "overlay":
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", disk], check=True)
        # What the first half holds is written again, to the overlay.
        image = folder / "half"
        script = 'qemu-img dd -f qcow2 -O raw bs=1M count="$2" if="$0" of="$1"'
        subprocess.run(["sh", "-c", script, base, image, str(size >> 1)], check=True)
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -s {image} {half}", disk], check=True)
        image.unlink()
    elif kind == "hollow":
        command = ["qemu-io", "-f", "qcow2", "-d", "unmap", "-c", f"discard {half}", str(disk)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def _sh(script: str, *values: object) -> Callable[[], float]:
    return lambda: once(["sh", "-e", "-c", script, *map(str, values)])


def _exports(folder: Path, disk: Path, archive: Path) -> dict[str, Callable[[], float]]:
    kvmctl, work = Kvmctl(folder / "state"), folder / "work"
    work.mkdir(exist_ok=True)
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
        taken = once(kvmctl.command("import", str(archive), "--name", copy, "--pool", f"default={NAME}"), kvmctl.env)
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
