"""CPU models as libvirt writes them: the host's, those that several hosts have in common, and a guest's."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from lxml import etree

from kvmctl.xml import dom, tree


@dataclass(frozen=True, slots=True)
class CpuModel:
    """A model with the features that are required beyond it, or disabled."""

    model: str
    required: tuple[str, ...]
    disabled: tuple[str, ...]


def host_model(domain_capabilities_xml: str) -> str | None:
    """The CPU that `host-model` comes to for such guests of a host; None where it has no such mode."""
    mode = tree.read(domain_capabilities_xml, "domainCapabilities").find("cpu/mode[@name='host-model']")
    if mode is None or mode.get("supported") != "yes" or mode.find("model") is None:
        return None
    cpu = Element("cpu", {"mode": "custom", "match": "exact"})
    cpu.extend(mode)
    return ElementTree.tostring(cpu, encoding="unicode")


def read(cpu_xml: str) -> CpuModel:
    """The CPU of an XML that libvirt wrote."""
    root = tree.read(cpu_xml, "cpu")
    policies: dict[str, list[str]] = {"require": [], "disable": []}
    for feature in root.iterfind("feature"):
        policies.setdefault(feature.get("policy", "require"), []).append(feature.get("name", ""))
    return CpuModel(root.findtext("model", ""), tuple(policies["require"]), tuple(policies["disable"]))


def with_cpu(domain_xml: str, cpu_xml: str) -> str:
    """The definition with that CPU; how its vCPUs are arranged stays as it is."""
    root = dom.load(domain_xml)
    wanted = dom.load(cpu_xml)
    before = root.find("cpu")
    if before is not None:
        for child in before:
            if child.tag in ("topology", "numa", "cache", "maxphysaddr"):
                wanted.append(deepcopy(child))
        if _same(before, wanted):
            return domain_xml
        dom.remove(before)
    dom.insert(root, wanted)
    return dom.dump(root, domain_xml)


def _same(one: etree._Element, other: etree._Element) -> bool:
    return _key(one) == _key(other)


def _key(element: etree._Element) -> object:
    children = sorted((_key(child) for child in element if isinstance(child.tag, str)), key=repr)
    # Defaults that libvirt writes into what it stores.
    said = {key: value for key, value in element.attrib.items() if key not in ("check", "match", "fallback")}
    return element.tag, sorted(said.items()), (element.text or "").strip(), children
