from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmctl.bootstrap.microguest import MicroGuest
from kvmctl.host import ksm, memory, process
from kvmctl.host.files import PAGE_SIZE
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.units import MIB
from tests.conftest import Kvmctl
from tests.shorthost import Lab
from tests.support import Guest, until

pytestmark = pytest.mark.booted

SAME_MIB = 32
SAME_PAGES = SAME_MIB * (1 << 20) // PAGE_SIZE
WRITABLE = (
    "merge_across_nodes",
    "advisor_mode",
    "pages_to_scan",
    "sleep_millisecs",
    "use_zero_pages",
    "smart_scan",
    "run",
)
"""In the order in which they can be put back: the advisor sets pages_to_scan."""
SECONDS = 300


def settings() -> dict[str, str]:
    """What the host has now; of a choice such as `[none] scan-time`, the chosen word."""
    texts = {name: (ksm.ROOT / name).read_text().strip() for name in WRITABLE if (ksm.ROOT / name).exists()}
    return {name: text.partition("[")[2].partition("]")[0] or text for name, text in texts.items()}


@pytest.fixture
def before() -> Iterator[dict[str, str]]:
    """The settings that were found, which are there again after the test whatever became of it."""
    found = settings()
    yield found
    for name, value in found.items():
        if settings()[name] != value:
            if name == ksm.NODES:
                (ksm.ROOT / "run").write_text("2")  # the kernel takes it only with nothing merged
            (ksm.ROOT / name).write_text(value)


@pytest.fixture
def boot(
    hypervisor: Hypervisor, make_name: Callable[..., str], micro: MicroGuest, accelerator: str
) -> Callable[..., Guest]:
    """A micro guest, one part of whose memory is equal in all of them."""

    def make(backing: str = "") -> Guest:
        name = make_name("ho-ksm")
        kind = "kvm" if accelerator == "kvm" else "qemu"
        hypervisor.connection.createXML(
            f"<domain type='{kind}'><name>{name}</name><memory unit='MiB'>192</memory><vcpu>1</vcpu>{backing}"
            f"<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{micro.kernel}</kernel>"
            f"<initrd>{micro.initrd}</initrd><cmdline>console=ttyS0 quiet micro.same={SAME_MIB}</cmdline></os>"
            "<features><acpi/></features><devices><serial type='pty'/><memballoon model='virtio'/></devices></domain>"
        )
        return Guest(hypervisor, name)

    return make


def merging(*guests: Guest) -> list[int | None]:
    found = [process.sample(guest.pid) for guest in guests]
    return [sample.ksm_merging_pages if sample else None for sample in found]


def sharing() -> int:
    found = ksm.sample()
    assert found is not None
    return found.pages_sharing


def test_equal_memory_merges_only_of_guests_that_share_and_all_is_put_back(
    kvmctl: Kvmctl, boot: Callable[..., Guest], before: dict[str, str], state: Path
) -> None:
    first, second = boot(), boot()
    alone = boot("<memoryBacking><nosharepages/></memoryBacking>")
    kvmctl("ksm", "enable", "--pages-to-scan", 5000, "--sleep-millisecs", 10)
    assert settings()["run"] == "1"
    assert settings()["pages_to_scan"] == "5000"

    until(
        lambda: merging(first, second),
        lambda pages: all(count is not None and count >= SAME_PAGES for count in pages),
        SECONDS,
        f"the merging pages of two guests with {SAME_PAGES} equal ones",
    )
    assert sharing() >= SAME_PAGES
    assert merging(alone) == [0]
    report = kvmctl("-c", "qemu:///system", "-o", "json", "ksm", "show").json()
    assert report["saved"] >= SAME_MIB << 20
    assert report["explanation"][0].startswith("KSM saves ")
    rows = {row["name"]: row for row in report["guests"]}
    assert rows[first.name]["merged"] >= SAME_MIB << 20
    assert rows[alone.name]["merged"] == 0

    undone = kvmctl("-o", "json", "ksm", "disable", "--unmerge").json()
    assert {row["result"] for row in undone} <= {"changed", "unchanged"}
    assert settings() == before
    assert merging(first, second) == [0, 0]
    assert changed_by_kvmctl(kvmctl) == {}


def test_merging_across_nodes_is_changed_while_pages_are_merged(
    kvmctl: Kvmctl, boot: Callable[..., Guest], before: dict[str, str]
) -> None:
    if ksm.NODES not in before:
        assert "no NUMA nodes" in kvmctl("ksm", "enable", "--no-merge-across-nodes", code=5).err
        return
    first, second = boot(), boot()
    kvmctl("ksm", "enable", "--pages-to-scan", 5000, "--sleep-millisecs", 10)

    def merged() -> bool:
        return all(merging(first, second))

    until(merged, bool, SECONDS, "pages that are merged")
    other = "0" if before[ksm.NODES] == "1" else "1"
    word = "--merge-across-nodes" if other == "1" else "--no-merge-across-nodes"
    rows = kvmctl("-o", "json", "ksm", "enable", word, "--pages-to-scan", 5000, "--sleep-millisecs", 10).json()
    assert [(row["result"], row["found"]) for row in rows if row["file"] == ksm.NODES] == [("changed", other)]
    assert (settings()[ksm.NODES], settings()["run"]) == (other, "1")
    until(merged, bool, SECONDS, "pages that are merged again")
    undone = {row["name"]: row for row in kvmctl("-o", "json", "host", "restore").json()}
    assert undone[ksm.NODES]["result"] == "changed"
    assert settings() == before


def changed_by_kvmctl(kvmctl: Kvmctl) -> dict[str, Any]:
    found: dict[str, Any] = kvmctl("-c", "qemu:///system", "-o", "json", "ksm", "show").json()["changed_by_kvmctl"]
    return found


def test_the_default_pace_is_taken_back_and_a_foreign_change_is_not(kvmctl: Kvmctl, before: dict[str, str]) -> None:
    kvmctl("ksm", "enable")
    assert settings()["run"] == "1"
    again = kvmctl("-o", "json", "ksm", "enable").json()
    assert {row["result"] for row in again} == {"unchanged"}
    kvmctl("ksm", "enable", "--sleep-millisecs", 50)
    assert "sleep_millisecs" in changed_by_kvmctl(kvmctl)
    (ksm.ROOT / "sleep_millisecs").write_text("77")
    rows = {row["name"]: row for row in kvmctl("-o", "json", "ksm", "disable").json()}
    assert rows["sleep_millisecs"]["result"] == "not applied"
    assert "someone else 77" in rows["sleep_millisecs"]["reason"]
    assert settings()["sleep_millisecs"] == "77"
    (ksm.ROOT / "sleep_millisecs").write_text("50")
    kvmctl("ksm", "disable", "--force")
    (ksm.ROOT / "sleep_millisecs").write_text(before["sleep_millisecs"])
    assert settings() == before


def test_a_tick_leaves_ksm_to_who_switched_it_after_it_did(lab: Lab, before: dict[str, str], kvmctl: Kvmctl) -> None:
    def tick() -> dict[str, Any]:
        return {row["field"]: row for row in lab.run("rebalance") if row["name"] == "host"}

    (ksm.ROOT / "run").write_text("0")
    reserve = memory.read().available // MIB
    lab.policy_is(f"reserve: {reserve}MiB, overcommit: 10000%, cover: 0%, balloon: leave, swap: leave")
    assert tick()["ksm.run"]["result"] == "changed"
    assert settings()["run"] == "1"
    assert "ksm.run" not in tick()
    for foreign in ("0", "2"):
        (ksm.ROOT / "run").write_text(foreign)
        for _ in range(2):
            done = tick()["ksm.run"]
            assert (done["result"], done["reason"]) == ("not applied", f"somebody else has set {foreign}")
        assert settings()["run"] == foreign
    kvmctl("ksm", "disable", "--force")
    assert settings() == before | {"run": "0"}
