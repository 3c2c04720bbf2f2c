"""Disks and nics of paused guests: modes, ceilings and hot plug, as QEMU and the kernel's traffic control have them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt_qemu
import pytest

from kvmctl.host import traffic
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.xml.parse import parse
from tests.conftest import Kvmctl
from tests.support import Guest

pytestmark = pytest.mark.paused

Make = Callable[..., Guest]
LIVE, STORED = 1, 2


@pytest.fixture
def make(kvmctl: Kvmctl, make_name: Callable[..., str], hypervisor: Hypervisor, tmp_path: Path) -> Make:
    """Applies a guest with these keys."""

    def start(keys: str, state: str = "paused") -> Guest:
        name = make_name()
        file = tmp_path / f"{name}.yaml"
        file.write_text(
            f"guests:\n- name: {name}\n  accelerator: tcg\n  memory: {{size: 64MiB}}\n  state: {state}\n  {keys}\n"
        )
        kvmctl("apply", "-f", file)
        return Guest(hypervisor, name)

    return start


def ask(guest: Guest, command: str) -> Any:
    return json.loads(libvirt_qemu.qemuMonitorCommand(guest.domain, json.dumps({"execute": command}), 0))["return"]


def throttled(guest: Guest, file: str) -> dict[str, int]:
    """What QEMU itself says of the disk with this image."""
    blocks = [one["inserted"] for one in ask(guest, "query-block") if "inserted" in one]
    found: dict[str, int] = next(one for one in blocks if one["file"].endswith(file))
    return found


def files(guest: Guest) -> list[str]:
    return [Path(one["inserted"]["file"]).name for one in ask(guest, "query-block") if "inserted" in one]


def results(ran: Any) -> list[tuple[str, str]]:
    return [(one["field"], one["result"]) for one in ran.json()]


def tc(guest: Guest, *words: str) -> str:
    found = re.search(r"<target dev='(vnet\d+)'/>", domains.live_definition(guest.domain))
    assert found
    return subprocess.run(
        ["tc", words[0], "show", "dev", found[1], *words[1:]], capture_output=True, text=True, check=False
    ).stdout


def test_a_mode_is_real_hardware_and_shown(kvmctl: Kvmctl, make: Make, pool: tuple[str, Path]) -> None:
    disk = f"pool: {pool[0]}, size: 1MiB"
    guest = make(
        f"disks: [{{volume: e.raw, {disk}, mode: emulated}}, {{volume: p.raw, {disk}, mode: paravirtual}}]\n"
        "  nics: [{user: true, mode: emulated}, {user: true, mode: paravirtual}]"
    )
    command = Path(f"/proc/{guest.pid}/cmdline").read_text()
    for word in ('"driver":"ide-hd"', '"driver":"virtio-blk-pci","iothread":"iothread1"', '"driver":"e1000e"'):
        assert word in command
    found = kvmctl("-o", "json", "show", guest.name).json()["devices"]
    assert [(one["device"], one["mode"], one["model"]) for one in found] == [
        ("disk", "emulated", "sata"), ("disk", "paravirtual", "virtio"),
        ("nic", "emulated", "e1000e"), ("nic", "paravirtual", "virtio"),
    ]  # fmt: skip
    assert "emulated:         disk sda (sata), nic " in kvmctl("show", guest.name).out


def test_another_mode_is_stored_for_the_next_start(kvmctl: Kvmctl, make: Make, pool: tuple[str, Path]) -> None:
    guest = make(f"disks: [{{volume: d.raw, pool: {pool[0]}, size: 1MiB}}]")
    ran = kvmctl("-o", "json", "set", guest.name, "disks.vda.mode=emulated")
    assert results(ran) == [("disks.vda.bus", "pending restart")]
    (disk,) = parse(domains.definition(guest.domain)).spec.disks or ()
    assert (disk.bus, disk.target, disk.iothread) == ("sata", "sda", None)
    assert results(kvmctl("-o", "json", "set", guest.name, "disks.sda.mode=emulated")) == []


def test_ceilings_of_a_disk_are_qemus_from_the_start(kvmctl: Kvmctl, make: Make, pool: tuple[str, Path]) -> None:
    guest = make(
        f"disks: [{{volume: d.raw, pool: {pool[0]}, size: 1MiB, iops: 500, iops-burst: 900, burst-seconds: 7, "
        "read-bandwidth: 2MiB}]"
    )
    found = throttled(guest, "d.raw")
    assert [found[key] for key in ("iops", "iops_max", "iops_max_length", "bps_rd")] == [500, 900, 7, 2 << 20]


def test_ceilings_of_a_disk_are_changed_while_it_runs(kvmctl: Kvmctl, make: Make, pool: tuple[str, Path]) -> None:
    guest = make(f"disks: [{{volume: d.raw, pool: {pool[0]}, size: 1MiB, iops: 500}}]")
    said = kvmctl("-o", "json", "set", guest.name, "disks.vda.iops=800", "disks.vda.write-bandwidth=3MB/s")
    assert results(said) == [("disks.vda.iops", "changed"), ("disks.vda.write-bandwidth", "changed")]
    found = throttled(guest, "d.raw")
    assert (found["iops"], found["bps_wr"]) == (800, 3_000_000)
    stored = guest.domain.blockIoTune("vda", STORED)
    assert (stored["total_iops_sec"], stored["write_bytes_sec"]) == (800, 3_000_000)
    ran = kvmctl("-o", "json", "set", guest.name, "disks.vda.read-iops=100", "disks.vda.read-iops-burst=200")
    assert ("disks.vda.iops", "changed") in results(ran)
    found = throttled(guest, "d.raw")
    assert [found.get(key) for key in ("iops", "iops_rd", "iops_rd_max")] == [0, 100, 200]
    kvmctl("set", guest.name, *(f"disks.vda.{key}=unlimited" for key in ("read-iops", "write-bandwidth")))
    found = throttled(guest, "d.raw")
    assert [found.get(key) for key in ("iops_rd", "bps_wr")] == [0, 0]
    assert "iotune" not in domains.definition(guest.domain)


def test_what_virsh_changed_is_a_difference_and_put_back(
    kvmctl: Kvmctl, make: Make, pool: tuple[str, Path], tmp_path: Path
) -> None:
    guest = make(f"disks: [{{volume: d.raw, pool: {pool[0]}, size: 1MiB, iops: 500}}]")
    guest.domain.setBlockIoTune("vda", {"total_iops_sec": 9}, LIVE)
    file = tmp_path / f"{guest.name}.yaml"
    (change,) = kvmctl("-o", "json", "diff", "-f", file, code=10).json()
    assert (change["field"], change["old"], change["new"]) == ("disks.vda.iops", 9, 500)
    kvmctl("apply", "-f", file)
    assert throttled(guest, "d.raw")["iops"] == 500
    kvmctl("diff", "-f", file)


@pytest.mark.parametrize("way", ["in", "out"])
def test_a_ceiling_that_the_kernel_has_no_means_for_is_refused(kvmctl: Kvmctl, make: Make, way: str) -> None:
    why = traffic.missing(way)
    if not why:
        pytest.skip("this kernel has them all")
    mac = "52:54:00:0d:0e:0f"
    guest = make(f"nics: [{{network: default, mac: '{mac}'}}]")
    before = domains.definition(guest.domain)
    ran = kvmctl("set", guest.name, f"nics.{mac}.bandwidth.{way}=1Mbit", code=5)
    assert why in ran.err
    assert f"modprobe -a {traffic.MODULES[way]}" in ran.err
    assert domains.definition(guest.domain) == before


def test_ceilings_of_a_nic_are_the_kernels(kvmctl: Kvmctl, make: Make) -> None:
    if why := traffic.missing("in") or traffic.missing("out"):
        pytest.skip(f"this kernel cannot limit a nic: {why}")
    mac = "52:54:00:0d:0e:0f"
    guest = make(
        f"nics: [{{network: default, mac: '{mac}', "
        "bandwidth: {in: 8Mbit, in-peak: 16Mbit, in-burst: 64KiB, out: 4Mbit}}]"
    )
    assert "rate 8Mbit ceil 16Mbit" in tc(guest, "class")
    assert "rate 4Mbit" in tc(guest, "filter", "parent", "ffff:")
    ran = kvmctl("-o", "json", "set", guest.name, f"nics.{mac}.bandwidth.in=12Mbit", f"nics.{mac}.bandwidth.out=2Mbit")
    assert results(ran) == [(f"nics.{mac}.bandwidth.in", "changed"), (f"nics.{mac}.bandwidth.out", "changed")]
    assert "rate 12Mbit ceil 16Mbit" in tc(guest, "class")
    assert "rate 2Mbit" in tc(guest, "filter", "parent", "ffff:")
    off = [f"nics.{mac}.bandwidth.{way}=unlimited" for way in ("in", "in-peak", "in-burst", "out")]
    ran = kvmctl("-o", "json", "set", guest.name, *off)
    assert {result for _field, result in results(ran)} == {"changed"}
    assert "rate" not in tc(guest, "class") + tc(guest, "filter", "parent", "ffff:")
    assert "bandwidth" not in domains.definition(guest.domain)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("disks.vdz.iops=1", "has no vdz among its disks"),
        ("disks.vda.iopz=1", "no such field"),
        ("disks.vda.path=/a", "attach and detach"),
        ("disks.vda=1", "disks.vda.iops"),
        ("disks.vda.iops=x", "not a number of operations"),
        ("disks.vda.iops-burst=5", "beyond iops"),
        ("disks.vda.bus=ide", "has no ide"),
    ],
)
def test_bad_fields_of_a_device_change_nothing(
    kvmctl: Kvmctl, make: Make, pool: tuple[str, Path], field: str, said: str
) -> None:
    guest = make(f"disks: [{{volume: d.raw, pool: {pool[0]}, size: 1MiB}}]", "stopped")
    before = domains.definition(guest.domain)
    assert said in kvmctl("set", guest.name, field, code=3 if "vdz" in field else 2).err
    assert domains.definition(guest.domain) == before


def test_a_disk_is_plugged_in_and_stays(kvmctl: Kvmctl, make: Make, pool: tuple[str, Path]) -> None:
    guest = make(f"disks: [{{volume: a.raw, pool: {pool[0]}, size: 1MiB}}]")
    wish = ("attach", guest.name, "--disk", "b.qcow2", f"pool={pool[0]}", "size=2MiB", "iops=300")
    shown = kvmctl("-o", "json", *wish, "--dry-run", code=10).json()
    assert [(one["field"], one["how"]) for one in shown] == [("volumes.b.qcow2", "live"), ("disks.vdb", "live")]
    assert not (pool[1] / "b.qcow2").exists()
    ran = kvmctl("-o", "json", *wish)
    assert {result for _field, result in results(ran)} == {"changed"}
    assert throttled(guest, "b.qcow2")["iops"] == 300
    assert [disk.target for disk in parse(domains.definition(guest.domain)).spec.disks or ()] == ["vda", "vdb"]
    assert "has a vdb already" in kvmctl("attach", guest.name, "--disk", "c.raw", "target=vdb", code=4).err
    again = kvmctl("attach", guest.name, "--disk", "b.qcow2", f"pool={pool[0]}", code=4)
    assert "already, as vdb" in again.err
    assert "is paused" in kvmctl("detach", guest.name, "vdb", code=4).err
    for number in range(3):
        kvmctl("attach", guest.name, "--disk", f"m{number}.raw", f"pool={pool[0]}", "size=1MiB")
    assert len(files(guest)) == 5


def test_emulated_disks_wait_for_the_next_start(kvmctl: Kvmctl, make: Make, pool: tuple[str, Path]) -> None:
    guest = make("rng: true")
    ran = kvmctl("-o", "json", "attach", guest.name, "--disk", "b.raw", f"pool={pool[0]}", "size=1MiB", "mode=emulated")
    assert results(ran)[-1][1] == "pending restart"
    assert files(guest) == []
    assert results(kvmctl("-o", "json", "detach", guest.name, "sda"))[-1][1] == "changed"
    assert (pool[1] / "b.raw").exists()


def test_a_nic_is_plugged_in(kvmctl: Kvmctl, make: Make) -> None:
    guest = make("rng: true")
    mac = "52:54:00:aa:bb:cc"
    kvmctl("attach", guest.name, "--user-nic", f"mac={mac}", "mode=emulated")
    assert mac in domains.live_definition(guest.domain)
    (nic,) = parse(domains.definition(guest.domain)).spec.nics or ()
    assert (nic.mac, nic.model, nic.user) == (mac, "e1000e", True)
    assert "has a nic" in kvmctl("attach", guest.name, "--user-nic", f"mac={mac}", code=4).err


def test_media_are_changed_and_ejected(kvmctl: Kvmctl, make: Make, pool: tuple[str, Path]) -> None:
    one, two = pool[1] / "one.iso", pool[1] / "two.iso"
    for path in (one, two):
        path.write_bytes(bytes(1 << 20))
    guest = make("disks: [{device: cdrom}]")
    assert files(guest) == []
    kvmctl("attach", guest.name, "--iso", one)
    assert files(guest) == ["one.iso"]
    ran = kvmctl("-o", "json", "attach", guest.name, "--iso", two)
    assert results(ran) == [("disks.sda.path", "changed")]
    assert files(guest) == ["two.iso"]
    assert results(kvmctl("-o", "json", "attach", guest.name, "--iso", two)) == []
    assert results(kvmctl("-o", "json", "detach", guest.name, "sda"))[0][1] == "changed"
    assert files(guest) == []
    (drive,) = parse(domains.definition(guest.domain)).spec.disks or ()
    assert (drive.path, drive.device) == (None, "cdrom")
    assert two.exists()
    assert "has no CD-ROM drive sdb" in kvmctl("attach", guest.name, "--iso", one, "--target", "sdb", code=3).err
    assert "does not exist" in kvmctl("attach", guest.name, "--iso", pool[1] / "none.iso", code=3).err


def test_the_iso_that_a_guest_started_from_is_ejected(kvmctl: Kvmctl, make: Make, pool: tuple[str, Path]) -> None:
    (pool[1] / "boot.iso").write_bytes(bytes(1 << 20))
    guest = make(f"boot: {{iso: {pool[1]}/boot.iso}}")
    assert files(guest) == ["boot.iso"]
    assert results(kvmctl("-o", "json", "detach", guest.name, "sda")) == [("boot.iso", "changed")]
    assert files(guest) == []
    assert parse(domains.definition(guest.domain)).spec.boot.iso is None


def test_a_stopped_guest_is_changed_for_its_next_start(kvmctl: Kvmctl, make: Make, pool: tuple[str, Path]) -> None:
    guest = make(f"disks: [{{volume: a.raw, pool: {pool[0]}, size: 1MiB}}]", "stopped")
    kvmctl("attach", guest.name, "--disk", "b.raw", f"pool={pool[0]}", "size=1MiB")
    kvmctl("attach", guest.name, "--user-nic")
    spec = parse(domains.definition(guest.domain)).spec
    assert [disk.target for disk in spec.disks or ()] == ["vda", "vdb"]
    assert spec.nics is not None
    (nic,) = spec.nics
    assert "pending" in kvmctl("detach", guest.name, "vdb", "--dry-run", code=10).err
    for target in ("vdb", str(nic.mac).upper()):
        assert results(kvmctl("-o", "json", "detach", guest.name, target))[0][1] == "changed"
    spec = parse(domains.definition(guest.domain)).spec
    assert ([disk.target for disk in spec.disks or ()], spec.nics) == (["vda"], ())
    assert (pool[1] / "b.raw").exists()
    assert "has no vdb (it has: vda)" in kvmctl("detach", guest.name, "vdb", code=3).err


def test_the_weight_of_disk_io_is_the_kernels(kvmctl: Kvmctl, make: Make) -> None:
    guest = make("io: {weight: 300}")

    def weight() -> int:
        lines = Path(f"/proc/{guest.pid}/cgroup").read_text().splitlines()
        path = next(line.split(":")[2] for line in lines if "blkio" in line.split(":")[1])
        return int((Path("/sys/fs/cgroup/blkio") / path.strip("/") / "blkio.bfq.weight").read_text())

    assert weight() == 300
    assert results(kvmctl("-o", "json", "set", guest.name, "io.weight=700")) == [("io.weight", "changed")]
    assert (weight(), parse(domains.definition(guest.domain)).spec.io.weight) == (700, 700)
    assert results(kvmctl("-o", "json", "set", guest.name, "io.weight=default")) == [("io.weight", "changed")]
    assert (weight(), parse(domains.definition(guest.domain)).spec.io.weight) == (100, 0)
    assert results(kvmctl("-o", "json", "set", guest.name, "io.weight=default")) == []


def test_isolation_of_a_guest_is_what_its_qemu_has(kvmctl: Kvmctl, make: Make) -> None:
    guest = make("rng: true")
    found = {one["name"]: one for one in kvmctl("-o", "json", "host", "doctor", "--isolation", guest.name).json()}
    assert {name.partition(": ")[0] for name in found} == {guest.name}
    expected = {"user", "sandbox", "own /dev", "devices", "label", "open files", "shared memory", "merging"}
    assert expected <= {name.partition(": ")[2] for name in found}
    assert guest.status("Seccomp") == "2"
    assert found[f"{guest.name}: sandbox"]["result"] == "ok"
    assert [one for one in found.values() if one["result"] == "warn" and not one["next"]] == []
    kvmctl("host", "doctor", "--isolation", "kvmctl-test-none", code=3)
    kvmctl("host", "doctor", guest.name, code=2)
