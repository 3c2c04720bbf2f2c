"""What a hypervisor can do, from libvirt's capabilities."""

from xml.etree.ElementTree import Element

from kvmctl.model.errors import UsageError
from kvmctl.model.platform import CPU_MODES, Firmware, Platform
from kvmctl.model.spec import ACCELERATORS
from kvmctl.xml import tree


def accelerators(capabilities_xml: str) -> tuple[str, ...]:
    """How guests of the host's own architecture can run: `kvm`, `tcg`, best first, or the domain type of a
    hypervisor that knows neither (`test`, `lxc`)."""
    types = _virt_types(_native_arch(tree.read(capabilities_xml, "capabilities")))
    return tuple(ACCELERATORS.get(virt_type, virt_type) for virt_type in types)


def parse_platform(capabilities_xml: str, domain_capabilities_xml: str | None) -> Platform:
    """What a guest can have.

    The domain capabilities say for which architecture, accelerator and emulator; without them (the test driver
    has none) it is the host's own architecture and its best accelerator, and much stays unknown.
    Raises UsageError where either is not the XML that it should be, or speaks of no guests.
    """
    root = tree.read(capabilities_xml, "capabilities")
    if domain_capabilities_xml is None:
        native = _native_arch(root)
        virt_type = _virt_types(native)[0]
        machines, most = _machines(native, virt_type)
        return Platform(
            arch=native.get("name", ""),
            virt_type=virt_type,
            os_type=_os_type(root, native),
            emulator=native.findtext("emulator"),
            machines=machines,
            vcpus_max=most,
        )
    return _platform(root, tree.read(domain_capabilities_xml, "domainCapabilities"))


def _platform(root: Element, domain: Element) -> Platform:
    name, virt_type = domain.findtext("arch", ""), domain.findtext("domain", "")
    arch = next((arch for arch in root.iterfind("guest/arch") if arch.get("name") == name), None)
    machines, most = ((), None) if arch is None else _machines(arch, virt_type)
    vcpu = domain.find("vcpu")
    cpu = domain.find("cpu")
    return Platform(
        arch=name,
        virt_type=virt_type,
        os_type="hvm" if arch is None else _os_type(root, arch),
        emulator=domain.findtext("path"),
        machines=machines,
        cpu_modes=None if cpu is None else _cpu_modes(cpu),
        cpu_models=None
        if cpu is None
        else tuple(model.text or "" for model in cpu.iterfind("mode[@name='custom']/model")),
        firmwares=_firmwares(domain, name),
        graphics=_values(domain, "devices/graphics", "type"),
        rng=_rng(domain),
        vcpus_max=most if vcpu is None else tree.number(vcpu.get("max")),
    )


def _native_arch(root: Element) -> Element:
    native = root.findtext("host/cpu/arch")
    archs = root.findall("guest/arch")
    own = [arch for arch in archs if arch.get("name") == native]
    if not archs:
        raise UsageError("this hypervisor has no emulator for any guest", "install QEMU for this architecture")
    return (own or archs)[0]


def _virt_types(arch: Element) -> list[str]:
    types = [domain.get("type", "") for domain in arch.iterfind("domain")]
    return sorted(types, key=lambda virt_type: virt_type != "kvm")


def _os_type(root: Element, arch: Element) -> str:
    return next((guest.findtext("os_type", "hvm") for guest in root.iterfind("guest") if arch in list(guest)), "hvm")


def _machines(arch: Element, virt_type: str) -> tuple[tuple[tuple[str, str], ...], int | None]:
    """Names with canonical names, and the most vCPUs of any. An accelerator may have a list of its own."""
    own = arch.findall(f"domain[@type='{virt_type}']/machine") if virt_type.isalnum() else []
    machines = own or arch.findall("machine")
    most = [count for machine in machines if (count := tree.number(machine.get("maxCpus"))) is not None]
    pairs = tuple((machine.text or "", machine.get("canonical") or machine.text or "") for machine in machines)
    return pairs, max(most, default=None)


def _cpu_modes(cpu: Element) -> tuple[str, ...]:
    supported = {mode.get("name") for mode in cpu.iterfind("mode[@supported='yes']")}
    return tuple(mode for mode in CPU_MODES if mode in supported)


def _firmwares(domain: Element, arch: str) -> tuple[Firmware, ...]:
    images = _values(domain, "os", "firmware") or ()
    bios: tuple[Firmware, ...] = ("bios",) if arch in ("x86_64", "i686") else ()
    return (*bios, "uefi") if "efi" in images else bios


def _rng(domain: Element) -> bool:
    return "virtio" in (_values(domain, "devices/rng", "model") or ()) and "random" in (
        _values(domain, "devices/rng", "backendModel") or ()
    )


def _values(domain: Element, path: str, enum: str) -> tuple[str, ...] | None:
    """The values of an enumeration; None where this libvirt does not know it."""
    element = domain.find(path)
    if element is None:
        return None
    if element.get("supported") == "no":
        return ()
    found = element.find(f"enum[@name='{enum}']")
    return None if found is None else tuple(value.text or "" for value in found.iterfind("value"))


def loaders(domain_capabilities_xml: str) -> frozenset[str]:
    """The paths of the firmware images that this host offers guests of that type and machine."""
    root = tree.read(domain_capabilities_xml, "domainCapabilities")
    return frozenset(value.text or "" for value in root.iterfind("os/loader/value")) - {""}
