import os
import socket
from pathlib import Path

import pytest

from kvmctl.host import clock, daemons, sample
from kvmctl.model.sample import GuestSample

pytestmark = pytest.mark.unit


def test_a_socket_is_listening_dead_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    assert daemons.probe_socket(path).state == "absent"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert daemons.probe_socket(path).state == "dead"
        server.listen()
        assert daemons.probe_socket(path).state == "listening"
    assert daemons.probe_socket(path).state == "dead"


def test_a_socket_says_who_may_use_it(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    path.chmod(0o770)
    assert daemons.probe_socket(path).access.startswith(f"0770 {daemons.user()}:")


def test_something_that_is_no_socket_is_dead(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert daemons.probe_socket(tmp_path / "file").state == "dead"


def test_programs_are_found_by_the_name_the_kernel_keeps(tmp_path: Path) -> None:
    for pid, name in ((10, "libvirtd"), (11, "systemd-timesyn"), (12, "bash")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "comm").write_text(f"{name}\n")
    (tmp_path / "13").mkdir()
    found = daemons.running(("libvirtd", "systemd-timesyncd", "ksmtuned"), tmp_path)
    assert found == {"libvirtd": 10, "systemd-timesyncd": 11}


def test_this_process_runs_and_a_made_up_one_does_not() -> None:
    name = Path("/proc/self/comm").read_text().strip()
    assert set(daemons.running((name, "no-such-daemon"))) == {name}


def test_what_another_user_may_open_is_found_by_trying(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        assert daemons.may_open(Path("/dev/null"), 65534, 65534) is None
        return
    assert daemons.may_open(Path("/dev/null"), 65534, 65534) is True
    closed = tmp_path / "closed"
    closed.touch(mode=0o600)
    assert daemons.may_open(closed, 65534, 65534) is False


def test_the_kernel_says_whether_the_clock_is_kept_right() -> None:
    assert clock.is_synchronized() in (True, False)
    assert clock.source()


def test_this_host_is_a_sample() -> None:
    found = sample.host()
    assert found.cpus >= len(os.sched_getaffinity(0))
    assert found.memory_total > found.memory_available > 0
    assert found.cgroup_version in (0, 1, 2)


def test_a_guest_without_a_process_is_left_unknown() -> None:
    stopped = GuestSample("web1", "302ee087-116f-4579-b971-b29bd0c9f82b", "stopped", 1, 1)
    running = GuestSample("web2", "402ee087-116f-4579-b971-b29bd0c9f82b", "running", 1, 1)
    assert sample.with_processes([stopped, running]) == (stopped, running)
