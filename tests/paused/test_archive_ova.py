"""Guests of this machine become OVAs, and OVAs guests."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from kvmctl.host import accelerator
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from tests.archives import Member, pack
from tests.conftest import Kvmctl
from tests.support import Guest

pytestmark = pytest.mark.paused

URI = "qemu:///system"
Pool = tuple[str, Path]


def run(kvmctl: Kvmctl, *words: object, code: int = 0) -> Any:
    ran = kvmctl("-c", URI, "--output", "json", *words, code=code)
    return ran.json()[0] if code == 0 else ran.err


@pytest.fixture(autouse=True)
def emulated(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That guests are emulated here counts as found out: it takes a while."""
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(state))
    accelerator.remember(accelerator.Verdict("tcg", "a test", proved=True))
    assert accelerator.remembered() is not None


@pytest.fixture
def guest(hypervisor: Hypervisor, make_name: Callable[..., str], pool: Pool) -> Guest:
    """A guest that is off, with a disk that has something on it."""
    name, image = make_name("ova"), pool[1] / "first.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 1M 2M", image], capture_output=True, check=True)
    text = (
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory><vcpu>2</vcpu>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features><devices>"
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{image}'/>"
        "<target dev='vda' bus='virtio'/></disk><interface type='network'><source network='default'/>"
        "<model type='e1000'/></interface></devices></domain>"
    )
    domains.define(hypervisor, name, text)
    return Guest(hypervisor, name)


def test_there_and_back(
    kvmctl: Kvmctl, hypervisor: Hypervisor, guest: Guest, make_name: Callable[..., str], pool: Pool, tmp_path: Path
) -> None:
    path = tmp_path / "a.ova"
    run(kvmctl, "export", guest.name, "--format", "ova", "-o", path)
    with tarfile.open(path) as tar:
        names = tar.getnames()
        assert names == [f"{guest.name}.ovf", f"{guest.name}.mf", f"{guest.name}-disk1.vmdk"]
        contents = {}
        for name in names:
            member = tar.extractfile(name)
            assert member is not None
            contents[name] = member.read()
    for name in (names[0], names[2]):
        assert f"SHA256({name})= {hashlib.sha256(contents[name]).hexdigest()}" in contents[names[1]].decode()
    shown = kvmctl("--output", "json", "inspect", path).json()
    assert (shown["guest"], shown["cpus"], shown["memory"]) == (guest.name, 2, 128 << 20)
    assert "default, e1000" in kvmctl("inspect", path).out
    copy = make_name("copy")
    row = run(kvmctl, "import", path, "--name", copy, "--pool", f"default={pool[0]}")
    assert (row["state"], row["files"]) == ("stopped", [str(pool[1] / f"{copy}-sda.qcow2")])
    compare = ["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", pool[1] / "first.qcow2", row["files"][0]]
    assert "identical" in subprocess.run(compare, capture_output=True, text=True, check=True).stdout
    root = ElementTree.fromstring(domains.definition(Guest(hypervisor, copy).domain))
    assert root.findtext("vcpu") == "2"
    assert root.findtext("memory") == str(128 * 1024)
    model = root.find("devices/interface/model")
    assert model is not None
    assert model.get("type") == "e1000"
    domains.start(Guest(hypervisor, copy).domain, paused=True)


def test_damage_and_ways_out(
    kvmctl: Kvmctl, hypervisor: Hypervisor, guest: Guest, pool: Pool, tmp_path: Path, make_name: Callable[..., str]
) -> None:
    path = tmp_path / "a.ova"
    run(kvmctl, "export", guest.name, "--format", "ova", "-o", path)
    with tarfile.open(path) as tar:
        members = []
        for name in tar.getnames():
            member = tar.extractfile(name)
            assert member is not None
            members.append(Member(name, member.read()))
    ovf, sums, disk = members
    evil = b'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 131072 FLAT "/etc/passwd" 0\n'
    lan = ovf.content.replace(b'"default"', b'"lan"').replace(b">default<", b">lan<")
    cases = {
        "a sum that is wrong": ([ovf, sums, Member(disk.name, disk.content[:-1] + b"\1")], 2),
        "no disk": ([ovf, sums], 2),
        "a disk twice": ([ovf, disk, disk], 2),
        "a text instead of a disk": ([ovf, Member(disk.name, evil)], 2),
        "a link instead of a disk": ([ovf, Member(disk.name, b"", tarfile.SYMTYPE, "/etc/passwd")], 2),
        "no OVF first": ([disk, ovf], 2),
        "a network that is not here": ([Member(ovf.name, lan), disk], 3),
    }
    before = (sorted(pool[1].rglob("*")), domains.names(hypervisor))
    for what, (found, code) in cases.items():
        path.write_bytes(pack(found))
        said = run(kvmctl, "import", path, "--name", make_name("x"), "--pool", f"default={pool[0]}", code=code)
        assert said, what
        assert before == (sorted(pool[1].rglob("*")), domains.names(hypervisor)), what
    path.write_bytes(pack(members)[:20000])
    run(kvmctl, "import", path, "--name", make_name("x"), "--pool", f"default={pool[0]}", code=2)
    assert before == (sorted(pool[1].rglob("*")), domains.names(hypervisor))


def test_what_an_ova_cannot_hold(kvmctl: Kvmctl, guest: Guest, tmp_path: Path) -> None:
    said = run(kvmctl, "export", guest.name, "--format", "ova", "--with-memory", "-o", tmp_path / "a", code=2)
    assert "no memory" in said
    assert list(tmp_path.glob("a*")) == []
