"""Devices that come and go while Linux runs: what the guest itself sees of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.xml.parse import parse
from tests.conftest import Kvmctl
from tests.support import Boot, Console, Guest, until

pytestmark = pytest.mark.booted

SECTORS = 2048
"""Sectors of a MiB."""


@pytest.fixture
def boot(boot: Boot) -> Boot:
    """As all booted tests have it, of guests with 256 MiB."""
    return lambda keys, machine="q35": boot(f"memory: {{size: 256MiB}}\n    {keys}", machine)


def sectors(line: Console, disk: str) -> int:
    """The disk's size as the guest sees it; 0 where it sees none."""
    return int(line.run(f"cat /sys/block/{disk}/size 2>/dev/null || echo 0"))


def test_a_disk_comes_is_used_and_goes(kvmctl: Kvmctl, boot: Boot, pool: tuple[str, Path]) -> None:
    guest, line = boot(f"disks: [{{volume: a.qcow2, pool: {pool[0]}, size: 4MiB}}]")
    kvmctl("attach", guest.name, "--disk", "b.raw", f"pool={pool[0]}", "size=8MiB", "format=raw")
    until(lambda: sectors(line, "vdb"), lambda size: size == 8 * SECTORS, 30, "the new disk")
    line.run("echo kept | dd of=/dev/vdb bs=512 conv=sync,fsync")
    ran = kvmctl("-o", "json", "detach", guest.name, "vdb")
    assert [(one["field"], one["result"]) for one in ran.json()] == [("disks.vdb", "changed")]
    assert sectors(line, "vdb") == 0
    assert (pool[1] / "b.raw").read_bytes().startswith(b"kept\n")
    assert "vdb" not in domains.live_definition(guest.domain) + domains.definition(guest.domain)


def test_a_nic_comes_and_goes(kvmctl: Kvmctl, boot: Boot) -> None:
    guest, line = boot("rng: true")
    mac = "52:54:00:0c:0d:0e"
    kvmctl("attach", guest.name, "--user-nic", f"mac={mac}")
    until(lambda: line.run("cat /sys/class/net/eth*/address 2>/dev/null || true"), lambda seen: mac in seen, 30, "nics")
    kvmctl("detach", guest.name, mac)
    assert line.run("ls -d /sys/class/net/eth* 2>/dev/null || true").strip() == ""
    assert parse(domains.definition(guest.domain)).spec.nics == ()


def test_a_guest_that_does_not_let_go_keeps_its_disk(
    kvmctl: Kvmctl, make_name: Callable[..., str], hypervisor: Hypervisor, pool: tuple[str, Path], tmp_path: Path
) -> None:
    """Firmware that finds nothing to start from runs, and unplugs nothing."""
    guest = Guest(hypervisor, make_name())
    file = tmp_path / "guest.yaml"
    file.write_text(
        f"guests: [{{name: {guest.name}, accelerator: tcg, memory: {{size: 64MiB}}, "
        f"disks: [{{volume: a.raw, pool: {pool[0]}, size: 1MiB}}]}}]"
    )
    kvmctl("apply", "-f", file)
    ran = kvmctl("detach", guest.name, "vda", "--timeout", "2s", code=7)
    assert "did not let go of it within 2 s" in ran.err
    assert "kvmctl stop" in ran.err
    assert "vda" in domains.definition(guest.domain)
    assert "did not let go" in kvmctl("detach", guest.name, "vda", "--timeout", "1s", code=7).err


def test_paravirtual_devices_have_a_queue_for_each_vcpu(boot: Boot, pool: tuple[str, Path]) -> None:
    _guest, line = boot(
        f"cpu: {{count: 2}}\n    disks: [{{volume: a.raw, pool: {pool[0]}, size: 4MiB, mode: paravirtual}}]\n"
        "    nics: [{network: default, mode: paravirtual}]"
    )
    assert line.run("ls /sys/block/vda/mq").split() == ["0", "1"]
    assert line.run("ls -d /sys/class/net/eth0/queues/tx-*").split()[-1].endswith("tx-1")
    assert int(line.run("cat /sys/block/vda/queue/discard_max_bytes")) > 0


def test_another_medium_is_seen_and_a_locked_one_stays(kvmctl: Kvmctl, boot: Boot, pool: tuple[str, Path]) -> None:
    one, two = pool[1] / "one.iso", pool[1] / "two.iso"
    one.write_bytes(bytes(1 << 20))
    two.write_bytes(bytes(3 << 20))
    guest, line = boot(f"disks: [{{device: cdrom, path: {one}}}]", machine="pc")
    size = "dd if=/dev/sr0 of=/dev/null bs=1M 2>&1 | grep -o '^[0-9]*+' | head -n 1 || true"
    assert line.run(size).strip() == "1+"
    kvmctl("attach", guest.name, "--iso", two)
    # The first try is told that the medium has changed.
    until(lambda: line.run(size).strip(), lambda seen: seen == "3+", 30, "the new medium")
    line.run("(exec 5</dev/sr0; sleep 1000) >/dev/null 2>&1 & sleep 1")
    held = kvmctl("detach", guest.name, "hda", code=7)
    assert "has not opened the drive" in held.err
    assert "--force" in held.err
    (drive,) = parse(domains.definition(guest.domain)).spec.disks or ()
    assert drive.path == str(two)
    kvmctl("detach", guest.name, "hda", "--force")
    assert "two.iso" not in domains.live_definition(guest.domain) + domains.definition(guest.domain)
