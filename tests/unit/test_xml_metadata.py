"""What libvirt cannot say: stored, read back, and robust against what others wrote there."""

import math
from dataclasses import replace

import pytest

from kvmctl.model.defaults import fill
from kvmctl.model.errors import UsageError
from kvmctl.model.spec import CloudInitSpec, CpuSpec, GuestSpec, MemorySpec, PassedSpec
from kvmctl.model.units import GIB, MIB
from kvmctl.policy.promise import promise_of
from kvmctl.xml import metadata
from kvmctl.xml.edit import edit
from kvmctl.xml.metadata import Metadata
from kvmctl.xml.parse import parse
from kvmctl.xml.render import render
from tests.golden.specs import TCG

pytestmark = pytest.mark.unit

SAID = GuestSpec(
    "web1",
    cpu=CpuSpec(shares=20_000, reservation=0.5),
    memory=MemorySpec(reservation=512 * MIB, shares="low", swap=False),
    rebalance=False,
    project="shop",
    labels=(("env", "prod"), ("role", "a \"b\" <c> & 'd'")),
    cloud_init=CloudInitSpec(hostname="web1", ssh_keys=("/k1", "/k2"), seed="/srv/seed.iso", digest="ab"),
)


def domain(body: str = "", guest: str = "") -> str:
    said = f"<metadata><k:guest xmlns:k='{metadata.NAMESPACE}'{guest}</k:guest></metadata>" if guest else ""
    return f"<domain type='qemu'><name>web1</name>{said}{body}</domain>"


def test_everything_comes_back() -> None:
    found = metadata.read(render(fill(SAID, TCG), TCG))
    assert found == Metadata(
        cpu_shares=20_000,
        cpu_reservation=0.5,
        memory_reservation=512 * MIB,
        memory_shares="low",
        swap=False,
        rebalance=False,
        project="shop",
        labels=SAID.labels or (),
        cloud_init=SAID.cloud_init,
    )


def test_a_domain_without_any_has_the_defaults() -> None:
    assert metadata.read(domain()) == Metadata()


@pytest.mark.parametrize(
    ("guest", "word"),
    [
        ("><k:cpu reservation='much'/>", "cpu reservation"),
        ("><k:cpu reservation='nan'/>", "cpu reservation"),
        ("><k:cpu reservation='-1'/>", "cpu reservation"),
        ("><k:cpu shares='0'/>", "cpu shares"),
        ("><k:cpu shares='99999999999999999999999'/>", "cpu shares"),
        ("><k:memory reservation='512'/>", "memory reservation"),
        ("><k:memory shares='enormous'/>", "memory shares"),
        ("><k:memory swap='maybe'/>", "memory swap"),
        (" rebalance='maybe'>", "rebalance"),
    ],
)
def test_what_cannot_be_read_is_a_note_and_unsaid(guest: str, word: str) -> None:
    parsed = parse(domain(guest=guest))
    assert len(parsed.notes) == 1
    assert word in parsed.notes[0]
    assert parsed.spec == parse(domain()).spec
    assert metadata.promise(domain(guest=guest)) == metadata.promise(domain())


def test_what_a_newer_version_wrote_is_kept() -> None:
    newer = " project='a' future='1'><k:cpu reservation='0.5' burst='2'/><k:quantum spin='up'>x</k:quantum>"
    text = domain("<vcpu>2</vcpu>", newer)
    edited = edit(text, GuestSpec("web1", cpu=CpuSpec(reservation=0.0), project=""), TCG)
    for kept in ('future="1"', 'burst="2"', '<k:quantum spin="up">x</k:quantum>'):
        assert kept in edited
    for gone in ("reservation", "project"):
        assert gone not in edited


def test_the_element_goes_when_nothing_is_left_in_it() -> None:
    text = domain("<vcpu>2</vcpu>", "><k:cpu reservation='0.5'/><k:memory swap='no'/>")
    wish = GuestSpec("web1", cpu=CpuSpec(reservation=0.0), memory=MemorySpec(swap=True))
    assert edit(text, wish, TCG) == domain("<vcpu>2</vcpu>").replace("'", '"')


@pytest.mark.parametrize(
    ("shares", "vcpus", "written", "stored"),
    [
        (2000, 1, 2000, None),
        ("normal", 2, 2000, "normal"),
        ("high", 8, 10_000, "high"),
        (1, 1, 2, 1),
        (300_000, 1, 10_000, 300_000),
    ],
)
def test_shares_that_libvirt_cannot_say(shares: int | str, vcpus: int, written: int, stored: int | str | None) -> None:
    spec = GuestSpec("web1", cpu=CpuSpec(count=vcpus, shares=shares))  # type: ignore[arg-type]
    text = render(fill(spec, TCG), TCG)
    assert f"<shares>{written}</shares>" in text
    assert metadata.read(text).cpu_shares == stored
    assert parse(text).spec.cpu.shares == shares


def test_only_the_opt_out_of_rebalancing_is_stored() -> None:
    said = render(fill(GuestSpec("web1", rebalance=True), TCG), TCG)
    assert "rebalance" not in said
    assert parse(said).spec.rebalance is None
    out = edit(said, GuestSpec("web1", rebalance=False), TCG)
    assert parse(out).spec.rebalance is False
    assert metadata.promise(out).rebalance is False
    assert metadata.promise(said).rebalance is True


def test_virsh_has_the_last_word_on_shares() -> None:
    text = render(fill(GuestSpec("web1", cpu=CpuSpec(shares=20_000)), TCG), TCG)
    changed = text.replace("<shares>10000</shares>", "<shares>512</shares>")
    assert parse(changed).spec.cpu.shares == 512
    assert metadata.promise(changed).cpu_shares == 512


def test_a_promise_resolves_levels() -> None:
    said = GuestSpec(
        "web1",
        cpu=CpuSpec(count=2, shares="high", limit=1.5),
        memory=MemorySpec(size=GIB, shares="low"),
        project="shop",
    )
    text = render(fill(said, TCG), TCG)
    promise = metadata.promise(text)
    assert (promise.cpu_shares, promise.cpu_limit, promise.memory_shares) == (4000, 1.5, 5 * 1024)
    assert metadata.promise(text, vcpus=1).cpu_shares == 2000


def test_a_promise_of_a_foreign_guest() -> None:
    promise = metadata.promise(domain("<memory unit='MiB'>512</memory><vcpu>4</vcpu>"))
    assert (promise.cpu_shares, promise.cpu_limit, promise.memory_shares) == (4000, math.inf, 5120)
    assert (promise.sharing, promise.swap, promise.rebalance) == (True, True, True)


@pytest.mark.parametrize(
    ("inside", "pinned"),
    [
        ("", 0),
        ("<memoryBacking><source type='memfd'/></memoryBacking>", 0),
        ("<memoryBacking><hugepages/></memoryBacking>", 512 * MIB),
        ("<memoryBacking><locked/></memoryBacking>", 512 * MIB),
        ("<devices><interface type='hostdev'/></devices>", 512 * MIB),
    ],
)
def test_a_promise_says_what_nobody_can_take_from_the_guest(inside: str, pinned: int) -> None:
    sizes = "<memory unit='MiB'>512</memory><currentMemory unit='MiB'>256</currentMemory>"
    found = metadata.promise(f"<domain><name>a</name>{sizes}{inside}</domain>")
    assert (found.memory_pinned, found.memory_kept, found.memory_reservation) == (pinned, pinned, 0)


def test_a_spec_promises_the_same_of_pinned_memory() -> None:
    size = MemorySpec(size=256 * MIB, max=512 * MIB)
    assert promise_of(GuestSpec("a", memory=size)).memory_kept == 0
    assert promise_of(GuestSpec("a", memory=size, passthrough=())).memory_kept == 0
    given = (PassedSpec(pci="0000:01:00.0"),)
    assert promise_of(GuestSpec("a", memory=size, passthrough=given)).memory_kept == 512 * MIB
    assert promise_of(GuestSpec("a", memory=replace(size, hugepages=2 * MIB))).memory_kept == 512 * MIB


def test_a_quota_for_each_vcpu_is_a_limit_too() -> None:
    tune = "<cputune><period>50000</period><quota>25000</quota></cputune>"
    promise = metadata.promise(domain(f"<vcpu>4</vcpu>{tune}"))
    assert promise.cpu_limit == 2.0
    assert metadata.promise(domain(f"<vcpu>4</vcpu>{tune}"), vcpus=2).cpu_limit == 1.0


def test_what_set_metadata_takes_has_no_namespace() -> None:
    bare = metadata.extract(render(fill(SAID, TCG), TCG)) or ""
    assert "xmlns" not in bare
    assert "kvmctl" not in bare
    assert bare.startswith('<guest project="shop" rebalance="no">')
    qualified = bare.replace("<guest", f"<guest xmlns='{metadata.NAMESPACE}'")
    again = f"<domain><metadata>{qualified}</metadata><cputune><shares>10000</shares></cputune></domain>"
    assert metadata.read(again) == metadata.read(render(fill(SAID, TCG), TCG))


def test_nothing_to_store_is_nothing() -> None:
    plain = render(fill(GuestSpec("web1", cpu=CpuSpec(shares=1000)), TCG), TCG)
    assert metadata.extract(plain) is None
    assert "<metadata>" not in plain


def test_only_a_domain_has_metadata() -> None:
    with pytest.raises(UsageError, match="network"):
        metadata.read("<network/>")
