"""`kvmctl rebalance install` and `uninstall`, and that a real cron daemon and a real systemd run what they write."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import cannot, environment
from tests.schedulers import Machine, Systemd
from tests.support import until

pytestmark = pytest.mark.testdriver

TEST = "test:///default"
MINUTE = 75.0
"""Seconds in which cron has run what it runs every minute."""
CRONTAB = "/etc/cron.d/kvmctl"
STATE = "/var/lib/100% of $HOME's state"
UNITS = ["/etc/systemd/system/kvmctl-rebalance.service", "/etc/systemd/system/kvmctl-rebalance.timer"]


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    """Where the controller keeps its memory: in a folder whose name means something to cron and sh."""
    return tmp_path / "100% of $HOME's state" / "controller.json"


@pytest.fixture
def machine(tmp_path: Path, memory: Path) -> Machine:
    """A machine with cron and without systemd."""
    return Machine(tmp_path / "machine", environment(memory.parent, tmp_path / "run"))


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_a_real_cron_runs_what_was_installed(
    machine: Machine, memory: Path, foreign: Callable[..., str], tmp_path: Path
) -> None:
    # cron ends a command at an unescaped %, and libvirt reads %6f as o.
    uri = foreign("web1").replace("hypervisor.xml", "hypervis%6fr.xml")
    machine.kvmctl("-c", uri, "rebalance", "install")
    with machine.cron() as enter:
        seen = until(lambda: read(memory), bool, MINUTE, "what rebalance remembers")
        assert "hypervisor.xml" in seen
        locks = until(lambda: read(_lock(tmp_path)), bool, 10, "the lock of the run that goes on")
        assert "-q rebalance --for 55s --every 5s" in locks
        found = machine.kvmctl_beside(enter, "-c", f"qemu:///system?socket={tmp_path}/none", "host", "doctor", code=1)
        assert f"ok      rebalance: cron runs kvmctl rebalance every minute ({CRONTAB})" in found.out


def _lock(tmp_path: Path) -> Path:
    return next((tmp_path / "run").glob("rebalance*.lock"), tmp_path / "none")


def test_installing_and_uninstalling_say_what_they_do(machine: Machine) -> None:
    ran = machine.kvmctl("-o", "json", "rebalance", "install", "--cron")
    assert ran.json() == [{"name": CRONTAB, "result": "written"}]
    text = machine.crontab.read_text()
    assert text.splitlines()[-1].endswith(" -P -m kvmctl -q rebalance --for 55s --every 5s")
    assert " -c " not in text
    assert machine.kvmctl("-o", "json", "rebalance", "install").json() == [{"name": CRONTAB, "result": "unchanged"}]
    assert machine.kvmctl("-o", "name", "rebalance", "uninstall").out == f"{CRONTAB}\n"
    assert not machine.crontab.exists()
    ran = machine.kvmctl("rebalance", "uninstall")
    assert (ran.out, ran.err) == ("", "nothing to remove\n")


def test_a_dry_run_prints_what_would_be_written_and_writes_nothing(machine: Machine) -> None:
    ran = machine.kvmctl("-c", TEST, "rebalance", "install", "--every", "2500ms", "--dry-run", code=10)
    assert not machine.crontab.exists()
    machine.kvmctl("-c", TEST, "rebalance", "install", "--every", "2.5s")
    assert ran.out == f"# {CRONTAB}: to be written\n{machine.crontab.read_text()}"
    assert ran.out.endswith(f" -c {TEST} -q rebalance --for 55s --every 2.5s\n")
    machine.kvmctl("-c", TEST, "rebalance", "install", "--every", "2.5s", "--dry-run")
    ran = machine.kvmctl("-o", "json", "-c", TEST, "rebalance", "install", "--dry-run", code=10)
    assert [(row["name"], row["result"]) for row in ran.json()] == [(CRONTAB, "to be written")]
    assert machine.kvmctl("rebalance", "uninstall", "--dry-run", code=10).out == f"# {CRONTAB}: to be removed\n"
    assert machine.crontab.exists()


def test_a_file_of_others_is_left_alone(machine: Machine) -> None:
    machine.crontab.write_text("# mine\n")
    ran = machine.kvmctl("rebalance", "install", code=4)
    assert f"{CRONTAB} is not kvmctl's" in ran.err
    machine.kvmctl("rebalance", "install", "--dry-run", code=4)
    assert "not written by kvmctl" in machine.kvmctl("rebalance", "uninstall", code=4).err
    assert machine.crontab.read_text() == "# mine\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--cron", "--systemd"), 2, "exclude each other"),
        (("--every", "999ms"), 2, "not between 1s and 30s"),
        (("--every", "31s"), 2, "not between 1s and 30s"),
        (("--every", "often"), 2, "not a duration"),
        (("-c", ""), 2, "URI is empty"),
        (("-c", "test:///a\\b"), 5, "backslash"),
        (("--systemd",), 5, "systemd does not run this host"),
    ],
)
def test_what_cannot_be_installed_is_refused(machine: Machine, words: tuple[str, ...], code: int, said: str) -> None:
    assert said in machine.kvmctl("rebalance", "install", *words, code=code).err
    assert not machine.crontab.exists()


_AS_NOBODY = """
import os, pwd, sys
import kvmctl.cli.schedule, kvmctl.host.schedule
from kvmctl.cli.main import run
os.setgroups([])
os.setuid(pwd.getpwnam("nobody").pw_uid)
run(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_without_root_it_says_so(machine: Machine, command: str) -> None:
    ran = machine.kvmctl("rebalance", command, code=6, program=("-c", _AS_NOBODY))
    assert "only root" in ran.err


def test_without_a_cron_daemon_nothing_is_written(machine: Machine, tmp_path: Path) -> None:
    hidden = "import subprocess, sys; subprocess.run(['mount', '--bind', '/dev/null', '/usr/sbin/cron'], check=True); "
    program = ("-c", f"{hidden}from kvmctl.cli.main import run; run(sys.argv[1:])")
    ran = machine.kvmctl("rebalance", "install", code=5, program=program)
    assert "apt-get install cron" in ran.err
    assert not machine.crontab.exists()


def test_where_cron_does_not_run_the_user_is_told(machine: Machine) -> None:
    ran = machine.kvmctl("-q", "rebalance", "install")
    assert "warning: no cron daemon runs, so nothing will be run: start one with service cron start\n" in ran.err


# systemd


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    if not shutil.which("systemd-nspawn"):
        cannot("a systemd of one's own needs systemd-nspawn")
    layer = tmp_path / "layer"
    layer.mkdir()
    opened = Systemd(layer, environment(Path(STATE), Path("/run/kvmctl")))
    try:
        opened.wait()
        yield opened
    finally:
        opened.close()


def test_a_real_systemd_runs_what_was_installed(systemd: Systemd) -> None:
    uri = "test:///def%61ult"
    ran = systemd.kvmctl("-c", uri, "-o", "json", "rebalance", "install")
    assert ran.json() == [{"name": name, "result": "written"} for name in UNITS]
    assert "the timer is enabled and started" in ran.err
    assert systemd.run("systemctl", "is-enabled", "kvmctl-rebalance.timer").out == "enabled\n"

    systemd.run("systemctl", "start", "--no-block", "kvmctl-rebalance.service")
    seen = until(lambda: systemd.run("cat", f"{STATE}/controller.json", code=None).out, bool, 30, "the memory")
    assert TEST in seen
    doctor = systemd.kvmctl("-c", "qemu:///system?socket=/none", "host", "doctor", code=1)
    assert f"ok      rebalance: systemd runs kvmctl rebalance every minute ({UNITS[0]})" in doctor.out

    ran = systemd.kvmctl("-c", uri, "-o", "json", "rebalance", "install", "--systemd")
    assert [row["result"] for row in ran.json()] == ["unchanged", "unchanged"]
    systemd.run("systemctl", "disable", "--now", "kvmctl-rebalance.timer")
    systemd.kvmctl("-c", uri, "rebalance", "install", "--dry-run", code=10)
    doctor = systemd.kvmctl("-c", "qemu:///system?socket=/none", "host", "doctor", code=1)
    assert "fail    rebalance: installed for systemd, and not run" in doctor.out
    assert "the timer is enabled" in systemd.kvmctl("-c", uri, "rebalance", "install").err
    systemd.run("systemctl", "is-active", "kvmctl-rebalance.timer")

    ran = systemd.kvmctl("-c", uri, "-o", "json", "rebalance", "install", "--cron")
    assert ran.json()[0] == {"name": CRONTAB, "result": "written"}
    assert ran.json()[1:] == [{"name": name, "result": "removed"} for name in UNITS]
    assert systemd.run("systemctl", "is-active", "kvmctl-rebalance.timer", code=None).out == "inactive\n"
    systemd.kvmctl("rebalance", "install", "--systemd")
    assert systemd.kvmctl("-o", "name", "rebalance", "uninstall").out.splitlines() == UNITS
    assert systemd.run("systemctl", "is-enabled", "kvmctl-rebalance.timer", code=None).out != "enabled\n"
