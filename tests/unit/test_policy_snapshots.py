from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, RefusedError, UsageError
from kvmctl.model.guest_disk import GuestDisk, GuestFacts, Snapshot
from kvmctl.policy import snapshots as policy
from kvmctl.policy.snapshots import Recipe

pytestmark = pytest.mark.unit

QCOW2 = GuestDisk("vda", "/pool/a.qcow2", "qcow2")
RAW = GuestDisk("vdb", "/pool/b.raw", "raw")
OFF = GuestFacts("web1", "u", "stopped", (QCOW2,))
ON = replace(OFF, state="running")


def snap(name: str, parent: str | None = None, kind: str = "internal", **more: object) -> Snapshot:
    memory = bool(more.get("memory", False))
    return Snapshot(name, parent, False, int(name, 36), "running", kind, memory, "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("guest", "memory", "existing", "kind"),
    [
        (OFF, None, [], Recipe("internal", False)),
        (OFF, False, [], Recipe("internal", False)),
        (ON, None, [], Recipe("internal", True)),
        (ON, True, [snap("a")], Recipe("internal", True)),
        (ON, False, [], Recipe("external", False)),
        (OFF, None, [snap("a", kind="external")], Recipe("external", False)),
        (replace(OFF, disks=(QCOW2, RAW)), None, [], Recipe("external", False)),
        (replace(OFF, flash=True), None, [], Recipe("external", False)),
        (replace(ON, flash=True, disks=(RAW,)), False, [], Recipe("external", False)),
        (replace(ON, disks=()), True, [], Recipe("internal", True)),
    ],
)
def test_the_kind_that_keeps_what_is_wanted(
    guest: GuestFacts, memory: bool | None, existing: list[Snapshot], kind: Recipe
) -> None:
    assert policy.choose(guest, memory, existing) == kind


@pytest.mark.parametrize(
    ("guest", "memory", "existing", "said"),
    [
        (OFF, True, [], "no memory to keep"),
        (replace(ON, flash=True, disks=(QCOW2, RAW), passthrough=True), True, [], "UEFI.*\n.*vdb is raw"),
        (replace(ON, passthrough=True), None, [], "device of the host"),
        (ON, None, [snap("a", kind="external")], "external snapshots already"),
        (ON, False, [snap("a")], "cut off"),
        (replace(OFF, disks=()), None, [], "no disk"),
        (replace(ON, disks=(GuestDisk("vda", None, "raw"),)), False, [], "not a file of this host"),
        (replace(ON, disks=(GuestDisk("vda", "/dev/x", "raw", True),)), False, [], "/dev/x"),
    ],
)
def test_what_cannot_be_kept_is_named_at_once(
    guest: GuestFacts, memory: bool | None, existing: list[Snapshot], said: str
) -> None:
    with pytest.raises((RefusedError, ConflictError), match=f"(?s){said}"):
        policy.choose(guest, memory, existing)


facts = st.builds(
    GuestFacts,
    name=st.just("g"),
    uuid=st.just("u"),
    state=st.sampled_from(["running", "paused", "stopped", "crashed"]),
    disks=st.lists(st.sampled_from([QCOW2, RAW, GuestDisk("vdc", None, "raw")]), unique=True).map(tuple),
    flash=st.booleans(),
    passthrough=st.booleans(),
)
trees = st.lists(st.sampled_from("abcdef"), unique=True).flatmap(
    lambda names: st.tuples(
        *(
            st.builds(
                snap,
                st.just(name),
                st.sampled_from([None, "gone", *names[:index]]),
                st.sampled_from(["internal", "external"]),
            )
            for index, name in enumerate(names)
        )
    ).map(list)
)


@given(facts, st.sampled_from([None, True, False]), trees)
def test_kinds_are_never_mixed(guest: GuestFacts, memory: bool | None, existing: list[Snapshot]) -> None:
    try:
        recipe = policy.choose(guest, memory, existing)
    except KvmctlError:
        return
    assert recipe.memory <= guest.active
    if recipe.kind == "external":
        assert not any(one.kind == "internal" for one in existing)
        assert all(disk.path for disk in guest.disks)
    elif recipe.memory or existing:
        assert not any(one.kind == "external" for one in existing)
    if recipe.kind == "internal":
        assert all(disk.format == "qcow2" for disk in guest.disks)


@given(trees)
def test_a_list_has_each_once_under_its_parent(existing: list[Snapshot]) -> None:
    found = policy.ordered(existing)
    assert sorted(one.name for one, _depth in found) == sorted(one.name for one in existing)
    depth = {one.name: depth for one, depth in found}
    place = {one.name: index for index, (one, _depth) in enumerate(found)}
    for one in existing:
        if one.parent in depth:
            assert depth[one.name] == depth[one.parent or ""] + 1
            assert place[one.name] > place[one.parent or ""]
        else:
            assert depth[one.name] == 0


def test_the_way_back() -> None:
    chain = [snap("a", kind="external"), snap("b", "a", "external")]
    policy.check_revert(OFF, chain[1], chain)
    policy.check_revert(ON, snap("a"), [snap("a"), snap("b", "a")])
    with pytest.raises(RefusedError, match=r"later ones.*b"):
        policy.check_revert(OFF, chain[0], chain)
    with pytest.raises(ConflictError, match="is running"):
        policy.check_revert(ON, chain[1], chain)
    with pytest.raises(RefusedError, match="not in its images"):
        policy.check_revert(OFF, snap("i"), [snap("i"), snap("x", "i", "external")])
    with pytest.raises(RefusedError, match="memory in a file"):
        policy.check_revert(OFF, snap("m", kind="external", memory=True), [])


def test_names() -> None:
    assert policy.check_snapshot_name("before-12.5_x") == "before-12.5_x"
    for wrong in ("", "a/b", "..", "-x", "a b", "1", "x" * 64, "ä"):
        with pytest.raises(UsageError):
            policy.check_snapshot_name(wrong)
    with pytest.raises(NotFoundError, match="known: a"):
        policy.find("b", "web1", [snap("a")])
    assert policy.overlay_path("web1", "vda", "s", "/pool/x.qcow2") == "/pool/web1-vda.s.qcow2"
