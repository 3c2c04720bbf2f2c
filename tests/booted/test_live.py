"""What is set on a running Linux guest is what the kernel and the guest itself have."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmctl.hypervisor import domains
from tests.conftest import Kvmctl
from tests.support import Boot, until

pytestmark = pytest.mark.booted


def test_a_guest_has_what_its_file_says(boot: Boot, pool: tuple[str, Path]) -> None:
    _guest, line = boot(
        "cpu: {count: 2, max: 3}\n    memory: {size: 256MiB, max: 384MiB}\n"
        f"    disks: [{{volume: d.qcow2, pool: {pool[0]}, size: 64MiB}}]\n"
        "    nics: [{user: true, mac: '52:54:00:0a:0b:0c'}]"
    )
    assert line.run("grep -c ^processor /proc/cpuinfo").strip() == "2"
    assert line.run("cat /sys/block/vda/size").strip() == str(64 * 2048)
    assert line.run("cat /sys/class/net/eth0/address").strip() == "52:54:00:0a:0b:0c"
    until(line.ballooned, lambda size: size == 128 << 20, 60, "the balloon")
    line.run(
        "echo kept | dd of=/dev/vda bs=512 conv=sync && dd if=/dev/vda of=/run/back count=1 && grep kept /run/back"
    )


def test_the_balloon_moves_and_gives_back(kvmctl: Kvmctl, boot: Boot) -> None:
    guest, line = boot("memory: {size: 384MiB, max: 384MiB}")
    free = line.meminfo("MemAvailable")
    assert kvmctl("-o", "json", "set", guest.name, "memory.size=256MiB").json()[0]["result"] == "changed"
    assert line.ballooned() == 128 << 20
    assert free - line.meminfo("MemAvailable") > 96 << 20
    kvmctl("set", guest.name, "memory.size=384MiB")
    assert line.ballooned() == 0


def test_vcpus_are_plugged_in_while_it_runs(kvmctl: Kvmctl, boot: Boot) -> None:
    guest, line = boot("cpu: {count: 1, max: 2}\n    memory: {size: 256MiB}")
    assert kvmctl("-o", "json", "set", guest.name, "cpu.count=2").json()[0]["result"] == "changed"
    until(lambda: line.run("cat /sys/devices/system/cpu/online").strip(), lambda text: text == "0-1", 30, "online CPUs")


def test_pinning_and_limit_hold_on_every_thread(kvmctl: Kvmctl, boot: Boot) -> None:
    guest, _line = boot("cpu: {count: 2}\n    memory: {size: 256MiB}")
    kvmctl("set", guest.name, "cpu.pin=1", "cpu.limit=0.3", "labels.tier=front", "description=a <b> & c")
    tasks = Path(f"/proc/{guest.pid}/task").iterdir()
    vcpus = [task for task in tasks if (task / "comm").read_text().startswith("CPU ")]
    assert len(vcpus) == 2
    for task in vcpus:
        assert "Cpus_allowed_list:\t1\n" in (task / "status").read_text()
    assert int((guest.cgroup / "cpu.cfs_quota_us").read_text()) == 30_000
    assert "a &lt;b&gt; &amp; c" in domains.live_definition(guest.domain)
    assert kvmctl("-o", "name", "list", "-l", "tier=front").out.split() == [guest.name]


def test_a_guest_that_is_asked_powers_off(kvmctl: Kvmctl, boot: Boot) -> None:
    guest, line = boot("memory: {size: 256MiB}")
    line.run("true")
    assert "stopped" in kvmctl("stop", guest.name, "--timeout", 60).out
    assert domains.state(guest.domain) == "stopped"


def test_a_paused_guest_stands_still(kvmctl: Kvmctl, boot: Boot) -> None:
    guest, line = boot("memory: {size: 256MiB}")
    before = float(line.run("cut -d' ' -f1 /proc/uptime"))
    kvmctl("pause", guest.name)
    assert guest.domain.info()[0] == 3
    kvmctl("resume", guest.name)
    assert float(line.run("cut -d' ' -f1 /proc/uptime")) > before


def test_a_cloud_init_seed_is_seen_by_the_guest(boot: Boot, kvmctl: Kvmctl) -> None:
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBm8 test"
    guest, line = boot(f"memory: {{size: 256MiB}}\n    cloud-init: {{hostname: seeded, ssh-keys: ['{key}']}}")
    text = line.run("mkdir -p /run/seed; mount -t iso9660 -o ro /dev/vda /run/seed 2>&1; cat /run/seed/*")
    assert "hostname: seeded" in text
    assert key in text
    kvmctl("--yes", "delete", guest.name, "--force")
