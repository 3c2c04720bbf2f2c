"""CPU models that several hosts have in common, and giving one to a guest."""

from __future__ import annotations

import pytest

from kvmctl.xml import baseline, tree

pytestmark = pytest.mark.unit

CPU = (
    "<cpu mode='custom' match='exact'><model fallback='forbid'>EPYC</model><vendor>AMD</vendor>"
    "<feature policy='require' name='erms'/><feature policy='disable' name='svm'/></cpu>"
)
CAPABILITIES = (
    "<domainCapabilities><cpu><mode name='host-passthrough' supported='yes'/>"
    "<mode name='host-model' supported='yes'><model fallback='forbid'>EPYC</model>"
    "<feature policy='require' name='erms'/></mode></cpu></domainCapabilities>"
)
GUEST = "<domain type='kvm'>\n  <name>web1</name>\n  <vcpu>2</vcpu>\n  <features><acpi/></features>\n  {}\n</domain>"


def test_what_a_host_has() -> None:
    text = baseline.host_model(CAPABILITIES)
    assert text is not None
    assert baseline.read(text) == baseline.CpuModel("EPYC", ("erms",), ())
    assert baseline.host_model(CAPABILITIES.replace("host-model' supported='yes", "host-model' supported='no")) is None
    assert baseline.host_model("<domainCapabilities/>") is None


def test_read() -> None:
    assert baseline.read(CPU) == baseline.CpuModel("EPYC", ("erms",), ("svm",))


@pytest.mark.parametrize("before", ["", "<cpu mode='host-passthrough'/>", "<cpu><model>Skylake-Client</model></cpu>"])
def test_a_guest_gets_it_once(before: str) -> None:
    after = baseline.with_cpu(GUEST.format(before), CPU)
    assert baseline.read(_cpu(after)) == baseline.read(CPU)
    assert [child.tag for child in tree.read(after)] == ["name", "vcpu", "features", "cpu"]
    assert baseline.with_cpu(after, CPU) == after


def test_how_vcpus_are_arranged_stays() -> None:
    topology = "<topology sockets='1' dies='1' cores='2' threads='1'/>"
    after = baseline.with_cpu(GUEST.format(f"<cpu mode='host-model'>{topology}</cpu>"), CPU)
    assert tree.read(after).find("cpu/topology") is not None
    assert baseline.with_cpu(after, CPU) == after


def test_defaults_that_libvirt_writes_make_no_difference() -> None:
    stored = CPU.replace("match='exact'", "match='exact' check='partial'").replace(" fallback='forbid'", "")
    text = GUEST.format(stored)
    assert baseline.with_cpu(text, CPU) == text
    other = GUEST.format(stored.replace("svm", "vmx"))
    assert baseline.with_cpu(other, CPU) != other


def _cpu(domain_xml: str) -> str:
    from xml.etree import ElementTree

    cpu = tree.read(domain_xml).find("cpu")
    assert cpu is not None
    return ElementTree.tostring(cpu, encoding="unicode")
