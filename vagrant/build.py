#!/usr/bin/env python3
"""Builds the box of the nested host, from this machine's own package sources: run it as root before `vagrant up`.

The image is that of the tests, in the same cache. Beside it come what Vagrant wants of a box, and what the Vagrantfile
has to know: the version of the box, whether Linux runs under KVM here, and how many processors are sound without it.
"""

import hashlib
import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kvmctl.bootstrap import environment, microguest, packages, setup
from kvmctl.bootstrap.nested import host, image
from kvmctl.bootstrap.nested.image import Image
from kvmctl.bootstrap.progress import run, say, step
from kvmctl.host import accelerator
from kvmctl.host.files import write_atomic
from kvmctl.model.errors import KvmctlError

NAME = "kvmctl/nested"
PARTS = ("metadata.json", "box.img")


def build() -> Path:
    """The folder of the box, made where it is not there yet. Raises KvmctlError."""
    setup.check_root()
    if missing := packages.lacking(packages.NESTED):
        packages.install(missing)
    environment.ensure()
    found = image.ensure()
    microguest.point(found.folder.parent / "current", found.folder)
    box = found.folder / "box"
    if not (box / "box.json").exists():
        with step("Packing the box"), tempfile.TemporaryDirectory(dir=found.folder, prefix=".packing-") as scratch:
            _pack(found, Path(scratch))
            shutil.rmtree(box, ignore_errors=True)
            Path(scratch).chmod(0o755)
            shutil.copytree(scratch, box)
    _tell(box)
    return box


def _pack(found: Image, folder: Path) -> None:
    size = json.loads(run(["qemu-img", "info", "--output=json", str(found.disk)]))["virtual-size"]
    metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": size >> 30}
    write_atomic(folder / "metadata.json", json.dumps(metadata), 0o644)
    packed = folder / "nested.box"
    with tarfile.open(packed, "w") as archive:  # the image is compressed already
        archive.add(folder / "metadata.json", "metadata.json")
        archive.add(found.disk, "box.img")
    with packed.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # Vagrant keeps each version's image in the pool: another image under the same version would not be seen.
    version = f"{int(found.disk.stat().st_mtime)}.0.0"
    provider = {
        "name": "libvirt",
        "url": f"file://{found.folder}/box/{packed.name}",
        "checksum_type": "sha256",
        "checksum": digest,
    }
    text = {"name": NAME, "versions": [{"version": version, "providers": [provider]}]}
    write_atomic(folder / "box.json", json.dumps(text, indent=2), 0o644)


def _tell(box: Path) -> None:
    """Write what depends on this machine, beside the box."""
    guest = microguest.ensure()
    verdict = accelerator.resolve(guest.kernel)
    known = {
        "driver": "kvm" if verdict.name == "kvm" else "qemu",
        "cpus": host.PROCESSORS if verdict.name != "kvm" else 2,
    }
    write_atomic(box / "machine.json", json.dumps(known), 0o644)


def main() -> int:
    """Build the box; 0, or the exit code of what went wrong."""
    try:
        say(f"the box is in {build()}; now: vagrant up")
    except KvmctlError as error:
        say(f"error: {error.message}")
        if error.hint:
            say(f"  {error.hint}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
