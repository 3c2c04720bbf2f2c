"""CPU and memory of real KVM guests under systemd and cgroup v2, read from the kernel's files."""

from __future__ import annotations

import pytest

from tests.nested.support import Nested

pytestmark = pytest.mark.nested

RECLAIM = """
import sys
sys.path[:0] = ["/opt/kvmctl", "/usr/local/lib/python3/dist-packages"]
from kvmctl.host import cold, pageout
pid = int(sys.argv[1])
file = pageout.reclaim_file(pid)
seen = cold.watch(pid)
moved = cold.step(seen, 32 << 20, merged=False, reclaim_file=file)
print(file, moved.means, moved.moved, pageout.swapped(pid))
"""


def scope(nested: Nested, guest: str) -> str:
    """The guest's own directory in the hierarchy of control groups."""
    text = nested.sh(f"cat /proc/{nested.pid(guest)}/cgroup").strip()
    assert text.startswith("0::/machine.slice/machine-qemu")
    return f"/sys/fs/cgroup{text.removeprefix('0::').partition('/libvirt')[0]}"


def read(nested: Nested, path: str) -> str:
    return nested.sh(f"cat '{path}'").strip()


def stat(nested: Nested, path: str, key: str) -> int:
    """A number of a control group's cpu.stat."""
    return int(read(nested, f"{path}/cpu.stat").partition(f"{key} ")[2].split()[0])


def test_shares_are_the_weight_of_the_scope_and_share_a_processor(nested: Nested) -> None:
    wanted = {nested.guest("more"): 4000, nested.guest("less"): 1000}
    paths = {guest: scope(nested, guest) for guest in wanted}
    for guest, shares in wanted.items():
        nested.kvmctl("set", guest, f"cpu.shares={shares}", "cpu.pin=0")
        assert read(nested, f"{paths[guest]}/cpu.weight") == str(shares)
    found = {row["name"]: row["weight"] for row in nested.kvmctl("cpu", "-o", "json").json()["guests"]}
    assert found == wanted
    for guest in reversed(wanted):
        nested.ask(guest, "while :; do :; done &")
    before = [stat(nested, path, "usage_usec") for path in paths.values()]
    more, less = nested.until(
        lambda: [stat(nested, path, "usage_usec") - old for path, old in zip(paths.values(), before, strict=True)],
        lambda used: sum(used) > 4_000_000,
        90,
        "the processor time of both",
    )
    assert more > 2 * less


def test_a_limit_is_a_quota_and_binds_and_both_come_again_at_the_next_start(nested: Nested) -> None:
    guest = nested.guest("limited")
    path = scope(nested, guest)
    nested.kvmctl("set", guest, "cpu.limit=50%", "cpu.shares=3000")
    # Of all the guest's threads together: they are below this directory.
    quota, period = map(int, read(nested, f"{path}/libvirt/cpu.max").split())
    assert quota * 2 == period
    nested.ask(guest, "while :; do :; done &")
    nested.until(lambda: stat(nested, f"{path}/libvirt", "nr_throttled"), bool, 60, "the times that it was held back")
    nested.stop(guest)
    nested.kvmctl("start", guest)
    path = scope(nested, guest)
    assert read(nested, f"{path}/cpu.weight") == "3000"
    assert read(nested, f"{path}/libvirt/cpu.max").split()[0] == str(quota)
    nested.kvmctl("set", guest, "cpu.limit=unlimited")
    assert read(nested, f"{path}/libvirt/cpu.max").split()[0] == "max"


def test_a_tick_gives_the_guests_slice_its_weight_through_systemd(nested: Nested) -> None:
    guest = nested.guest("slice")
    nested.kvmctl("set", guest, "cpu.reservation=0.5")
    nested.kvmctl("rebalance", code=None)
    weight = int(read(nested, "/sys/fs/cgroup/machine.slice/cpu.weight"))
    assert weight > 100
    assert nested.sh("systemctl show -p CPUWeight --value machine.slice").strip() == str(weight)
    nested.kvmctl("host", "restore")
    assert read(nested, "/sys/fs/cgroup/machine.slice/cpu.weight") == "100"


def test_the_kernel_itself_picks_cold_memory_of_a_guest_without_merged_pages(nested: Nested) -> None:
    guest = nested.guest("cold", memory=256)
    nested.ask(guest, "dd if=/dev/urandom of=/run/cold bs=1M count=32 2>/dev/null; md5sum /run/cold >/run/sum")
    nested.sh("fallocate -l 256M /swap && chmod 600 /swap && mkswap -q /swap && swapon /swap")
    try:
        said = nested.sh(f"python3 - {nested.pid(guest)}", stdin=RECLAIM.encode())
        file, means, moved, swapped = said.split()
        assert file.endswith(".scope/memory.reclaim")
        assert means == "memory.reclaim"
        assert int(moved) > 8 << 20
        assert int(swapped) >= int(moved)
        assert "/run/cold: OK" in nested.ask(guest, "md5sum -c /run/sum")
    finally:
        nested.stop(guest)
        nested.sh("swapoff /swap; rm /swap")


def test_the_kernel_leaves_alone_what_a_guest_has_reserved(nested: Nested) -> None:
    kept, other = nested.guest("kept", memory=192), nested.guest("other", memory=192)
    nested.kvmctl("set", kept, "memory.reservation=192MiB")
    for guest in (kept, other):
        nested.ask(guest, "dd if=/dev/urandom of=/run/held bs=1M count=64 2>/dev/null; md5sum /run/held >/run/sum")
    nested.kvmctl("rebalance", code=None)
    low = int(read(nested, f"{scope(nested, kept)}/memory.low"))
    assert low >= 256 << 20
    assert read(nested, "/sys/fs/cgroup/machine.slice/memory.low") == str(low)
    assert read(nested, f"{scope(nested, other)}/memory.low") == "0"
    # What is not set through systemd, that takes back now.
    nested.sh("systemctl daemon-reload")
    assert read(nested, f"{scope(nested, kept)}/memory.low") == str(low)

    def swapped(guest: str) -> int:
        return int(nested.sh(f"grep VmSwap /proc/{nested.pid(guest)}/status").split()[1]) // 1024

    def reclaim() -> None:
        nested.sh("echo 48M >/sys/fs/cgroup/machine.slice/memory.reclaim")

    nested.sh("fallocate -l 512M /swap && chmod 600 /swap && mkswap -q /swap && swapon /swap")
    try:
        reclaim()
        assert (swapped(kept), swapped(other) > 0) == (0, True)
        nested.kvmctl("host", "restore")
        assert read(nested, f"{scope(nested, kept)}/memory.low") == "0"
        assert read(nested, "/sys/fs/cgroup/machine.slice/memory.low") == "0"
        reclaim()
        assert swapped(kept) > 0
        for guest in (kept, other):
            assert "/run/held: OK" in nested.ask(guest, "md5sum -c /run/sum")
    finally:
        for guest in (kept, other):
            nested.stop(guest)
        nested.sh("swapoff /swap; rm /swap")


def test_a_limit_of_the_guests_slice_is_what_there_is_for_guests(nested: Nested) -> None:
    other = nested.guest("beside")  # without any guest, systemd has no such slice
    guest = nested.guest("bounded", memory=400, start=False)
    nested.kvmctl("set", guest, "memory.reservation=400MiB")
    nested.sh("systemctl set-property --runtime machine.slice MemoryMax=300M")
    try:
        assert "400 = 400 > 300 MiB" in nested.kvmctl("start", guest, code=5).err
    finally:
        nested.sh("systemctl set-property --runtime machine.slice MemoryMax=infinity")
    nested.kvmctl("start", guest)
    nested.stop(guest)
    nested.stop(other)
