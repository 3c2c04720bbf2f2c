"""Ceilings of nics on a kernel that has the means: as tc tells, and as a guest feels them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.nested.support import Nested
from tests.support import PREFIX

pytestmark = pytest.mark.nested

MAC = "52:54:00:0d:0e:0f"
HERE = "10.79.0.1"
NAME = f"{PREFIX}traffic"
NETWORK = f"""
<network><name>{NAME}</name><bridge name='traffic0'/><ip address='{HERE}' netmask='255.255.255.0'>
<dhcp><range start='10.79.0.2' end='10.79.0.9'/></dhcp></ip></network>
"""
KIB, BURST_KIB, RATE_KIB = 384, 64, 1_000_000 / 8 / 1024
"""What the guest sends, and its ceiling, per second."""
SINK = f"""
import socket
connection, _ = socket.create_server(("{HERE}", 9)).accept()
print(sum(iter(lambda: len(connection.recv(65536)), 0)))
"""


@pytest.fixture
def network(nested: Nested) -> Iterator[None]:
    nested.sh("virsh -q net-create /dev/stdin", stdin=NETWORK.encode())
    yield
    nested.sh(f"virsh -q net-destroy {NAME}")


def tc(nested: Nested, guest: str, what: str) -> str:
    tap = nested.sh(f"virsh -q domiflist {guest}").split()[0]
    return nested.sh(f"tc {what}".format(tap=tap))


def classes(nested: Nested, guest: str) -> str:
    return tc(nested, guest, "class show dev {tap}")


def filters(nested: Nested, guest: str) -> str:
    return tc(nested, guest, "filter show dev {tap} parent ffff:")


def results(nested: Nested, guest: str, values: dict[str, str]) -> set[str]:
    words = [f"nics.{MAC}.bandwidth.{key}={value}" for key, value in values.items()]
    return {row["result"] for row in nested.kvmctl("set", guest, *words, "-o", "json").json()}


@pytest.mark.usefixtures("network")
def test_ceilings_are_the_kernels_and_bind_a_guest(nested: Nested) -> None:
    ceilings = f"{{in: 8Mbit, in-peak: 16Mbit, in-burst: 64KiB, out: 1Mbit, out-burst: {BURST_KIB}KiB}}"
    guest = nested.guest("traffic", more=f"nics: [{{network: {NAME}, mac: '{MAC}', bandwidth: {ceilings}}}]")
    assert "rate 8Mbit ceil 16Mbit" in classes(nested, guest)
    assert "rate 1Mbit" in filters(nested, guest)
    assert results(nested, guest, {"in": "12Mbit", "in-peak": "unlimited"}) == {"changed"}
    assert "rate 12Mbit ceil 12Mbit" in classes(nested, guest)
    # What the guest has sent cannot have been quicker than the ceiling, however slow the machine is.
    nested.sh("cat >/run/sink.py; python3 /run/sink.py </dev/null >/run/received 2>&1 &", stdin=SINK.encode())
    nested.ask(guest, "for n in 1 2 3 4 5 6 7 8 9; do ip addr show eth0 | grep -q 10.79.0 && break; sleep 1; done")
    send = f"dd if=/dev/zero bs=1k count={KIB} 2>/dev/null | nc {HERE} 9"
    took = nested.ask(guest, f"read a _ </proc/uptime; {send}; read b _ </proc/uptime; echo $a $b")
    begun, ended = map(float, took.split())
    assert nested.until(lambda: nested.sh("cat /run/received").strip(), bool, 30, "what came") == str(KIB << 10)
    assert ended - begun >= 0.9 * (KIB - BURST_KIB) / RATE_KIB
    off = dict.fromkeys(("in", "in-burst", "out", "out-burst"), "unlimited")
    assert results(nested, guest, off) == {"changed"}
    assert "rate" not in classes(nested, guest) + filters(nested, guest)
