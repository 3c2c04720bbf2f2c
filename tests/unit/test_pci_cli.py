"""The commands, on machines of files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvmctl.cli.main import cli
from kvmctl.cli.output import table
from kvmctl.cli.pci import _DEVICES, _shown
from kvmctl.control import pci
from kvmctl.host.journal import Journal
from kvmctl.model.errors import EXIT_PENDING, KvmctlError, PartialError, RefusedError
from kvmctl.model.pci import GuestUse
from tests.pcihost import FUNCTIONS, desktop, server
from tests.trees import fill
from tests.unit.test_pci_bind import AUDIO, GPU, NIC, Desk

pytestmark = pytest.mark.unit

PF = "0000:07:00.0"
Sit = Callable[[Desk], Desk]


@pytest.fixture
def sit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sit:
    """Let the commands see a machine of files, and no libvirt."""

    def make(desk: Desk) -> Desk:
        monkeypatch.setenv("KVMCTL_STATE_DIR", str(tmp_path))
        monkeypatch.setenv("KVMCTL_RUN_DIR", str(tmp_path / "run"))
        monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
        monkeypatch.setattr("os.geteuid", lambda: 0)
        monkeypatch.setattr("kvmctl.cli.pci.hypervisor_or_error", lambda _app: (None, None))
        monkeypatch.setattr("kvmctl.host.pci_kernel.Kernel", lambda: desk.kernel)
        real = pci.observe

        def observe(guests: pci.Guests, *_place: object, probe: bool = False) -> pci.Machine:
            return real(guests, desk.host.root, desk.host.addresses, probe)

        monkeypatch.setattr("kvmctl.control.pci.observe", observe)
        return desk

    return make


def run(*words: str) -> int:
    return int(cli.main(words, standalone_mode=False) or 0)


def test_companions_are_named_and_need_a_yes(tmp_path: Path, sit: Sit, capsys: pytest.CaptureFixture[str]) -> None:
    desk = sit(Desk(tmp_path))
    with pytest.raises(RefusedError, match=rf"binding takes {AUDIO} as well, and needs a yes") as caught:
        run("pci", "bind", "01:00.0")
    assert "--yes" in caught.value.hint
    assert f"{AUDIO} goes too: group 1, driver snd_hda_intel" in capsys.readouterr().err
    assert desk.is_untouched()
    assert run("pci", "bind", "01:00.0", "--yes", "-o", "json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[1] == {
        "name": AUDIO, "old": "snd_hda_intel", "wanted": "vfio-pci", "found": "vfio-pci", "result": "changed",
        "reason": "",
    }  # fmt: skip
    assert desk.host.drivers(GPU, AUDIO) == ["vfio-pci", "vfio-pci"]
    assert run("pci", "bind", "01:00.0", "01:00.1") == 0
    assert run("pci", "release", "01:00.1", "-o", "name") == 0
    assert capsys.readouterr().out.split()[-2:] == [AUDIO, GPU]
    assert desk.is_untouched()


def test_a_yes_does_not_override_what_the_host_lives_on(tmp_path: Path, sit: Sit) -> None:
    desk = sit(Desk(tmp_path))
    with pytest.raises(RefusedError, match="/ is mounted from it"):
        run("pci", "bind", "00:1f.2", "--yes")
    assert desk.is_untouched()


def test_dry_run_tells_what_would_be_and_does_nothing(
    tmp_path: Path, sit: Sit, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = sit(Desk(tmp_path))
    assert run("pci", "bind", "01:00.0", "--dry-run", "-o", "json") == EXIT_PENDING
    assert {row["result"] for row in json.loads(capsys.readouterr().out)} == {"pending"}
    assert desk.is_untouched()
    desk.bind(NIC)
    assert run("pci", "bind", "02:00.0", "--dry-run") == 0
    assert run("pci", "release", "02:00.0", "--dry-run", "-o", "json") == EXIT_PENDING
    found = capsys.readouterr().out
    assert json.loads(found[found.index("[") :])[0]["wanted"] == "e1000e"
    assert desk.host.drivers(NIC) == ["vfio-pci"]


def test_what_a_killed_run_had_begun_is_told(tmp_path: Path, sit: Sit, capsys: pytest.CaptureFixture[str]) -> None:
    desk = sit(Desk(tmp_path))
    devices = {NIC: {"driver": "e1000e", "override": "", "known": False}}
    desk.journal.begin(pci.KIND, NIC, {"action": "bind", "devices": devices, "boot": "another"})
    run("pci", "bind", "02:00.0")
    assert f"had begun to bind {NIC}" in capsys.readouterr().err


def test_what_could_not_be_released_is_an_error(tmp_path: Path, sit: Sit) -> None:
    desk = sit(Desk(tmp_path))
    desk.bind(NIC)
    desk.bind(GPU)
    desk.kernel.refuses |= {("e1000e", NIC), ("nouveau", GPU)}
    with pytest.raises(PartialError, match="1 of 2 devices"):
        run("pci", "release", "01:00.0")
    with pytest.raises(KvmctlError, match=f"{NIC} was not given back") as caught:
        run("pci", "release", "02:00.0")
    assert caught.value.exit_code == 1
    assert set(Journal(desk.path).entries(pci.KIND)) == {NIC, GPU}


def test_functions_are_printed_for_people_and_for_scripts(
    tmp_path: Path, sit: Sit, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = sit(Desk(tmp_path, server))
    (desk.host.root / "etc/udev/rules.d").mkdir(parents=True)
    assert run("pci", "vfs", "07:00.0", "4", "--persist", "--dry-run") == EXIT_PENDING
    assert run("pci", "vfs", "07:00.0", "4", "--persist", "-o", "name") == 0
    assert capsys.readouterr().out.split()[-4:] == list(FUNCTIONS[:4])
    assert run("pci", "vfs", "07:00.0", "3", "-o", "json") == 0
    ran = capsys.readouterr()
    assert json.loads(ran.out) == {
        "name": PF, "old": 4, "wanted": 3, "found": 3, "result": "changed", "vfs": list(FUNCTIONS[:3]), "persistent": 4,
    }  # fmt: skip
    assert "after a reboot it has 4 again" in ran.err
    assert run("pci", "vfs", "07:00.0", "3") == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{PF}: 3 -> 3 virtual functions, unchanged"


@pytest.mark.parametrize("make", [desktop, server])
def test_the_table_fits_in_120_columns(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    host = make(tmp_path)
    fill(host.root / "usr/share/misc", **{"pci.ids": f"8086  {'A very long name of a maker ' * 5}\n"})
    for number in range(9):
        host.mount("8:1" if make is desktop else "259:1", f"/mnt/{'x' * 20}{number}", "/dev/any")
    guests = [GuestUse(f"{number}-{'n' * 60}", True, True) for number in range(3)]
    machine = pci.observe({"0000:02:00.0": guests[:1]}, host.root, host.addresses)
    lines = table([_shown(row) for row in pci.rows(machine)], _DEVICES).splitlines()
    assert max(len(line) for line in lines) <= 120
