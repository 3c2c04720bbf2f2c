"""The definition of a copy: what belongs to one guest alone is the copy's own, and the rest is as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from lxml.etree import _Element

from kvmctl.xml import dom, identity, metadata
from kvmctl.xml.identity import Identity
from kvmctl.xml.snapshot import with_sources


def seed_of(definition: str) -> tuple[str, str] | None:
    """The path of the cloud-init seed that kvmctl made for the guest, and the drive that has it, if one does."""
    found = metadata.read(definition).cloud_init
    for disk in dom.load(definition).iterfind("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        if found and found.seed and source is not None and target is not None and source.get("file") == found.seed:
            return found.seed, target.get("dev", "")
    return None


def copied(
    definition: str, own: Identity, images: Mapping[str, tuple[str, str]], seed: tuple[str, str] | None
) -> tuple[str, list[str]]:
    """The definition of a copy of a guest, and a sentence for each thing of it that the two still share.

    `images` are the copy's disks, (path, format) by target; `seed` is (old path, new path). Raises UsageError.
    """
    text = with_sources(definition, images)
    root = dom.load(text)
    old = root.findtext("name") or ""
    identity.put(root, own)
    _put_metadata(root, old, own.name, seed)
    if seed:
        for source in root.iterfind("devices/disk/source"):
            if source.get("file") == seed[0]:
                source.set("file", seed[1])
    for node, attribute in _files(root):
        node.set(attribute, renamed(node.get(attribute, ""), old, own.name))
    for graphics in root.iterfind("devices/graphics"):
        _free_port(graphics)
    return dom.dump(root, text), list(_shared(root))


def alone(definition: str, old: str, own: str) -> str:
    """The definition of a guest that was `old` and is `own` now, with what kvmctl says of it as for a copy. Raises
    UsageError where the text is no XML."""
    root = dom.load(definition)
    _put_metadata(root, old, own, None)
    return dom.dump(root, definition)


def _put_metadata(root: _Element, old: str, new: str, seed: tuple[str, str] | None) -> None:
    guest = root.find(metadata.PATH)
    if guest is None:
        return
    # The file of a project says all its guests: the copy is in none, and --prune must not take it for a leftover.
    dom.mark(guest, "project", None)
    cloud = guest.find(f"{{{metadata.NAMESPACE}}}cloud-init")
    if cloud is None:
        return
    if seed and cloud.get("seed") == seed[0]:
        cloud.set("seed", seed[1])
    if cloud.get("hostname") == old:
        cloud.set("hostname", new)


def _files(root: _Element) -> Iterator[tuple[_Element, str]]:
    """What consoles write to: (element, attribute)."""
    for tag in ("serial", "console", "parallel", "channel"):
        for device in root.iterfind(f"devices/{tag}"):
            source, log = device.find("source"), device.find("log")
            if source is not None and device.get("type") == "file" and source.get("path"):
                yield source, "path"
            if log is not None and log.get("file"):
                yield log, "file"


def renamed(path: str, old: str, new: str) -> str:
    """A file of the copy beside the one of the original."""
    file = PurePosixPath(path)
    name = file.name.replace(old, new) if old in file.name else f"{new}-{file.name}"
    return str(file.with_name(name))


def _free_port(graphics: _Element) -> None:
    if graphics.get("port", "-1") not in ("-1", "0"):
        dom.mark(graphics, "port", "-1")
        dom.mark(graphics, "autoport", "yes")
    dom.mark(graphics, "socket", None)


def _shared(root: _Element) -> Iterator[str]:
    if any(root.find(f"devices/{one}") is not None for one in ("hostdev", "interface[@type='hostdev']")):
        yield "both have the same devices of the host, so only one of them can run"
    if root.find("devices/tpm") is not None:
        yield "it begins with an empty TPM: what was sealed by the original's cannot be opened"
    for filesystem in root.iterfind("devices/filesystem/source"):
        if filesystem.get("dir"):
            yield f"both have the folder {filesystem.get('dir')}"
    for disk in root.iterfind("devices/disk"):
        source = disk.find("source")
        if disk.find("shareable") is not None and disk.find("readonly") is not None and source is not None:
            yield f"both have the disk {source.get('file') or source.get('dev')}"
