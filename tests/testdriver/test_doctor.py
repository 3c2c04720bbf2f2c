import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvmctl.host.journal import Journal
from kvmctl.host.lock import lock
from tests.conftest import Kvmctl, environment

pytestmark = pytest.mark.testdriver

TEST = "test:///default"
EXAMINED_WITHOUT_LIBVIRT = {"connection", "scope", "socket", "daemons", "virtlogd", "nested", "iommu", "cgroup", "ksm"}


def by_name(checks: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in checks}


def test_a_hypervisor_that_answers_is_examined(kvmctl: Kvmctl) -> None:
    found = by_name(kvmctl("-c", TEST, "-o", "json", "host", "doctor").json())
    assert found["connection"] == {
        "name": "connection", "result": "ok", "found": f"{TEST} answers", "cause": "", "next": "",
    }  # fmt: skip
    assert found["pool default-pool"]["result"] == "ok"
    assert found["unfinished"]["found"] == "no run was interrupted"
    assert found["host"]["result"] == "unknown"


def test_without_libvirt_the_connection_is_one_failure_among_other_checks(kvmctl: Kvmctl, tmp_path: Path) -> None:
    uri = f"qemu:///system?socket={tmp_path}/none"
    found = by_name(kvmctl("-c", uri, "-o", "json", "host", "doctor", code=1).json())
    assert found["connection"]["result"] == "fail"
    assert "No such file" in found["connection"]["cause"]
    assert found["socket"]["found"] == f"{tmp_path}/none is absent"
    assert set(found) >= EXAMINED_WITHOUT_LIBVIRT
    assert found["pools"]["result"] == "unknown"


def test_a_socket_that_a_dead_daemon_left_is_told_from_an_absent_one(kvmctl: Kvmctl, tmp_path: Path) -> None:
    left = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(left))
    found = by_name(kvmctl("-c", f"qemu:///system?socket={left}", "-o", "json", "host", "doctor", code=1).json())
    assert found["socket"]["found"].startswith(f"{left} is dead (")
    assert found["socket"]["cause"] == "a daemon that ended left it behind"


def test_every_check_that_is_not_good_says_what_to_do(kvmctl: Kvmctl, tmp_path: Path) -> None:
    checks = kvmctl("-c", f"qemu:///system?socket={tmp_path}/none", "-o", "json", "host", "doctor", code=1).json()
    assert [check for check in checks if check["result"] in ("warn", "fail") and not check["next"]] == []
    assert len({check["name"] for check in checks}) == len(checks)


def test_the_table_shows_result_cause_and_next_command(kvmctl: Kvmctl, tmp_path: Path) -> None:
    ran = kvmctl("-c", f"qemu:///system?socket={tmp_path}/none", "host", "doctor", code=1)
    lines = ran.out.splitlines()
    first = lines.index(f"fail    connection: no connection to qemu:///system?socket={tmp_path}/none")
    assert lines[first + 1].startswith(" " * 10 + "cannot connect")
    assert lines[first + 2].startswith(" " * 10 + "→ ")
    assert ran.err == ""


def test_what_a_killed_run_had_begun_is_listed(kvmctl: Kvmctl, state: Path) -> None:
    Journal(state / "journal.json").begin("volume", "/pool/web1.qcow2", {"guest": "web1"})
    ran = kvmctl("-c", TEST, "-o", "json", "host", "doctor")
    (found,) = [check for check in ran.json() if check["name"] == "unfinished"]
    assert (found["result"], found["found"]) == ("warn", "volume /pool/web1.qcow2")
    assert "was killed" in found["cause"]


def test_swap_that_a_killed_run_had_begun_has_a_command_of_its_own(kvmctl: Kvmctl, state: Path) -> None:
    Journal(state / "journal.json").begin("swap", "/swap/web1", {"kind": "file"})
    ran = kvmctl("-c", TEST, "-o", "json", "host", "doctor")
    (found,) = [check for check in ran.json() if check["name"] == "unfinished"]
    assert (found["result"], found["found"]) == ("warn", "swap /swap/web1")
    assert "kvmctl swap disable" in found["next"]


def test_what_a_run_that_goes_on_has_begun_is_no_leftover(
    kvmctl: Kvmctl, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Journal(state / "journal.json").begin("volume", "/pool/web1.qcow2", {"guest": "web1"})
    monkeypatch.setenv("KVMCTL_RUN_DIR", str(tmp_path / "run"))
    with lock(TEST):
        ran = kvmctl("-c", TEST, "-o", "json", "host", "doctor")
    (found,) = [check for check in ran.json() if check["name"] == "unfinished"]
    assert found["result"] == "ok"
    assert f"process {os.getpid()}" in found["found"]


def test_an_unusable_journal_is_a_warning(kvmctl: Kvmctl, state: Path) -> None:
    state.mkdir()
    (state / "journal.json").write_text("{")
    found = by_name(kvmctl("-c", TEST, "-o", "json", "host", "doctor").json())
    assert found["journal"]["result"] == "warn"


def test_a_journal_that_was_moved_aside_is_told_then_and_until_it_is_deleted(kvmctl: Kvmctl, state: Path) -> None:
    state.mkdir()
    (state / "journal.json").write_text("{")
    said = kvmctl("-c", TEST, "set", "test", "description=x").err
    (aside,) = state.glob("journal.json.unusable-*")
    assert f"warning: the journal {state}/journal.json is unusable" in said
    assert str(aside) in said
    assert str(aside) in kvmctl("-c", TEST, "host", "restore", "--dry-run").err
    found = by_name(kvmctl("-c", TEST, "-o", "json", "host", "doctor").json())
    assert str(aside) in found["journal"]["cause"]
    aside.unlink()
    assert "unusable" not in kvmctl("-c", TEST, "host", "restore", "--dry-run").err
    assert "journal" not in by_name(kvmctl("-c", TEST, "-o", "json", "host", "doctor").json())


_AS_NOBODY = """
import difflib, os, pwd, shlex, sys
import kvmctl.cli.host, kvmctl.control.doctor, kvmctl.hypervisor.connection
from kvmctl.cli.main import run
user = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
run(sys.argv[1:])
"""
"""Python itself may be where nobody may read it, so it is loaded before."""


def test_a_user_without_rights_gets_no_traceback_and_the_same_checks(state: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    uri = f"qemu:///system?socket={tmp_path}/none"
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, "-c", uri, "host", "doctor"],
        env=environment(Path("/nonexistent/state"), Path("/nonexistent/run")),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "fail    connection: no connection" in done.stdout
    assert "cgroup v" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_show_is_reduced_and_says_so_where_the_kernel_is_elsewhere(kvmctl: Kvmctl) -> None:
    ran = kvmctl("-c", TEST, "-o", "json", "host", "show")
    found = ran.json()
    assert "is not on this machine" in ran.err
    assert (found["local"], found["virtualization"], found["cgroup"]) == (False, None, None)
    assert found["cpu"]["threads"] == 16
    assert found["memory"]["total"] == 3 << 30
    assert found["guests"]["running"] == 1
    assert found["pools"][0]["name"] == "default-pool"
    assert kvmctl("-c", TEST, "host", "show").out.startswith("host: ")


def test_show_without_libvirt_shows_this_machine_and_fails(kvmctl: Kvmctl, tmp_path: Path) -> None:
    ran = kvmctl("-c", f"qemu:///system?socket={tmp_path}/none", "-o", "json", "host", "show", code=6)
    found = ran.json()
    assert found["versions"]["kernel"] == os.uname().release
    assert (found["guests"], found["uri"]) == (None, None)
    assert found["memory"]["total"] > 0


def test_metrics_of_another_machine_are_its_guests_alone(kvmctl: Kvmctl) -> None:
    ran = kvmctl("-c", TEST, "-o", "json", "host", "metrics", "--interval", "10ms")
    found = ran.json()
    assert found["host"] is None
    assert [(guest["name"], guest["state"], guest["cores"]) for guest in found["guests"]] == [("test", "running", None)]


@pytest.mark.parametrize("interval", ["", "-1s", "1h", "1e3", "99999s", "¹s"])
def test_an_interval_that_is_none_is_a_usage_error(kvmctl: Kvmctl, interval: str) -> None:
    assert "not a duration" in kvmctl("-c", TEST, "host", "metrics", "--interval", interval, code=2).err


def test_a_snapshot_has_a_name(kvmctl: Kvmctl) -> None:
    assert "a path cannot be empty" in kvmctl("-c", TEST, "host", "snapshot", "", code=2).err


def test_prometheus_writes_a_file_that_others_can_read(kvmctl: Kvmctl, tmp_path: Path) -> None:
    target = tmp_path / "kvmctl.prom"
    kvmctl("-c", TEST, "host", "metrics", "--prometheus", target)
    assert 'kvmctl_guest_state{guest="test",state="running"} 1.0' in target.read_text()
    assert target.stat().st_mode & 0o777 == 0o644
    assert kvmctl("-c", TEST, "host", "metrics", "--prometheus", "-").out.startswith("# HELP kvmctl_up")


def test_prometheus_in_a_folder_that_is_not_there_is_a_clear_error(kvmctl: Kvmctl, tmp_path: Path) -> None:
    ran = kvmctl("-c", TEST, "host", "metrics", "--prometheus", tmp_path / "none/kvmctl.prom", code=1)
    assert f"cannot write {tmp_path}/none/kvmctl.prom: No such file or directory" in ran.err


def test_prometheus_without_libvirt_says_down_and_fails(kvmctl: Kvmctl, tmp_path: Path) -> None:
    ran = kvmctl("-c", f"qemu:///system?socket={tmp_path}/none", "host", "metrics", "--prometheus", "-", code=6)
    assert "kvmctl_up 0.0" in ran.out
    assert "kvmctl_host_cpus " in ran.out


def test_ksm_of_another_machine_is_not_changed(kvmctl: Kvmctl) -> None:
    for command in ("enable", "disable"):
        assert "is not on this machine" in kvmctl("-c", TEST, "ksm", command, code=5).err
    kvmctl("-c", TEST, "ksm", "show", code=3)


@pytest.mark.parametrize("option", [("--pages-to-scan", "0"), ("--pages-to-scan", "x"), ("--sleep-millisecs", "-5")])
def test_ksm_settings_out_of_range_are_usage_errors(kvmctl: Kvmctl, option: tuple[str, str]) -> None:
    kvmctl("ksm", "enable", *option, code=2)


def test_two_areas_of_swap_at_once_are_not_said_to_be_none(kvmctl: Kvmctl) -> None:
    assert "make two areas" in kvmctl("swap", "enable", "--zram", "1GiB", "--file", "/x", "1GiB", code=2).err
