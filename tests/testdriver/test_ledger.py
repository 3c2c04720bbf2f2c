"""Ledgers and weights where the kernel cannot be asked, and where nothing runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmctl.control.weights import renew
from kvmctl.hypervisor.connection import open_hypervisor
from tests.conftest import Kvmctl
from tests.support import Screen

pytestmark = pytest.mark.testdriver

DEFAULT = "test:///default"


@pytest.fixture
def empty(tmp_path: Path) -> str:
    """The URI of a hypervisor without guests: 4 CPUs and 8 GiB."""
    path = tmp_path / "empty.xml"
    path.write_text(
        "<node><cpu><mhz>2000</mhz><active>4</active><nodes>1</nodes><sockets>1</sockets><cores>4</cores>"
        "<threads>1</threads></cpu><memory>8388608</memory></node>"
    )
    return f"test://{path}"


def test_weights_need_a_scheduler_that_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(tmp_path / "state"))
    with open_hypervisor(DEFAULT) as hypervisor:
        before = hypervisor.connection.lookupByName("test").XMLDesc(0)
        (outcome,) = renew(hypervisor)
        assert (outcome.result, outcome.reason) == ("unchanged", "this hypervisor has no CPU weights")
        assert outcome.found is None
        assert hypervisor.connection.lookupByName("test").XMLDesc(0) == before
    assert not (tmp_path / "state").exists()


def test_no_guests_no_weights(empty: str) -> None:
    with open_hypervisor(empty) as hypervisor:
        assert renew(hypervisor) == ()


@pytest.mark.parametrize("noun", ["cpu", "memory"])
def test_what_the_kernel_knows_is_unknown_elsewhere(kvmctl: Kvmctl, noun: str) -> None:
    ran = kvmctl("-c", DEFAULT, "-o", "json", noun)
    (guest,) = ran.json()["guests"]
    unknown = {"cpu": ("weight", "steal"), "memory": ("resident", "shared", "swapped", "usable", "used")}[noun]
    assert [guest[key] for key in unknown] == [None] * len(unknown)
    assert "not this machine's hypervisor" in ran.err


def test_a_test_drivers_promises_count(kvmctl: Kvmctl) -> None:
    document = kvmctl("-c", DEFAULT, "-o", "json", "cpu", "--sample", "0").json()
    assert document["host"] == {
        "cores": 16, "capacity": 16.0, "reserved": 0.0, "free": 16.0, "sampled_seconds": 0.0,
    }  # fmt: skip
    (guest,) = document["guests"]
    assert (guest["name"], guest["shares"], guest["limit"], guest["entitlement"]) == ("test", 2000, None, 2.0)
    assert guest["bound"] == "vcpus"


def test_an_account_of_a_test_drivers_guest(kvmctl: Kvmctl) -> None:
    ran = kvmctl("-c", DEFAULT, "cpu", "--sample", "0", "--explain", "test")
    assert ran.out.splitlines() == [
        f"{DEFAULT}: 16 cores, 0 reserved, 16 free to reserve",
        "test is entitled to 2 cores, bound by vcpus: its 2 vCPUs can use 2 cores",
        "      16  by shares alone, 2000 of 2000",
        "     -14  to nobody: test has 2 vCPUs",
        "       2  in all",
        "while every guest wants all it can use: 2 cores, bound by vcpus; weight 2000",
    ]
    document = kvmctl("-c", DEFAULT, "-o", "json", "cpu", "--sample", "0", "--explain", "test").json()
    assert list(document) == ["uri", "host", "guest"]
    assert document["guest"]["transfers"] == [
        {"guest": None, "cores": -14.0, "bound": "vcpus", "why": "test has 2 vCPUs"}
    ]
    assert kvmctl("-c", DEFAULT, "-o", "name", "cpu", "--sample", "0", "--explain", "test").out == "test\n"


@pytest.mark.parametrize("name", ["tes", "", "1", "te*", "tést", "-x"])
def test_nobody_to_account_for(kvmctl: Kvmctl, name: str) -> None:
    ran = kvmctl("-c", DEFAULT, "cpu", "--explain", name, code=3)
    assert f"there is no guest {name!r} on {DEFAULT}" in ran.err
    assert not ran.out


def test_an_empty_ledger_names_the_hypervisor(kvmctl: Kvmctl, empty: str) -> None:
    cpu, memory = kvmctl("-c", empty, "cpu"), kvmctl("-c", empty, "memory")
    assert cpu.out == f"{empty}: 4 cores, 0 reserved, 4 free to reserve; no running guests\n"
    said = "8GiB of memory, 7.6GiB for guests, 0B of that reserved, overcommit 0%; no running guests"
    assert memory.out == f"{empty}: {said}\n"
    assert kvmctl("-c", empty, "-o", "json", "cpu").json()["guests"] == []
    assert kvmctl("-c", empty, "-o", "name", "memory").out == ""


@pytest.mark.parametrize("text", ["", "5x", "-1s", "1e3s", "3601s", "９s", "99999999999999s", "1 s"])
def test_a_bad_duration_is_a_usage_error(kvmctl: Kvmctl, text: str) -> None:
    assert "is not a duration: write 1s or 500ms" in kvmctl("-c", DEFAULT, "cpu", "--sample", text, code=2).err


def test_the_memory_ledger_fits_a_terminal_of_80_columns_in_two_tables(kvmctl: Kvmctl, screen: Screen) -> None:
    screen.start("-c", DEFAULT, "memory", env={"COLUMNS": "80"})
    assert screen.wait() == 0
    lines = screen.text.splitlines()
    assert max(map(len, lines[:-1])) <= 80, "but for the note, which is no part of the ledger"
    titles = [line.split() for line in lines if line.startswith("NAME")]
    (whole,) = (line.split() for line in kvmctl("-c", DEFAULT, "memory").out.splitlines() if line.startswith("NAME"))
    assert sorted(titles[0] + titles[1][1:]) == sorted(whole)
    assert whole[-2:] == ["RESERVED", "SHARES"]
