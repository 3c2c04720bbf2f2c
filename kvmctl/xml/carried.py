"""What of a guest lies in files of its host: its drives, kernel, initial RAM disk."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree.ElementTree import Element

from kvmctl.xml import metadata, tree


@dataclass(frozen=True, slots=True)
class Drive:
    """A drive with an image. `path` is None where the image is a `volume` of a `pool` that libvirt looks up.

    `kind` is `disk`, `media` (what is never written to) or `seed`; `form` the image's format.
    """

    target: str
    kind: str
    form: str
    path: str | None = None
    pool: str | None = None
    volume: str | None = None


@dataclass(frozen=True, slots=True)
class Carried:
    """The files of a guest; `beyond` names what an archive of it cannot hold, as a reader would call it."""

    drives: tuple[Drive, ...]
    kernel: str | None
    initrd: str | None
    beyond: tuple[str, ...]
    tpm: str | None = None
    """The version of its emulated TPM, whose state its host keeps."""


def carried(xml: str) -> Carried:
    """The files of the guest with this definition. Raises UsageError where it is no domain's XML."""
    root = tree.read(xml)
    cloud = metadata.of(root).cloud_init
    drives, beyond = [], []
    for disk in root.iterfind("devices/disk"):
        found = _drive(disk, cloud.seed if cloud else None)
        if isinstance(found, str):
            beyond.append(found)
        elif found is not None:
            drives.append(found)
    tpm = root.find("devices/tpm/backend[@type='emulator']")
    if tpm is not None and tpm.find("encryption") is not None:
        beyond.append("its TPM, which a secret of this host encrypts")
    return Carried(
        tuple(drives),
        tree.text(root, "os/kernel"),
        tree.text(root, "os/initrd"),
        tuple(beyond),
        None if tpm is None else tpm.get("version", "2.0"),
    )


def _drive(disk: Element, seed: str | None) -> Drive | str | None:
    source, target, driver = disk.find("source"), disk.find("target"), disk.find("driver")
    name = "" if target is None else target.get("dev", "")
    if source is None:
        return None
    kind = disk.get("type", "file")
    if kind not in ("file", "block", "volume"):
        return f"drive {name}, which is on a {kind}"
    if disk.find("encryption") is not None or source.find("encryption") is not None:
        return f"drive {name}, which is encrypted"
    path = source.get("file") or source.get("dev")
    if not path and not source.get("volume"):
        return None
    form = "raw" if driver is None else driver.get("type", "raw")
    media = disk.get("device", "disk") in ("cdrom", "floppy")
    return Drive(
        target=name,
        kind="seed" if media and path and path == seed else "media" if media else "disk",
        form=form,
        path=path,
        pool=source.get("pool"),
        volume=source.get("volume"),
    )
