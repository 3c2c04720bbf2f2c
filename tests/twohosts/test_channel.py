"""How a guest's memory goes from one host to the other: encrypted, and over several connections."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.certificates import Authority, missing
from tests.conftest import cannot
from tests.pair import Pair, PairHost
from tests.support import until
from tests.twohosts.conftest import Begin, Traveller

pytestmark = pytest.mark.twohosts

MARK = "a-secret-of-the-guest"
_WATCH = """
import signal, socket, sys
line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
line.bind(("eth0", 0))
line.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
mark, found, seen = sys.argv[1].encode(), 0, 0
def end(*_):
    print(found, seen, flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("watching", flush=True)
while True:
    frame = line.recv(1 << 17)
    seen += len(frame)
    found += mark in frame
"""


@pytest.fixture
def certified(hosts: Pair, tmp_path: Path) -> Iterator[None]:
    """Both hosts have certificates of one authority."""
    if absent := missing():
        cannot(f"it needs {', '.join(absent)}")
    authority = Authority(tmp_path / "ca")
    ends = (hosts.a, hosts.b)
    for host in ends:
        authority.give(host.certificates, host.address)
    yield
    for file in (file for host in ends for file in host.certificates.iterdir()):
        file.unlink()


class Overheard:
    """What passes over the cable of a host."""

    marks = 0
    """Packets with the mark in them."""
    size = 0
    """Bytes."""


@contextmanager
def overhearing(host: PairHost) -> Iterator[Overheard]:
    log = host.folder / "watch.log"
    log.unlink(missing_ok=True)
    process = host.spawn([sys.executable, "-c", _WATCH, MARK], log=log.name)
    heard = Overheard()
    try:
        until(log.read_text, bool, 30, "who watches the cable")
        yield heard
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    heard.marks, heard.size = map(int, log.read_text().split()[-2:])


def test_encrypted(hosts: Pair, traveller: Traveller, certified: None) -> None:
    """Nobody on the cable reads what the guest has in its memory, as they do without."""
    traveller.run(f"yes {MARK} | head -c 65536 >/run/part; cat $(yes /run/part | head -n 64) >/run/mark")
    before = traveller.count()
    with overhearing(hosts.a) as heard:
        hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, "--tls")
    assert traveller.is_only(hosts.b)
    assert heard.size > 4 << 20
    assert heard.marks == 0
    with overhearing(hosts.a) as heard:
        hosts.b.kvmctl("migrate", traveller.name, hosts.a.tcp)
    assert heard.marks > 0
    traveller.run("rm /run/part /run/mark")
    assert traveller.count() > before


def test_encrypted_without_certificates(hosts: Pair, traveller: Traveller, certified: None, tmp_path: Path) -> None:
    """Those of the source are looked at before; libvirt does not tell of the target's, which stops the move."""
    before = traveller.count()
    for file in hosts.b.certificates.iterdir():
        file.unlink()
    done = hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, "--tls", code=1)
    assert "it is where it was" in done.stderr
    assert "ca-cert.pem" in done.stderr
    Authority(tmp_path / "other").give(hosts.b.certificates, hosts.b.address)
    done = hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, "--tls", code=1)
    assert "certificate" in done.stderr
    for file in hosts.a.certificates.iterdir():
        file.unlink()
    refused = hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, "--tls", "-o", "json", code=5)
    assert [row["what"] for row in json.loads(refused.stdout) if row["severity"] == "obstacle"] == ["tls"]
    assert traveller.is_only(hosts.a)
    assert traveller.count() > before


def _connections(host: PairHost) -> int:
    """Those that are open to where QEMU of this host listens for guests that arrive."""
    # 1 is ESTABLISHED, the second column the local address; libvirt's ports for it begin with 49152 (C000).
    lines = [line.split() for line in Path(f"/proc/{host.pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(line[3] == "01" and int(line[1].partition(":")[2], 16) in range(49152, 49216) for line in lines)


@pytest.mark.parametrize("more", [(), ("--tls",)], ids=["plain", "encrypted"])
def test_several_connections(
    hosts: Pair, traveller: Traveller, moving: Begin, certified: None, more: tuple[str, ...]
) -> None:
    before = traveller.count()
    one = moving(traveller, "--connections", "3", *more)
    # One more tells the target what is sent over the others.
    until(lambda: _connections(hosts.b), lambda found: found == 4, 30, "the connections")
    here = traveller.at(hosts.a)
    assert here is not None
    here.migrateSetMaxSpeed(1000, 0)
    assert one.ended() == 0, one.said
    assert traveller.is_only(hosts.b)
    assert traveller.count() > before
