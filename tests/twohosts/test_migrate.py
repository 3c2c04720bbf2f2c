"""`kvmctl migrate` between two real hosts: guests that count go there and back, with their promises."""

from __future__ import annotations

import json

import libvirt
import pytest

from kvmctl.control.weights import BALLOON, run_key_of
from kvmctl.host.journal import Journal
from kvmctl.hypervisor import live
from kvmctl.model.units import MIB
from tests.pair import Pair
from tests.support import until
from tests.twohosts.conftest import Make, Traveller, promised, set_weight, weight

pytestmark = pytest.mark.twohosts


def test_there_and_back(hosts: Pair, traveller: Traveller, make_traveller: Make) -> None:
    neighbour = make_traveller(light=True)
    said, before = promised(traveller, hosts.a), traveller.count()
    for one in (traveller, neighbour):
        set_weight(one, hosts.a, 77)
    hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp)
    assert traveller.is_only(hosts.b)
    after = traveller.count()
    assert after > before
    assert promised(traveller, hosts.b) == said
    there = traveller.at(hosts.b)
    assert there is not None
    assert there.autostart() == 1
    # A weight travels with its guest; on both hosts all have what they are due again.
    assert weight(traveller, hosts.b) != 77
    assert weight(neighbour, hosts.a) != 77
    rows = json.loads(hosts.b.kvmctl("migrate", traveller.name, hosts.a.tcp, "-o", "json").stdout)
    assert traveller.is_only(hosts.a)
    assert traveller.count() > after
    assert rows[0]["result"] == "changed"
    assert rows[0]["downtime"] < rows[0]["seconds"]
    assert rows[0]["sent"] > 1 << 20
    moves = [json.loads(line) for line in (hosts.a.folder / "state/moves.jsonl").read_text().splitlines()]
    assert moves[-1]["guest"] == traveller.name
    assert moves[-1]["expected"] > 0


def test_storage_is_copied(hosts: Pair, make_traveller: Make) -> None:
    traveller = make_traveller(local=True, disc=True)
    traveller.run("echo carried over >/dev/vda; sync")
    refused = hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, "-o", "json", code=5)
    assert [row["what"] for row in json.loads(refused.stdout) if row["severity"] == "obstacle"] == [
        "disk vda",
        "disk sda",
    ]
    before = traveller.count()
    done = hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, "--copy-storage")
    assert traveller.is_only(hosts.b)
    assert traveller.count() > before
    assert traveller.run("head -c 12 /dev/vda").startswith("carried over")
    # libvirt leaves the disc out: without it the guest would not have started there.
    here, there = (host.images / f"{traveller.name}.iso" for host in (hosts.a, hosts.b))
    assert here.read_bytes() == there.read_bytes()
    image = f"/var/lib/libvirt/images/{traveller.name}.qcow2"
    assert f"{image} is still on" in done.stderr
    # The way back leads over the image that was left.
    back = hosts.b.kvmctl("migrate", traveller.name, hosts.a.tcp, "--copy-storage", "--check", "-o", "json", code=5)
    assert "already" in back.stdout
    hosts.b.kvmctl("migrate", traveller.name, hosts.a.tcp, "--copy-storage", "--overwrite")
    assert traveller.is_only(hosts.a)
    assert traveller.run("head -c 12 /dev/vda").startswith("carried over")


def test_a_guest_that_changes_faster_than_is_sent(hosts: Pair, make_traveller: Make) -> None:
    traveller = make_traveller(memory=256)
    traveller.run("dd if=/dev/urandom of=/run/seed bs=1M count=20 2>/dev/null")
    traveller.run("(while :; do cat /run/seed >/run/busy; done) >/dev/null 2>&1 &")
    before = traveller.count()
    slow = ("--bandwidth", "16MiB/s")
    refused = hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, *slow, code=5)
    assert "would not end" in refused.stderr
    assert traveller.is_only(hosts.a)
    done = hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, "--bandwidth", "32MiB/s", "--post-copy", "-o", "json")
    assert traveller.is_only(hosts.b)
    assert json.loads(done.stdout)[0]["dirty_rate"] > 8 << 20
    back = hosts.b.kvmctl("migrate", traveller.name, hosts.a.tcp, *slow, "--auto-converge", "-o", "json")
    assert "slowed down" in back.stderr
    assert traveller.is_only(hosts.a)
    assert json.loads(back.stdout)[0]["throttled"] >= 20
    assert traveller.count() > before


def test_admission_is_the_targets(hosts: Pair, make_traveller: Make) -> None:
    traveller = make_traveller(light=True, reservation=1.5)
    policy = hosts.a.folder / "state/b.yaml"
    policy.write_text("cpu: {reserve: 1}\n")
    (hosts.a.folder / "state/hosts.yaml").write_text(
        f"hosts: [{{name: b, uri: '{hosts.b.tcp}', policy: {policy}}}, {{name: a, uri: 'qemu:///system'}}]\n"
    )
    refused = hosts.a.kvmctl("migrate", traveller.name, "b", "-o", "json", code=5)
    (only,) = [row for row in json.loads(refused.stdout) if row["severity"] == "obstacle"]
    assert only["what"] == "admission"
    assert "1.5 > 1" in only["text"]
    assert traveller.is_only(hosts.a)
    rows = json.loads(hosts.a.kvmctl("list", "--all-hosts", "-o", "json").stdout)
    assert {(row["host"], row["name"]) for row in rows} >= {("a", traveller.name)}
    hosts.a.kvmctl("migrate", traveller.name, "b", "--force")
    assert traveller.is_only(hosts.b)


def test_everything_at_once(hosts: Pair, make_traveller: Make) -> None:
    traveller = make_traveller(light=True, local=True, cache="writeback", reservation=1.9)
    domain = traveller.at(hosts.a)
    assert domain is not None
    text = "<domainsnapshot><name>before</name><disks><disk name='vda' snapshot='external'/></disks></domainsnapshot>"
    domain.snapshotCreateXML(text, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
    refused = hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, "--check", "-o", "json", code=5)
    rows = json.loads(refused.stdout)
    assert {row["what"] for row in rows if row["severity"] == "obstacle"} == {"snapshots", "disk vda", "admission"}
    assert all(row["next"] for row in rows if row["severity"] == "obstacle")
    assert len([row for row in rows if row["what"] == "disk vda"]) == 2, "neither shared nor safely cached"
    on = hosts.a.kvmctl("doctor", traveller.name, "--on", hosts.b.tcp, "-o", "json", code=5)
    assert {row["what"] for row in json.loads(on.stdout) if row["severity"] == "obstacle"} == {
        "disk vda", "admission",
    }  # fmt: skip
    assert not list(hosts.b.folder.glob("lib/images/*")), "what was looked with is gone"
    assert domain.isActive()


def test_guests_that_are_off(hosts: Pair, make_traveller: Make) -> None:
    traveller = make_traveller(boot=False)
    said = promised(traveller, hosts.a)
    hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, code=5)
    hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, "--offline")
    assert traveller.defined() == [hosts.b]
    assert promised(traveller, hosts.b) == said
    there = traveller.at(hosts.b)
    assert there is not None
    assert there.autostart() == 1


def test_several_in_order_and_at_once(hosts: Pair, make_traveller: Make) -> None:
    """More than a daemon listens to on one connection, for longer than it waits to hear from that."""
    travellers = [make_traveller(light=True, local=True, filled=6 << 20) for _ in range(6)]
    names = [traveller.name for traveller in travellers]
    together = ("--copy-storage", "--jobs", "6", "--bandwidth", "1MiB/s")
    rows = json.loads(hosts.a.kvmctl("migrate", *names, hosts.b.tcp, *together, "-o", "json").stdout)
    assert min(row["seconds"] for row in rows) > 4
    assert [(row["name"], row["result"]) for row in rows] == [(name, "changed") for name in names]
    assert all(traveller.is_only(hosts.b) for traveller in travellers)
    hosts.b.kvmctl("migrate", "-l", "tier=front", hosts.a.tcp, "--copy-storage", "--overwrite", "--jobs", "3")
    assert all(traveller.is_only(hosts.a) for traveller in travellers)


def test_by_way_of_this_process(hosts: Pair, make_traveller: Make) -> None:
    """A URI that only this process can use: the daemons do not speak with each other."""
    traveller = make_traveller(light=True)
    refused = hosts.a.kvmctl("migrate", traveller.name, hosts.b.uri, "-o", "json", code=5)
    assert [row["what"] for row in json.loads(refused.stdout) if row["severity"] == "obstacle"] == ["connection"]
    hosts.a.kvmctl("migrate", traveller.name, hosts.b.uri, "--direct")
    assert traveller.is_only(hosts.b)


def test_a_cpu_for_both(hosts: Pair, make_traveller: Make) -> None:
    traveller = make_traveller(boot=False)
    both = ("qemu:///system", hosts.b.tcp)
    assert json.loads(hosts.a.kvmctl("host", "baseline", *both, "-o", "json").stdout)["model"]
    hosts.a.kvmctl("host", "baseline", *both, "--guest", traveller.name, "--dry-run", code=10)
    found = json.loads(hosts.a.kvmctl("host", "baseline", *both, "--guest", traveller.name, "-o", "json").stdout)
    domain = traveller.at(hosts.a)
    assert domain is not None
    assert f">{found['model']}</model>" in domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    hosts.a.kvmctl("host", "baseline", *both, "--guest", traveller.name, "--dry-run")
    hosts.a.kvmctl("doctor", traveller.name, "--on", hosts.b.tcp)


def test_what_was_taken_from_a_guest_here_it_has_there(hosts: Pair, make_traveller: Make) -> None:
    traveller = make_traveller()
    domain = traveller.at(hosts.a)
    assert domain is not None
    key = run_key_of("qemu:///system", traveller.name, domain.ID())
    assert live.balloon(domain) == 128 * MIB
    Journal(hosts.a.folder / "state/journal.json").record(BALLOON, key, 128 * MIB, None)
    live.set_balloon(domain, 100 * MIB)
    until(lambda: live.balloon(domain), lambda size: size == 100 * MIB, 60, "what its balloon leaves it")
    hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp)
    there = traveller.at(hosts.b)
    assert there is not None
    until(lambda: live.balloon(there), lambda size: size == 128 * MIB, 60, "what it has there")


def test_a_guest_that_arrived_paused(hosts: Pair, make_traveller: Make) -> None:
    """To move it once more would crash its QEMU: it has to run for a moment before."""
    traveller = make_traveller(light=True)
    hosts.a.kvmctl("pause", traveller.name)
    hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp)
    assert traveller.is_only(hosts.b)
    refused = hosts.b.kvmctl("migrate", traveller.name, hosts.a.tcp, code=5)
    assert "would crash" in refused.stdout
    hosts.b.kvmctl("resume", traveller.name)
    hosts.b.kvmctl("migrate", traveller.name, hosts.a.tcp)
    assert traveller.is_only(hosts.a)
