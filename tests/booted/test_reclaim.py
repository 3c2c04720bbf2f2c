"""Memory that is taken from a running Linux guest, and what it has back: read from the kernel and in the guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmctl.host import memory
from kvmctl.hypervisor import domains, live
from kvmctl.model.units import MIB
from kvmctl.policy import balloon
from tests.shorthost import Lab, guest_file
from tests.support import Guest, until

pytestmark = pytest.mark.booted


def test_an_idle_guest_gives_memory_to_a_short_host_and_has_it_back(lab: Lab) -> None:
    before = lab.fresh()
    assert before["balloon"] == 384 * MIB
    lab.short()
    done = lab.tick()["memory.balloon"]
    assert (done["old"], done["result"]) == (384 * MIB, "changed")
    # A fifth of its size in one tick, and never below its reservation.
    assert 384 * MIB - 384 * MIB // 5 - MIB <= done["new"] < 384 * MIB
    until(lambda: live.balloon(lab.guest.domain), lambda size: size <= done["new"] + MIB, 60, "the balloon")
    assert lab.line.meminfo("MemAvailable") < before["usable"]

    def smallest() -> int:
        lab.fresh()
        lab.tick()
        return live.balloon(lab.guest.domain)

    until(smallest, lambda size: size < 250 * MIB, 120, "the balloon after some ticks")
    for _ in range(3):
        lab.fresh()
        lab.tick()
    assert live.balloon(lab.guest.domain) >= 160 * MIB
    assert lab.line.meminfo("MemAvailable") > 16 * MIB

    explained = lab.run("memory", "--explain", "squeezed")["reasons"]
    assert any("its balloon leaves it" in reason for reason in explained)
    lab.policy_is("sharing: leave")
    back = lab.tick()["memory.balloon"]
    assert back["new"] == 384 * MIB
    until(lambda: live.balloon(lab.guest.domain), lambda size: size == 384 * MIB, 60, "the balloon let go")


def test_a_guest_that_is_short_has_all_back_at_once_and_is_left_alone(lab: Lab) -> None:
    lab.fresh()
    live.set_balloon(lab.guest.domain, 200 * MIB)
    until(lambda: live.balloon(lab.guest.domain), lambda size: size == 200 * MIB, 60, "the balloon")
    # Shared memory is not page cache: it cannot be dropped.
    lab.line.run(
        "mkdir -p /run/full; mount -t tmpfs none /run/full; "
        "free=$(awk '/MemAvailable/ {print int($2/1024)}' /proc/meminfo); "
        "dd if=/dev/zero of=/run/full/x bs=1M count=$((free - 4)) 2>/dev/null; true"
    )
    until(
        lambda: lab.fresh()["usable"],
        lambda usable: usable < balloon.least_usable(384 * MIB),
        60,
        "what the guest says is usable",
    )
    lab.short(0.9)
    done = lab.tick()["memory.balloon"]
    assert done["new"] > done["old"]
    assert "short of memory" in done["reason"]
    until(lambda: live.balloon(lab.guest.domain), lambda size: size == done["new"], 60, "the balloon let go")
    lab.fresh()
    lab.short()
    assert "memory.balloon" not in lab.tick(), "it is left alone for a while"
    assert any(
        "nothing is taken from it for another" in text for text in lab.run("memory", "--explain", "squeezed")["reasons"]
    )


def test_what_was_done_to_guests_is_undone(lab: Lab) -> None:
    lab.fresh()
    score = Path(f"/proc/{lab.guest.pid}/oom_score_adj")
    before = score.read_text()
    lab.short()
    done = lab.tick()
    assert done["memory.balloon"]["new"] < 384 * MIB
    assert score.read_text().strip() == str(done["memory.oom-score"]["new"]) == "500"
    lab.run("host", "restore")
    assert score.read_text() == before
    until(lambda: live.balloon(lab.guest.domain), lambda size: size == 384 * MIB, 60, "the balloon let go")


def test_a_guest_that_opted_out_is_left_alone_and_named(lab: Lab) -> None:
    lab.fresh()
    lab.run("set", "squeezed", "rebalance=false")
    lab.short()
    ran = lab.kvmctl("-c", lab.host.uri, "rebalance", env={"KVMCTL_HOST_FILE": str(lab.policy)})
    assert "squeezed: its memory counts whole, it opted out" in ran.err
    assert live.balloon(lab.guest.domain) == 384 * MIB


def test_a_start_on_a_short_host_has_room_made_and_begins_with_half(lab: Lab) -> None:
    lab.fresh()
    reserve = memory.read().available // MIB - 200
    lab.policy_is(f"reserve: {reserve}MiB, overcommit: 10000%, cover: 0%, sharing: leave, swap: leave")
    assert "memory.balloon" not in lab.tick(), "the host is not short yet"
    text = guest_file(lab.host.folder, "second")
    ran = lab.kvmctl("-c", lab.host.uri, "apply", "-f", "-", stdin=text, env={"KVMCTL_HOST_FILE": str(lab.policy)})
    with lab.host.open() as hypervisor:
        second = Guest(hypervisor, "second")
        try:
            assert "making room: 448MiB for second" in ran.err
            taken = lab.tick()["memory.balloon"]
            assert taken["new"] < taken["old"]
            assert "about to start" in taken["reason"]
            until(lambda: live.balloon(second.domain), lambda size: size <= 193 * MIB, 60, "what it begins with")
        finally:
            second.remove()


def test_no_room_is_made_for_what_can_never_be_kept(lab: Lab) -> None:
    lab.fresh()
    reserve = memory.read().available // MIB - 200
    lab.policy_is(f"reserve: {reserve}MiB, overcommit: 10000%, cover: 0%, sharing: leave, swap: leave")
    lab.tick()
    text = guest_file(lab.host.folder, "second").replace("384MiB", "900GiB").replace("160MiB", "800GiB")
    env = {"KVMCTL_HOST_FILE": str(lab.policy)}
    ran = lab.kvmctl("-c", lab.host.uri, "apply", "-f", "-", stdin=text, code=5, env=env)
    assert "memory reservations" in ran.err
    assert "making room" not in ran.err
    assert "memory.balloon" not in lab.tick(), "nothing is taken from others in vain"
    with lab.host.open() as hypervisor:
        assert "second" not in {sample.name for sample in domains.samples(hypervisor)}
