import math
from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmctl.model.data import as_data
from kvmctl.model.errors import FileError
from kvmctl.model.guestfile import dump
from kvmctl.model.spec import (
    BootSpec,
    CloudInitSpec,
    ConsoleSpec,
    CpuSpec,
    DiskSpec,
    GuestFile,
    GuestSpec,
    MemorySpec,
)
from kvmctl.model.units import GIB
from tests.guestfiles import FULL, WEB1, read
from tests.strategies import PRINTABLE, guest_names, guest_specs

pytestmark = pytest.mark.unit


WEB1_DATA = {
    "name": "web1",
    "description": "The first,\n  and the best.\n",
    "labels": {"env": "prod", "role": "web"},
    "accelerator": "auto",
    "cpu": {
        "count": 2,
        "max": 4,
        "shares": 2000,
        "limit": 1.5,
        "reservation": 0.5,
        "pin": "0-1,3",
        "emulator-pin": "0-1",
        "model": "host-passthrough",
    },
    "memory": {
        "size": "1GiB",
        "max": "2GiB",
        "reservation": "512MiB",
        "shares": "high",
        "sharing": True,
        "swap": False,
        "hugepages": False,
    },
    "boot": {
        "kernel": "/boot/vmlinuz",
        "initrd": "/boot/initrd",
        "cmdline": "console=ttyS0",
        "order": ["disk", "network"],
        "firmware": "bios",
        "machine": "q35",
    },
    "disks": [
        {
            "volume": "web1.qcow2",
            "pool": "fast",
            "size": "10GiB",
            "format": "qcow2",
            "base": "debian12.qcow2",
            "bus": "virtio",
            "cache": "none",
        },
        {"path": "/dev/vg0/data", "bus": "scsi", "target": "sdb", "read-only": True},
        {"bus": "sata", "device": "cdrom"},
    ],
    "nics": [
        {"network": "default", "model": "virtio", "mac": "52:54:00:ab:cd:ef"},
        {"bridge": "br0"},
        {"user": True},
    ],
    "cloud-init": {
        "hostname": "web1",
        "user": "admin",
        "ssh-keys": ["/root/.ssh/id_ed25519.pub", "ssh-ed25519 AAAAC3Nz someone"],
        "network-config": "/etc/kvmctl/net.yaml",
    },
    "console": {"log": "/var/log/guest.log"},
    "vnc": {"listen": "0.0.0.0", "port": 5901},
    "agent": True,
    "rng": True,
    "autostart": True,
    "rebalance": False,
    "state": "paused",
}


def test_data_has_the_spelling_and_the_order_of_the_file() -> None:
    data = as_data(WEB1)
    assert data == WEB1_DATA
    assert list(data) == list(WEB1_DATA)


@pytest.mark.parametrize(
    ("console", "shown"),
    [
        (ConsoleSpec(), True),
        (ConsoleSpec(enabled=False), False),
        (ConsoleSpec(enabled=False, log="/l"), {"enabled": False, "log": "/l"}),
    ],
)
def test_a_switch_is_written_short_where_it_can_be(console: ConsoleSpec, shown: object) -> None:
    assert as_data(GuestSpec("g", console=console)) == {"name": "g", "console": shown}


def test_what_is_recorded_of_a_seed_is_not_said_in_a_file() -> None:
    seed = CloudInitSpec(hostname="g", seed="/s.iso", digest="00")
    assert as_data(GuestSpec("g", cloud_init=seed)) == {"name": "g", "cloud-init": {"hostname": "g"}}


def test_a_written_file_is_readable() -> None:
    spec = GuestSpec(
        "web1",
        CpuSpec(count=2, limit=math.inf, pin=""),
        MemorySpec(size=GIB),
        disks=(DiskSpec(volume="web1.qcow2", size=10 * GIB),),
        description="yes",
    )
    other = GuestSpec("b", description="Two lines,\n  the second indented.\n")
    assert dump([spec, other], "shop", {"web1": ["not expressed: <x>\nand\x1b y", ""]}) == (
        "project: shop\n"
        "guests:\n"
        "  # not expressed: <x>\n"
        "  # and? y\n"
        "  - name: web1\n"
        "    description: 'yes'\n"
        "    cpu: {count: 2, limit: unlimited, pin: none}\n"
        "    memory: {size: 1GiB}\n"
        "    disks:\n"
        "    - {volume: web1.qcow2, size: 10GiB}\n"
        "  - name: b\n"
        "    description: |\n"
        "      Two lines,\n"
        "        the second indented.\n"
    )


def test_no_guests_are_written_as_such() -> None:
    assert dump([]) == "guests: []\n"
    assert read(dump([], "shop")) == GuestFile((), "shop")


@given(st.lists(guest_specs(), max_size=3, unique_by=lambda spec: spec.name), st.none() | guest_names)
@settings(max_examples=80)
def test_what_is_dumped_is_loaded_back(specs: list[GuestSpec], project: str | None) -> None:
    seen: set[str] = set()
    for spec in specs:  # a MAC address, or a device of the host, belongs to one guest
        passed = spec.passthrough or ()
        found = {nic.mac for nic in spec.nics or () if nic.mac}
        found |= {name for one in passed for name in (one.pci, one.mdev, one.mac) if name}
        if seen & found:
            return
        seen |= found
    comments = {spec.name: [spec.description or "", "a\nb: c"] for spec in specs}
    text = dump(specs, project, comments)
    assert read(text) == GuestFile(tuple(replace(spec, project=project) for spec in specs), project)
    assert yaml.safe_load(text)["guests"] == [as_data(spec) for spec in specs]


@given(st.text(PRINTABLE | st.sampled_from("\n\t :#'\"|>-\u2028\u2029\ufeff\u00a0"), max_size=300))
@settings(max_examples=1000)
def test_any_description_survives(text: str) -> None:
    spec = GuestSpec("g", description=text, boot=BootSpec(kernel="/k", cmdline=text))
    assert read(dump([spec])).guests == (spec,)


def only_guest_file_errors(data: bytes) -> None:
    refused: FileError | None = None
    try:
        file = read(data)
    except FileError as error:
        refused = error
    if refused is None:
        assert read(dump(file.guests, file.project)) == file
    else:
        assert refused.problems
        assert all(problem.line >= 0 and "\n" not in problem.message for problem in refused.problems)


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    only_guest_file_errors(data)


@given(st.text(st.sampled_from("{}[],:&*!<|>'\"%@`?-~ \t\n#ag1=\\.0é"), max_size=120))
@settings(max_examples=300)
def test_any_punctuation_is_read_or_refused(text: str) -> None:
    only_guest_file_errors(text.encode())
    only_guest_file_errors(f"guests:\n  - name: g\n    {text}".encode())


@given(st.data())
@settings(max_examples=300)
def test_a_mutated_file_is_read_or_refused(data: st.DataObject) -> None:
    text = FULL.encode()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 30)))
    piece = data.draw(st.binary(max_size=8) | st.sampled_from([b"&a ", b"*a", b"<<: ", b"- ", b": ", b"[", b"{", b"~"]))
    only_guest_file_errors(text[:start] + piece + text[end:])


def nodes(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    keys = st.sampled_from([
        "name", "guests", "defaults", "project", "cpu", "count", "memory", "size", "boot", "order", "disks", "path",
        "nics", "user", "mac", "labels", "console", "vnc", "enabled", "cloud-init", "ssh-keys", "<<",
    ])  # fmt: skip
    lists = st.lists(inner, max_size=4).map(lambda items: "[" + ", ".join(items) + "]")
    maps = st.lists(st.tuples(keys, inner), max_size=5).map(
        lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
    )
    return lists | maps


@given(st.recursive(st.sampled_from(["~", "g", "2", "''", "true"]), nodes, max_leaves=25))
@settings(max_examples=200)
def test_known_keys_with_any_kind_of_value_are_read_or_refused(text: str) -> None:
    only_guest_file_errors(text.encode())
    only_guest_file_errors(f"defaults: {text}\nguests: {text}".encode())
