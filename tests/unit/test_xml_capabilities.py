"""What libvirt says a hypervisor can do."""

import pytest

from kvmctl.model.errors import UsageError
from kvmctl.model.platform import Platform, machine_family, same_machine
from kvmctl.xml.capabilities import accelerators, parse_platform

pytestmark = pytest.mark.unit

ARCH = """
<guest><os_type>hvm</os_type><arch name='{name}'><wordsize>64</wordsize><emulator>/usr/bin/qemu-system-{name}</emulator>
{machines}{types}</arch></guest>"""
PC = """<machine maxCpus='255'>pc-i440fx-7.2</machine><machine canonical='pc-i440fx-7.2' maxCpus='255'>pc</machine>
<machine maxCpus='288'>pc-q35-7.2</machine><machine canonical='pc-q35-7.2' maxCpus='288'>q35</machine>"""
VIRT = "<machine maxCpus='512'>virt-7.2</machine><machine canonical='virt-7.2' maxCpus='512'>virt</machine>"
BOTH = "<domain type='qemu'/><domain type='kvm'/>"


def host(arch: str, *guests: str) -> str:
    return f"<capabilities><host><cpu><arch>{arch}</arch></cpu></host>{''.join(guests)}</capabilities>"


X86 = host(
    "x86_64",
    ARCH.format(name="i686", machines=PC, types="<domain type='qemu'/>"),
    ARCH.format(name="x86_64", machines=PC, types=BOTH),
)
ARM = host("aarch64", ARCH.format(name="aarch64", machines=VIRT, types="<domain type='qemu'/>"))
DOMAIN = """<domainCapabilities><path>/usr/bin/qemu-system-x86_64</path><domain>{type}</domain>
<machine>pc-q35-7.2</machine><arch>{arch}</arch><vcpu max='240'/>
<os supported='yes'><enum name='firmware'>{firmware}</enum></os>
<cpu><mode name='host-passthrough' supported='{passthrough}'/><mode name='maximum' supported='yes'/>
<mode name='custom' supported='yes'><model usable='yes'>qemu64</model><model usable='no'>EPYC</model></mode></cpu>
<devices><graphics supported='no'/>
<rng supported='yes'><enum name='model'><value>virtio</value></enum>
<enum name='backendModel'><value>random</value></enum></rng></devices></domainCapabilities>"""
EFI = "<value>efi</value>"


def platform(capabilities: str = X86, virt_type: str = "qemu", arch: str = "x86_64", firmware: str = EFI) -> Platform:
    passthrough = "yes" if virt_type == "kvm" else "no"
    return parse_platform(
        capabilities, DOMAIN.format(type=virt_type, arch=arch, firmware=firmware, passthrough=passthrough)
    )


def test_accelerators_of_the_hosts_own_architecture() -> None:
    assert accelerators(X86) == ("kvm", "tcg")
    assert accelerators(ARM) == ("tcg",)


def test_tcg_on_a_pc() -> None:
    found = platform()
    assert (found.arch, found.virt_type, found.accelerator) == ("x86_64", "qemu", "tcg")
    assert found.emulator == "/usr/bin/qemu-system-x86_64"
    assert found.default_machine == "pc-q35-7.2"
    assert found.cpu_modes == ("maximum",)
    assert found.cpu_models == ("qemu64", "EPYC")
    assert found.default_cpu_model == "maximum"
    assert found.firmwares == ("bios", "uefi")
    assert found.graphics == ()
    assert found.rng is True
    assert found.vcpus_max == 240


def test_kvm_passes_the_processor_through() -> None:
    assert platform(virt_type="kvm").default_cpu_model == "host-passthrough"


def test_a_host_without_a_uefi_image() -> None:
    assert platform(firmware="").firmwares == ("bios",)


def test_another_architecture() -> None:
    found = platform(ARM, arch="aarch64")
    assert found.default_machine == "virt-7.2"
    assert found.firmwares == ("uefi",)
    assert found.default_firmware == "uefi"
    assert not found.x86


def test_without_domain_capabilities_much_is_unknown() -> None:
    found = parse_platform(X86, None)
    assert (found.arch, found.virt_type, found.vcpus_max) == ("x86_64", "kvm", 288)
    assert (found.cpu_modes, found.cpu_models, found.firmwares, found.rng) == (None, None, None, None)
    assert found.default_cpu_model == "host-passthrough"


def test_a_machine_list_of_the_accelerators_own() -> None:
    own = "<domain type='kvm'><machine canonical='pc-q35-9.9' maxCpus='8'>q35</machine></domain>"
    found = platform(host("x86_64", ARCH.format(name="x86_64", machines=PC, types=own)), virt_type="kvm")
    assert found.default_machine == "pc-q35-9.9"


def test_a_hypervisor_without_guests() -> None:
    with pytest.raises(UsageError, match="no emulator"):
        accelerators(host("x86_64"))


def test_machines_are_asked_for_by_alias_or_version() -> None:
    assert platform().canonical_machine("pc") == "pc-i440fx-7.2"
    assert platform().canonical_machine("pc-q35-7.2") == "pc-q35-7.2"
    with pytest.raises(ValueError, match="pc, q35"):
        platform().canonical_machine("pc-q35-99.0")
    assert parse_platform(X86.replace("machine", "other"), None).canonical_machine("q35") == "q35"


def test_a_guest_keeps_its_version_of_a_machine() -> None:
    assert same_machine("q35", "pc-q35-5.2")
    assert same_machine("pc-q35-5.2", "pc-q35-5.2")
    assert not same_machine("pc-q35-7.2", "pc-q35-5.2")
    assert not same_machine("pc", "pc-q35-5.2")
    assert not same_machine("q35", None)


@pytest.mark.parametrize(
    ("machine", "family"),
    [("q35", "q35"), ("pc-q35-7.2", "q35"), ("pc", "pc"), ("pc-i440fx-2.1", "pc"), ("virt-7.2", "virt"), (None, "")],
)
def test_families(machine: str | None, family: str) -> None:
    assert machine_family(machine) == family


def test_unknown_cpu_models_are_named() -> None:
    platform().check_cpu_model("EPYC")
    with pytest.raises(ValueError, match=r"tcg has no CPU model 'EPIC' here; .*EPYC"):
        platform().check_cpu_model("EPIC")
    with pytest.raises(ValueError, match="tcg has no CPU model 'host-passthrough'"):
        platform().check_cpu_model("host-passthrough")
