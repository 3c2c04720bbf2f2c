"""Moves that are cut off: each ends with the guest alive on exactly one host, and the next run settles what is left."""

from __future__ import annotations

import signal
import sys

import libvirt
import pytest

from tests.pair import Pair
from tests.support import Screen, until
from tests.twohosts.conftest import SLOW, Begin, Make, Moving, Traveller

pytestmark = pytest.mark.twohosts


def stayed(one: Moving, before: tuple[int, float]) -> bool:
    """Whether the guest goes on counting at the source, and only there."""
    return one.traveller.is_only(one.hosts.a) and one.traveller.count() > before


def unfinished(hosts: Pair) -> bool:
    """Whether the journal lists a move that is not settled."""
    journal = hosts.a.folder / "state/journal.json"
    return journal.exists() and '"migrate"' in journal.read_text() and '"uuid"' in journal.read_text()


def test_interrupted(hosts: Pair, moving: Begin, traveller: Traveller) -> None:
    before = traveller.count()
    here = traveller.at(hosts.a)
    assert here is not None
    allowed = here.migrateGetMaxDowntime()
    one = moving(traveller, "--max-downtime", "1234ms")
    assert here.migrateGetMaxDowntime() == 1234
    one.process.send_signal(signal.SIGINT)
    assert one.ended() == 130
    assert here.migrateGetMaxDowntime() == allowed, "a move that is given up leaves nothing"
    assert "Traceback" not in one.said
    assert stayed(one, before)
    assert not unfinished(one.hosts)


def test_interrupted_while_storage_is_copied(moving: Begin, make_traveller: Make) -> None:
    one = moving(make_traveller(local=True, light=True, filled=64 << 20), "--copy-storage")
    one.process.send_signal(signal.SIGINT)
    assert one.ended() == 130
    assert one.traveller.is_only(one.hosts.a)
    images = one.hosts.b.images
    assert not list(images.glob(f"{one.traveller.name}*")), "half a copy is left"
    one.hosts.a.kvmctl("migrate", one.traveller.name, one.hosts.b.tcp, "--copy-storage", "--check")


def test_target_daemon_killed(moving: Begin, traveller: Traveller) -> None:
    before = traveller.count()
    one = moving(traveller)
    one.hosts.b.kill_daemon()
    try:
        assert one.ended() in (1, 6)
    finally:
        one.hosts.b.start_daemon()
    assert "it is where it was" in one.said
    assert stayed(one, before)
    assert not unfinished(one.hosts)


def test_source_daemon_killed(moving: Begin, traveller: Traveller) -> None:
    before = traveller.count()
    one = moving(traveller)
    one.hosts.a.kill_daemon()
    try:
        assert one.ended() in (1, 6)
    finally:
        one.hosts.a.start_daemon()
    assert "is not clear" in one.said
    assert "the source does not answer" in one.said
    assert unfinished(one.hosts)
    # The next run settles it, whatever that is about.
    done = one.hosts.a.kvmctl("migrate", one.traveller.name, one.hosts.b.tcp, "--check")
    assert "cut off" in done.stderr
    assert stayed(one, before)
    assert not unfinished(one.hosts)


def test_killed_itself(moving: Begin, traveller: Traveller) -> None:
    before = traveller.count()
    one = moving(traveller)
    one.process.kill()
    one.ended()
    # The daemons go on with it, which the next run says and does not disturb.
    done = one.hosts.a.kvmctl("migrate", one.traveller.name, one.hosts.b.tcp, "--check", code=5)
    assert "still being moved" in done.stderr
    assert "it is being moved to another host" in done.stdout
    here = one.traveller.at(one.hosts.a)
    assert here is not None
    here.migrateSetMaxSpeed(1000, 0)
    until(lambda: one.traveller.at(one.hosts.a), lambda found: found is None, 60, "the guest at the source")
    done = one.hosts.a.kvmctl("migrate", one.traveller.name, one.hosts.b.tcp, "--check", code=3)
    assert "cut off" in done.stderr
    assert one.traveller.is_only(one.hosts.b)
    assert one.traveller.count() > before
    there = one.traveller.at(one.hosts.b)
    assert there is not None
    assert there.autostart() == 1, "what libvirt does not move is made up for"
    assert not unfinished(one.hosts)


def test_network_cut(moving: Begin, traveller: Traveller) -> None:
    before = traveller.count()
    one = moving(traveller)
    here = one.traveller.at(one.hosts.a)
    assert here is not None
    one.hosts.b.link("down")
    try:
        until(lambda: here.jobInfo()[0], lambda kind: kind == libvirt.VIR_DOMAIN_JOB_NONE, 30, "the daemon's job")
    finally:
        one.hosts.b.link("up")
    code = one.ended()
    assert code in (1, 6), one.said
    until(lambda: stayed(one, before), bool, 30, "the guest at the source")
    one.hosts.a.kvmctl("migrate", one.traveller.name, one.hosts.b.tcp, "--check")
    assert not unfinished(one.hosts)


def test_others_leave_it_alone(moving: Begin, traveller: Traveller, make_traveller: Make) -> None:
    """What gives every guest its weight does not wait for one that libvirt is busy with."""
    neighbour = make_traveller(light=True)
    one = moving(traveller)
    done = one.hosts.a.kvmctl("pause", neighbour.name)
    assert one.process.poll() is None, one.said
    assert f"weight of guest {one.traveller.name}: it is being moved to another host" in done.stderr
    one.process.send_signal(signal.SIGINT)
    assert one.ended() == 130


def test_progress_and_ctrl_c_on_a_terminal(hosts: Pair, traveller: Traveller, screen: Screen) -> None:
    command = [sys.executable, "-m", "kvmctl", "migrate", traveller.name, hosts.b.tcp, *SLOW]
    screen.run(*hosts.a.inside(command), env=hosts.a.own())
    screen.expect("s left")
    screen.type(b"\x03")
    assert screen.wait() == 130
    assert traveller.is_only(hosts.a)
