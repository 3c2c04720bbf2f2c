"""Which images a definition refers to: of all domains, whoever made them."""

from xml.etree import ElementTree


def images(domain_xml: str) -> frozenset[str]:
    """The paths of all disk images, backing images included; a volume of a pool is `POOL/VOLUME`."""
    found: set[str] = set()
    for disk in ElementTree.fromstring(domain_xml).iterfind("devices/disk"):  # noqa: S314 - libvirt wrote it
        for source in disk.iter("source"):
            volume = f"{source.get('pool')}/{source.get('volume')}" if source.get("volume") else None
            found.update(path for path in (source.get("file"), source.get("dev"), volume) if path)
    return frozenset(found)
