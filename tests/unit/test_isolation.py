"""What the doctor says of the walls between guests, from files as the kernel has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kvmctl.control.doctor.isolation import cpu_weaknesses, merging, process_checks, shared_memory
from kvmctl.host.isolation import Isolation, read

pytestmark = pytest.mark.unit

SAFE = Isolation(
    uid=64055,
    capabilities=0,
    sandboxed=True,
    no_new_privileges=True,
    own_mounts=True,
    label="libvirt-8d3f",
    devices=("c 1:3 rw",),
    cgroup_version=1,
    open_files=40,
    open_files_limit=1024,
)


def process(root: Path, *, limit: str = "1024", rules: str = "c 1:3 rw\nc 1:5 rw\n") -> Path:
    """A /proc with process 42 in it, and its device control group."""
    proc, group = root / "proc", root / "devices"
    for folder in (proc / "42/attr", proc / "42/fd", proc / "42/ns", proc / "self/ns", group / "machine/g"):
        folder.mkdir(parents=True)
    (proc / "42/status").write_text(
        "Name:\tqemu\nUid:\t64055\t64055\t64055\t64055\nCapEff:\t0000000000000001\nNoNewPrivs:\t1\nSeccomp:\t2\n"
    )
    (proc / "42/limits").write_text(f"Limit  Soft Limit  Hard Limit\nMax open files   {limit}   {limit}   files\n")
    (proc / "42/attr/current").write_text("libvirt-8d3f (enforce)\n")
    for number in range(3):
        (proc / f"42/fd/{number}").touch()
    (proc / "42/ns/mnt").symlink_to("mnt:[2]")
    (proc / "self/ns/mnt").symlink_to("mnt:[1]")
    (proc / "42/cgroup").write_text("5:devices:/machine/g\n3:cpu,cpuacct:/machine/g\n")
    (proc / "self/mountinfo").write_text(f"30 20 0:26 / {group} rw - cgroup cgroup rw,devices\n")
    (group / "machine/g/devices.list").write_text(rules)
    return proc


def test_a_process_is_read(tmp_path: Path) -> None:
    found = read(42, process(tmp_path))
    assert found == replace(SAFE, capabilities=1, devices=("c 1:3 rw", "c 1:5 rw"), open_files=3, label="libvirt-8d3f")
    assert found is not None
    assert found.all_devices is False


def test_a_process_without_walls_is_read(tmp_path: Path) -> None:
    proc = process(tmp_path, limit="unlimited", rules="a *:* rwm\n")
    (proc / "42/attr/current").write_text("unconfined\n")
    (proc / "42/status").write_text("Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\nNoNewPrivs:\t0\nSeccomp:\t0\n")
    found = read(42, proc)
    assert found is not None
    assert (found.uid, found.sandboxed, found.label, found.all_devices) == (0, False, "", True)
    assert found.open_files_limit is None
    results = {check.name: check.result for check in process_checks("g", found)}
    assert {name for name, result in results.items() if result == "warn"} == {
        "g: user", "g: capabilities", "g: sandbox", "g: devices", "g: label",
    }  # fmt: skip


def test_a_process_that_is_gone_is_none(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    assert read(42, tmp_path / "proc") is None


def test_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "proc/42").mkdir(parents=True)
    (tmp_path / "proc/42/status").write_text("Name:\tqemu\n")
    found = read(42, tmp_path / "proc")
    assert found is not None
    assert (found.uid, found.sandboxed, found.own_mounts, found.devices, found.open_files) == (None,) * 5
    checks = {check.name: check for check in process_checks("g", found)}
    assert all(check.result in ("unknown", "warn") for check in checks.values())
    assert checks["g: sandbox"].result == "unknown"


@pytest.mark.parametrize(
    ("changed", "name", "words"),
    [
        ({"uid": 0}, "g: user", "root"),
        ({"sandboxed": False}, "g: sandbox", "seccomp_sandbox"),
        ({"own_mounts": False}, "g: own /dev", "namespaces"),
        ({"devices": ("a *:* rwm",)}, "g: devices", "cgroup_controllers"),
        ({"label": ""}, "g: label", "security_driver"),
        ({"open_files": 900}, "g: open files", "max_files = 2048"),
    ],
)
def test_each_missing_wall_says_what_to_change(changed: dict[str, object], name: str, words: str) -> None:
    assert {check.result for check in process_checks("g", SAFE)} == {"ok"}
    (found,) = [check for check in process_checks("g", replace(SAFE, **changed)) if check.result != "ok"]  # type: ignore[arg-type]
    assert found.name == name
    assert words in found.found + found.next


def test_weaknesses_of_the_processor(tmp_path: Path) -> None:
    folder = tmp_path / "sys/devices/system/cpu/vulnerabilities"
    folder.mkdir(parents=True)
    for name, text in (
        ("meltdown", "Not affected"), ("mds", "Vulnerable: no microcode"),
        ("l1tf", "Mitigation: PTE Inversion; VMX: SMT vulnerable"),
    ):  # fmt: skip
        (folder / name).write_text(f"{text}\n")
    found = {check.name: check for check in cpu_weaknesses(tmp_path)}
    assert {name: check.result for name, check in found.items()} == {
        "cpu mds": "warn", "cpu l1tf": "warn", "cpu weaknesses": "ok",
    }  # fmt: skip
    assert "nosmt" in found["cpu l1tf"].next
    assert [check.result for check in cpu_weaknesses(tmp_path / "none")] == ["unknown"]


def test_merging_is_a_side_channel(tmp_path: Path) -> None:
    assert merging(tmp_path / "none").result == "ok"


@pytest.mark.parametrize(
    ("body", "results"),
    [
        ("", {"g: shared memory": "ok", "g: merging": "ok"}),
        (
            "<memoryBacking><access mode='shared'/></memoryBacking>",
            {"g: shared memory": "warn", "g: merging": "ok"},
        ),
        ("<devices><shmem name='chat'/></devices>", {"g: shmem": "warn", "g: merging": "ok"}),
    ],
)
def test_memory_that_others_can_map(body: str, results: dict[str, str]) -> None:
    root = ElementTree.fromstring(f"<domain>{body}</domain>")
    assert {check.name: check.result for check in shared_memory("g", root)} == results


def test_a_kernel_without_labels_answers_with_an_error(tmp_path: Path) -> None:
    proc = process(tmp_path)
    (proc / "42/attr/current").unlink()
    (proc / "42/attr/current").mkdir()
    found = read(42, proc)
    assert found is not None
    assert found.label == ""
