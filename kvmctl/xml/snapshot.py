"""The XML of snapshots, checkpoints and backup jobs, and what of a guest's definition matters to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from kvmctl.model.guest_disk import GuestDisk, GuestFacts, Kind, Snapshot
from kvmctl.xml import tree

AGENT = "org.qemu.guest_agent.0"
"""The name of the channel that a guest agent answers on."""


def facts(definition: str, live: str | None, name: str, uuid: str, state: str) -> GuestFacts:
    """A guest from its definition; of a running one `live` is the XML it runs with, and that counts."""
    root = tree.read(live or definition)
    disks = tuple(_disks(root))
    kept = {disk.target for disk in disks}
    targets = [element.get("dev", "") for element in root.iterfind("devices/disk/target")]
    loader = root.find("os/loader")
    flash = root.find("os/nvram") is not None or (loader is not None and loader.get("type") == "pflash")
    channels = root.iterfind("devices/channel/target")
    return GuestFacts(
        name=name,
        uuid=uuid,
        state=state,
        disks=disks,
        skipped=tuple(target for target in targets if target not in kept),
        flash=flash or root.find("os[@firmware='efi']") is not None,
        passthrough=any(root.find(f"devices/{one}") is not None for one in ("hostdev", "interface[@type='hostdev']")),
        agent=any(one.get("name") == AGENT and one.get("state") == "connected" for one in channels),
    )


def _disks(root: Element) -> Iterator[GuestDisk]:
    for element in root.iterfind("devices/disk"):
        device, source, target = element.get("device", "disk"), element.find("source"), element.find("target")
        if device not in ("disk", "lun") or source is None or target is None:
            continue
        if element.find("readonly") is not None or element.find("transient") is not None:
            continue
        driver = element.find("driver")
        yield GuestDisk(
            target=target.get("dev", ""),
            path=source.get("file") or source.get("dev"),
            format=(driver.get("type") if driver is not None else None) or "raw",
            block_device=element.get("type") == "block",
        )


def snapshot(xml: str, current: bool) -> Snapshot:
    """What libvirt says of a snapshot. Raises UsageError where it is not one."""
    root = tree.read(xml, "domainsnapshot")
    overlays = tuple(_overlays(root))
    memory = root.find("memory")
    state = tree.text(root, "state") or "unknown"
    taken = memory.get("snapshot") if memory is not None else "no"
    kind: Kind = "external" if overlays or taken == "external" else "internal"
    return Snapshot(
        name=tree.text(root, "name") or "",
        parent=tree.text(root, "parent/name"),
        current=current,
        created=tree.number(root.findtext("creationTime")) or 0,
        state={"shutoff": "stopped", "disk-snapshot": "running"}.get(state, state),
        kind=kind,
        memory=taken != "no",
        description=tree.text(root, "description") or "",
        overlays=overlays,
        frozen=tuple(_frozen(root)),
    )


def _overlays(root: Element) -> Iterator[tuple[str, str]]:
    for disk in root.iterfind("disks/disk[@snapshot='external']"):
        source = disk.find("source")
        if source is not None and (path := source.get("file") or source.get("dev")):
            yield disk.get("name", ""), path


def _frozen(root: Element) -> Iterator[tuple[str, str]]:
    for disk in root.iterfind("domain/devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        if source is not None and target is not None and (path := source.get("file") or source.get("dev")):
            yield target.get("dev", ""), path


def render_snapshot(
    name: str, description: str, memory: bool, overlays: Mapping[str, str] | None, skipped: Sequence[str]
) -> str:
    """The XML of a snapshot to be taken. `overlays` are the new images by target; None is an internal one."""
    root = ElementTree.Element("domainsnapshot")
    _child(root, "name", name)
    if description:
        _child(root, "description", description)
    ElementTree.SubElement(root, "memory", snapshot="internal" if memory else "no")
    disks = ElementTree.SubElement(root, "disks")
    for target in skipped:
        ElementTree.SubElement(disks, "disk", name=target, snapshot="no")
    for target, path in (overlays or {}).items():
        disk = ElementTree.SubElement(disks, "disk", name=target, snapshot="external", type="file")
        ElementTree.SubElement(disk, "driver", type="qcow2")
        ElementTree.SubElement(disk, "source", file=path)
    return ElementTree.tostring(root, encoding="unicode")


def render_backup(files: Mapping[str, str], since: str | None, skipped: Sequence[str]) -> str:
    """The XML of a job that copies disks into qcow2 `files` by target: all, or what changed since a checkpoint."""
    root = ElementTree.Element("domainbackup", mode="push")
    if since:
        _child(root, "incremental", since)
    disks = ElementTree.SubElement(root, "disks")
    for target, path in files.items():
        disk = ElementTree.SubElement(disks, "disk", name=target, backup="yes", type="file")
        ElementTree.SubElement(disk, "driver", type="qcow2")
        ElementTree.SubElement(disk, "target", file=path)
    for target in skipped:
        ElementTree.SubElement(disks, "disk", name=target, backup="no")
    return ElementTree.tostring(root, encoding="unicode")


def render_checkpoint(name: str, targets: Sequence[str], skipped: Sequence[str]) -> str:
    """The XML of a checkpoint: from when on QEMU keeps account of what is written to these disks."""
    root = ElementTree.Element("domaincheckpoint")
    _child(root, "name", name)
    disks = ElementTree.SubElement(root, "disks")
    for target in targets:
        ElementTree.SubElement(disks, "disk", name=target, checkpoint="bitmap")
    for target in skipped:
        ElementTree.SubElement(disks, "disk", name=target, checkpoint="no")
    return ElementTree.tostring(root, encoding="unicode")


def _child(parent: Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text


def with_sources(definition: str, paths: Mapping[str, tuple[str, str]]) -> str:
    """The definition with other images: (path, format) by target. Backing chains are left for libvirt to find."""
    from kvmctl.xml import dom

    root = dom.load(definition)
    for disk in root.iterfind("devices/disk"):
        target = disk.find("target")
        found = paths.get(target.get("dev", "")) if target is not None else None
        if found is None:
            continue
        path, form = found
        disk.set("type", "file")
        dom.drop(disk, "backingStore", "source")
        dom.insert(disk, disk.makeelement("source", {"file": path}))
        dom.child(disk, "driver").set("type", form)
    return dom.dump(root, definition)
