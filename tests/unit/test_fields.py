import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmctl.model.errors import UsageError
from kvmctl.model.fields import CLOUD_INIT, DISK, FIELDS, NIC, Context, get, parse, put, set_fields
from kvmctl.model.rules import check
from kvmctl.model.spec import (
    BootSpec,
    CloudInitSpec,
    ConsoleSpec,
    CpuSpec,
    DiskSpec,
    GuestSpec,
    MemorySpec,
    NicSpec,
    VncSpec,
)
from kvmctl.model.units import GIB, MIB
from tests.strategies import guest_specs

pytestmark = pytest.mark.unit

HOST = Context(base_mhz=2000.0)
WEB = GuestSpec("web1")


@pytest.mark.parametrize(
    ("key", "text", "value", "shown"),
    [
        ("cpu.count", "4", 4, 4),
        ("cpu.shares", "2000", 2000, 2000),
        ("cpu.shares", "1000000", 1_000_000, 1_000_000),
        ("cpu.shares", "high", "high", "high"),
        ("cpu.limit", "150%", 1.5, 1.5),
        ("cpu.limit", "0.01", 0.01, 0.01),
        ("cpu.limit", "2", 2.0, 2),
        ("cpu.limit", "2.4GHz", 1.2, 1.2),
        ("cpu.limit", "unlimited", math.inf, "unlimited"),
        ("cpu.reservation", "0", 0.0, 0),
        ("cpu.reservation", "700MHz", 0.35, 0.35),
        ("cpu.reservation", "1000.5MHz", 0.5, 0.5),
        ("cpu.pin", "3,0-1", "0-1,3", "0-1,3"),
        ("cpu.pin", "none", "", "none"),
        ("cpu.pin", "", "", "none"),
        ("cpu.emulator-pin", "3,0-1", "0-1,3", "0-1,3"),
        ("cpu.emulator-pin", "none", "", "none"),
        ("rebalance", "off", False, False),
        ("cpu.model", "host-passthrough", "host-passthrough", "host-passthrough"),
        ("memory.size", "1GiB", GIB, "1GiB"),
        ("memory.size", "1GB", 954 * MIB, "954MiB"),
        ("memory.size", "16385KiB", 17 * MIB, "17MiB"),
        ("memory.reservation", "0MiB", 0, "0MiB"),
        ("memory.shares", "low", "low", "low"),
        ("memory.sharing", "yes", True, True),
        ("memory.swap", "OFF", False, False),
        ("memory.hugepages", "true", 2 * MIB, "2MiB"),
        ("memory.hugepages", "1GiB", GIB, "1GiB"),
        ("memory.hugepages", "false", 0, False),
        ("boot.kernel", "/boot/vmlinuz", "/boot/vmlinuz", "/boot/vmlinuz"),
        ("boot.cmdline", "console=ttyS0 quiet", "console=ttyS0 quiet", "console=ttyS0 quiet"),
        ("boot.cmdline", "", "", ""),
        ("boot.order", "disk,network", ("disk", "network"), ["disk", "network"]),
        ("boot.machine", "pc-q35-7.2", "pc-q35-7.2", "pc-q35-7.2"),
        ("description", "zwei\n\tZeilen: ü <b>&\"' 😀", "zwei\n\tZeilen: ü <b>&\"' 😀", "zwei\n\tZeilen: ü <b>&\"' 😀"),
        ("vnc.listen", "::0001", "::1", "::1"),
        ("vnc.port", "auto", 0, "auto"),
        ("vnc.port", "5901", 5901, 5901),
        ("labels.role", "web", "web", None),
    ],
)
def test_values(key: str, text: str, value: object, shown: object) -> None:
    assert parse(key, text, HOST) == value
    if key in FIELDS:
        assert FIELDS[key].show(value) == shown


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("cpu.count", "0", "from 1 to 4096"),
        ("cpu.count", "two", "whole number"),
        ("cpu.count", "２", "whole number"),
        ("cpu.count", "9" * 5000, "whole number"),
        ("cpu.shares", "0", "from 1 to 1000000"),
        ("cpu.shares", "-5", "from 1 to 1000000"),
        ("cpu.shares", "1.5", "from 1 to 1000000"),
        ("cpu.shares", "1000001", "from 1 to 1000000"),
        ("cpu.shares", "normel", "low, normal or high"),
        ("memory.shares", "0", "from 1 to 1000000"),
        ("cpu.limit", "0", "no quota below 1 ms in a period of 100 ms"),
        ("cpu.limit", "0.009", "the least is 0.01 cores"),
        ("cpu.limit", "-1", "not an amount of CPU"),
        ("cpu.limit", "4097", "the most is 4096"),
        ("cpu.limit", "infinity", "not an amount of CPU"),
        ("cpu.reservation", "-0.5", "not an amount of CPU"),
        ("cpu.reservation", "0.0001", "at least 0.001|least amount is 0.001"),
        ("cpu.reservation", "unlimited", "not an amount of CPU"),
        ("cpu.pin", "3-1", "backwards"),
        ("cpu.emulator-pin", "a", "not a set of CPUs"),
        ("cpu.emulator_pin", "1", "did you mean cpu.emulator-pin"),
        ("rebalance", "never", "not true or false"),
        ("cpu.model", "a b", "letters, digits"),
        ("memory.size", "1.5G", "whole number"),
        ("memory.size", "4Gi", "unknown unit"),
        ("memory.size", "0MiB", "the least is 16MiB"),
        ("memory.size", "15MiB", "the least is 16MiB"),
        ("memory.sharing", "True ", "not true or false"),
        ("memory.sharing", "tRUE", "not true or false"),
        ("memory.sharing", "y", "not true or false"),
        ("memory.sharing", "1", "not true or false"),
        ("memory.hugepages", "4KiB", "2MiB or 1GiB"),
        ("boot.kernel", "vmlinuz", "absolute path"),
        ("boot.kernel", "/boot/a\nb", r"U\+000A"),
        ("boot.kernel", "/" * 5000, "4095 bytes"),
        ("boot.order", "disk,disk", "twice"),
        ("boot.order", "floppy", "known are disk, cdrom, network"),
        ("boot.firmware", "efi", "did you mean uefi"),
        ("boot.machine", "q35;reboot", "letters, digits"),
        ("boot.cmdline", "a\0b", r"U\+0000"),
        ("boot.cmdline", "a\x1bb", r"U\+001B"),
        ("boot.cmdline", "a\rb", r"U\+000D"),
        ("boot.cmdline", "a\x85b", r"U\+0085"),
        ("boot.cmdline", "a\uffffb", r"U\+FFFF"),
        ("boot.cmdline", "a\udc80b", r"U\+DC80"),
        ("description", "é" * 4097, "8194 bytes"),
        ("vnc.listen", "localhost", "not an IP address"),
        ("vnc.listen", "fe80::1%eth0", "not an IP address"),
        ("vnc.listen", "127.0.0.１", "not an IP address"),
        ("vnc.port", "80", "5900 to 65535"),
        ("vnc.port", "65536", "5900 to 65535"),
        ("accelerator", "KVM", "did you mean kvm"),
        ("state", "off", "known are running, paused, stopped"),
        ("console.log", "log", "absolute path"),
        ("labels.Role", "x", "not the key of a label"),
        ("labels.", "x", "not the key of a label"),
        ("labels." + "a" * 64, "x", "63 characters"),
        ("labels.role", "a\nb", r"U\+000A"),
        ("labels.role", "x" * 256, "255 bytes"),
        ("cpu.share", "1", "did you mean cpu.shares"),
        ("shares", "1", "did you mean cpu.shares"),
        ("memory", "1GiB", "this is not one field: write one of memory.size, memory.max, memory.reservation"),
        ("labels", "a", "write labels.KEY"),
        ("zzz", "1", "known are description, accelerator"),
        ("name", "x", "cannot be renamed"),
        ("disks", "x", "write disks.vda.iops"),
        ("nics.0.mac", "x", "the list in the guest's file"),
    ],
)
def test_a_bad_value_is_refused_with_the_reason(key: str, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse(key, text, HOST)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        (DISK["size"], "10GiB", 10 * GIB),
        (DISK["size"], "10KB", MIB),
        (DISK["base"], "debian12.qcow2", "debian12.qcow2"),
        (DISK["base"], "/srv/debian12.qcow2", "/srv/debian12.qcow2"),
        (DISK["volume"], "win 10.qcow2", "win 10.qcow2"),
        (DISK["target"], "vdaa", "vdaa"),
        (NIC["bridge"], "br-lan.5", "br-lan.5"),
        (NIC["mac"], "52:54:00:AB:cd:EF", "52:54:00:ab:cd:ef"),
        (NIC["model"], "rtl8139", "rtl8139"),
        (CLOUD_INIT["hostname"], "web1.example.org", "web1.example.org"),
        (CLOUD_INIT["ssh-keys"], "/root/.ssh/id.pub", "/root/.ssh/id.pub"),
        (CLOUD_INIT["ssh-keys"], "ssh-rsa AAAAB3Nza== a comment", "ssh-rsa AAAAB3Nza== a comment"),
        (
            CLOUD_INIT["ssh-keys"],
            "sk-ssh-ed25519@openssh.com AAAAGnNr x",
            "sk-ssh-ed25519@openssh.com AAAAGnNr x",
        ),
    ],
)
def test_entries(field: object, text: str, value: object) -> None:
    assert field.parse(text, HOST) == value  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (DISK["size"], "0MiB"),
        (DISK["path"], "disk.qcow2"),
        (DISK["volume"], "../etc/passwd"),
        (DISK["volume"], ".."),
        (DISK["volume"], ""),
        (DISK["volume"], "a\nb"),
        (DISK["volume"], "é" * 128),
        (DISK["pool"], "a/b"),
        (DISK["base"], "sub/base.qcow2"),
        (DISK["target"], "vda1"),
        (DISK["target"], "xvda"),
        (DISK["bus"], "nvme"),
        (NIC["bridge"], "a" * 16),
        (NIC["bridge"], "br 0"),
        (NIC["bridge"], "a/b"),
        (NIC["bridge"], ".."),
        (NIC["bridge"], "br\x1b"),
        (NIC["network"], ""),
        (NIC["mac"], "01:00:5e:00:00:01"),
        (NIC["mac"], "ff:ff:ff:ff:ff:ff"),
        (NIC["mac"], "00:00:00:00:00:00"),
        (NIC["mac"], "52-54-00-12-34-56"),
        (NIC["mac"], "52:54:00:12:34"),
        (NIC["mac"], "52:54:00:12:34:5g"),
        (NIC["model"], "virito"),
        (CLOUD_INIT["hostname"], "-web"),
        (CLOUD_INIT["hostname"], "web_1"),
        (CLOUD_INIT["hostname"], "a..b"),
        (CLOUD_INIT["hostname"], "a" * 64),
        (CLOUD_INIT["user"], "Root"),
        (CLOUD_INIT["user"], "root:x"),
        (CLOUD_INIT["ssh-keys"], "id_ed25519.pub"),
        (CLOUD_INIT["ssh-keys"], "ssh-ed25519 AAAA\nroot: x"),
        (CLOUD_INIT["ssh-keys"], "-----BEGIN OPENSSH PRIVATE KEY-----"),
    ],
)
def test_bad_entries_are_refused(field: object, text: str) -> None:
    with pytest.raises(ValueError, match="'"):
        field.parse(text, HOST)  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", FIELDS)
def test_every_field_has_a_place_in_a_spec(key: str) -> None:
    assert FIELDS[key].key == key
    assert FIELDS[key].help
    assert FIELDS[key].show(None) is None
    assert put(WEB, key, None) == WEB
    marker = "some value"
    changed = put(WEB, key, marker)
    assert get(changed, key) == marker
    assert get(WEB, key) is None


@given(guest_specs())
def test_what_is_shown_is_read_back(spec: GuestSpec) -> None:
    for key, field in FIELDS.items():
        value = get(spec, key)
        if value is None:
            continue
        shown = field.show(value)
        text = ",".join(shown) if isinstance(shown, list) else str(shown)
        assert parse(key, text, HOST) == value


@given(guest_specs(), guest_specs())
@settings(max_examples=30)
def test_put_and_get(spec: GuestSpec, other: GuestSpec) -> None:
    for key in FIELDS:
        value = get(other, key)
        changed = put(spec, key, value)
        if value is not None:
            assert get(changed, key) == value
        assert all(get(changed, k) == get(spec, k) for k in FIELDS if k != key and get(spec, k) is not None)


def test_labels_are_set_one_by_one_and_stay_sorted() -> None:
    spec = set_fields(WEB, {"labels.role": "web", "labels.env": "test", "labels.a/b.c": "x"}, HOST)
    assert spec.labels == (("a/b.c", "x"), ("env", "test"), ("role", "web"))
    assert get(spec, "labels.env") == "test"
    assert set_fields(spec, {"labels.env": "", "labels.gone": ""}, HOST).labels == (("a/b.c", "x"), ("role", "web"))
    assert set_fields(WEB, {"labels.env": ""}, HOST).labels is None


def test_an_unsaid_console_or_display_comes_to_be() -> None:
    spec = set_fields(WEB, {"console.log": "/var/log/web1", "vnc.enabled": "no"}, HOST)
    assert spec.console == ConsoleSpec(enabled=True, log="/var/log/web1")
    assert spec.vnc == VncSpec(enabled=False)
    assert put(spec, "vnc.listen", None) == spec


def test_every_bad_assignment_is_named_at_once() -> None:
    spec = GuestSpec("web1", CpuSpec(count=2, limit=1.0), MemorySpec(size=GIB))
    bad = {"cpu.shares": "0", "memory.max": "512MiB", "cpu.pins": "1", "cpu.reservation": "1.5", "vnc.port": "x" * 99}
    with pytest.raises(UsageError) as caught:
        set_fields(spec, bad, HOST)
    said = caught.value.message.splitlines()
    assert [line.partition(":")[0] for line in said] == [
        "cpu.shares",
        "'cpu.pins'",
        "vnc.port",
        "cpu.reservation",
        "memory.max",
    ]
    assert "web1" in caught.value.hint
    assert all(len(line) < 800 for line in said)


def test_a_value_that_cannot_be_read_brings_no_second_complaint() -> None:
    spec = GuestSpec("web1", CpuSpec(count=1))
    with pytest.raises(UsageError) as caught:
        set_fields(spec, {"cpu.count": "four", "cpu.reservation": "3"}, HOST)
    assert len(caught.value.message.splitlines()) == 1


def test_only_what_is_assigned_is_judged() -> None:
    foreign = GuestSpec("old", memory=MemorySpec(sharing=True, hugepages=2 * MIB), boot=BootSpec(cmdline="quiet"))
    changed = set_fields(foreign, {"cpu.shares": "high", "boot.initrd": "/boot/initrd"}, HOST)
    assert changed == replace(
        foreign, cpu=CpuSpec(shares="high"), boot=BootSpec(cmdline="quiet", initrd="/boot/initrd")
    )


CONTRADICTIONS = [
    (GuestSpec("g", CpuSpec(count=2, max=1)), "cpu.max", "maximum of 1 vCPUs"),
    (GuestSpec("g", CpuSpec(limit=1.0, reservation=1.5)), "cpu.reservation", "above the limit of 1"),
    (GuestSpec("g", CpuSpec(count=1, max=4, reservation=1.5)), "cpu.reservation", "more than 1 vCPUs can use"),
    (GuestSpec("g", memory=MemorySpec(size=GIB, max=512 * MIB)), "memory.max", "less than the 1GiB"),
    (GuestSpec("g", memory=MemorySpec(size=GIB, reservation=2 * GIB)), "memory.reservation", "2GiB is more"),
    (GuestSpec("g", memory=MemorySpec(sharing=True, hugepages=GIB)), "memory.sharing", "cannot be merged"),
    (GuestSpec("g", memory=MemorySpec(swap=True, hugepages=GIB)), "memory.swap", "cannot be swapped"),
    (GuestSpec("g", boot=BootSpec(initrd="/i")), "boot.initrd", "together with boot.kernel"),
    (GuestSpec("g", boot=BootSpec(cmdline="x")), "boot.cmdline", "together with boot.kernel"),
    (GuestSpec("g", boot=BootSpec(kernel="/k", iso="/i")), "boot.iso", "not from both"),
    (GuestSpec("g", disks=(DiskSpec(),)), "disks.0", "needs a path"),
    (GuestSpec("g", disks=(DiskSpec(path="/a", volume="b"),)), "disks.0.volume", "not both"),
    (GuestSpec("g", disks=(DiskSpec(path="/a", size=GIB),)), "disks.0.size", "together with volume"),
    (GuestSpec("g", disks=(DiskSpec(path="/a", base="b"),)), "disks.0.base", "together with volume"),
    (GuestSpec("g", disks=(DiskSpec(path="/a", pool="b"),)), "disks.0.pool", "together with volume"),
    (GuestSpec("g", disks=(DiskSpec(volume="a", base="b", format="raw"),)), "disks.0.format", "has to be qcow2"),
    (GuestSpec("g", disks=(DiskSpec(device="cdrom", format="raw"),)), "disks.0.format", "empty drive"),
    (GuestSpec("g", disks=(DiskSpec(path="/a"), DiskSpec(path="/a"))), "disks.1.path", "that of disk 1"),
    (GuestSpec("g", disks=(DiskSpec(volume="a"), DiskSpec(volume="a"))), "disks.1.volume", "that of disk 1"),
    (
        GuestSpec("g", disks=(DiskSpec(path="/a", target="vda"), DiskSpec(path="/b", target="vda"))),
        "disks.1.target",
        "that of disk 1",
    ),
    (
        GuestSpec("g", boot=BootSpec(machine="pc-q35-7.2"), disks=(DiskSpec(path="/a", bus="ide"),)),
        "disks.0.bus",
        "has no ide",
    ),
    (GuestSpec("g", disks=(DiskSpec(device="cdrom", bus="virtio"),)), "disks.0.bus", "cdrom cannot be on virtio"),
    (GuestSpec("g", disks=(DiskSpec(path="/a", bus="sata", read_only=True),)), "disks.0.read-only", "no read-only"),
    (GuestSpec("g", nics=(NicSpec(),)), "nics.0", "exactly one"),
    (GuestSpec("g", nics=(NicSpec(network="a"), NicSpec(network="a", user=True))), "nics.1", "exactly one"),
    (GuestSpec("g", nics=(NicSpec(user=False),)), "nics.0", "exactly one"),
    (
        GuestSpec("g", nics=(NicSpec(user=True, mac="52:54:00:00:00:01"),) * 2),
        "nics.1.mac",
        "that of nic 1",
    ),
    (GuestSpec("g", cloud_init=CloudInitSpec(user_data="/u", hostname="h")), "cloud-init.hostname", "in there"),
    (GuestSpec("g", cloud_init=CloudInitSpec(user_data="/u", user="h")), "cloud-init.user", "in there"),
    (GuestSpec("g", cloud_init=CloudInitSpec(user_data="/u", ssh_keys=("/k",))), "cloud-init.ssh-keys", "in there"),
]


@pytest.mark.parametrize(("spec", "key", "said"), CONTRADICTIONS)
def test_contradictions(spec: GuestSpec, key: str, said: str) -> None:
    ((found, sentence),) = check(spec)
    assert found == key
    assert said in sentence


@pytest.mark.parametrize(
    "spec",
    [
        GuestSpec("g", CpuSpec(count=2, max=2, limit=2.0, reservation=2.0)),
        GuestSpec("g", CpuSpec(reservation=64.0)),
        GuestSpec("g", CpuSpec(limit=math.inf, reservation=8.0, count=8)),
        GuestSpec("g", memory=MemorySpec(size=GIB, max=GIB, reservation=GIB, hugepages=0, sharing=True)),
        GuestSpec("g", memory=MemorySpec(max=GIB, reservation=2 * GIB, sharing=False, hugepages=GIB)),
        GuestSpec("g", boot=BootSpec(kernel="/k", firmware="uefi")),
        GuestSpec("g", disks=(DiskSpec(device="cdrom"), DiskSpec(device="cdrom"))),
        GuestSpec(
            "g", disks=(DiskSpec(path="/a", format="qcow2"), DiskSpec(volume="a"), DiskSpec(volume="a", pool="p"))
        ),
        GuestSpec("g", boot=BootSpec(machine="pc"), disks=(DiskSpec(path="/a", bus="ide"),)),
        GuestSpec("g", cloud_init=CloudInitSpec(user_data="/u", network_config="/n")),
    ],
)
def test_what_does_not_contradict(spec: GuestSpec) -> None:
    assert check(spec) == []


def test_nothing_is_missing_from_a_spec_that_only_says_a_change() -> None:
    assert check(GuestSpec("g", boot=BootSpec(cmdline="x")), complete=False) == []


@given(st.sampled_from(list(FIELDS)), st.text(max_size=60))
def test_any_text_is_read_or_refused(key: str, text: str) -> None:
    try:
        value = parse(key, text, HOST)
    except ValueError:
        return
    again = FIELDS[key].show(value)
    assert parse(key, ",".join(again) if isinstance(again, list) else str(again), HOST) == value


def test_what_is_said_by_clock_is_told() -> None:
    told: dict[str, float] = {}
    said = Context(base_mhz=2596.0, converted=told.__setitem__)
    assignments = {"cpu.limit": "2400MHz", "cpu.reservation": "0.5", "memory.size": "1GiB"}
    spec = set_fields(WEB, assignments, said)
    assert told == {"2400MHz": 0.924}
    assert (spec.cpu.limit, spec.cpu.reservation) == (0.924, 0.5)
    set_fields(WEB, {"cpu.limit": "1.5 GHz"}, said)
    assert told["1.5 GHz"] == 0.578
    with pytest.raises(UsageError, match="base clock is unknown"):
        set_fields(WEB, {"cpu.limit": "2.4GHz"}, Context(converted=told.__setitem__))
    assert len(told) == 2
