"""What kvmctl has systemd do: swap at boot, and a tick every minute, under the restrictions of its own unit."""

from __future__ import annotations

import pytest

from tests.nested.support import Nested

pytestmark = pytest.mark.nested

WEIGHT = "cat /sys/fs/cgroup/machine.slice/cpu.weight"


def units(nested: Nested) -> list[str]:
    """What systemd has of kvmctl's to start at boot."""
    text = nested.sh("cd /etc/systemd/system; ls -d *.wants/kvmctl-* 2>/dev/null || true")
    return [line.partition("/")[2] for line in text.split()]


def test_swap_to_compressed_memory_comes_again_at_boot(nested: Nested) -> None:
    unit = "kvmctl-swap-zram.service"
    nested.kvmctl("swap", "enable", "--zram", "256MiB")
    (area,) = nested.kvmctl("swap", "show", "-o", "json").json()["areas"]
    assert (area["kind"], area["size"], area["at_boot"]) == ("zram", (256 << 20) - 4096, True)
    assert units(nested) == [unit]
    # As after a reboot: the kernel has forgotten it.
    nested.sh("swapoff /dev/zram0; echo 1 >/sys/block/zram0/reset")
    nested.sh(f"systemctl start {unit}")
    assert "/dev/zram0" in nested.sh("cat /proc/swaps")
    nested.kvmctl("swap", "disable")
    assert "zram" not in nested.sh("cat /proc/swaps")
    assert units(nested) == []


def test_the_timers_tick_keeps_promises_from_within_its_unit(nested: Nested) -> None:
    guest = nested.guest("ticked")
    nested.kvmctl("set", guest, "cpu.reservation=0.5")
    nested.kvmctl("rebalance", "install")
    try:
        assert units(nested) == ["kvmctl-rebalance.timer"]
        assert "kvmctl-rebalance.service" in nested.sh("systemctl list-timers")
        nested.sh("systemctl start --no-block kvmctl-rebalance.service")
        nested.until(lambda: int(nested.sh(WEIGHT)), lambda weight: weight > 100, 60, "the weight of the guests' slice")
        assert nested.kvmctl("rebalance", "install", "--dry-run").code == 0
    finally:
        nested.kvmctl("rebalance", "uninstall")
        nested.sh("systemctl stop kvmctl-rebalance.service")
        nested.kvmctl("host", "restore")
    assert units(nested) == []
    assert "kvmctl" not in nested.sh("systemctl list-timers")
    assert nested.sh(WEIGHT).strip() == "100"
