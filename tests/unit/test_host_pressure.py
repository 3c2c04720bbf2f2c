from __future__ import annotations

from pathlib import Path

import pytest

from kvmctl.host import cgroup, pressure
from tests.trees import V1_GUEST, V2_GUEST, fill, plain_host, systemd_host

pytestmark = pytest.mark.unit

CPU = "some avg10=12.50 avg60=3.00 avg300=1.00 total=5000000\nfull avg10=2.50 avg60=0.00 avg300=0.00 total=1000000"
MEMORY = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0"


def test_a_hybrid_hosts_pressure_is_in_the_unified_hierarchy(tmp_path: Path) -> None:
    tree = plain_host(tmp_path)
    unified = tree.mount("unified", "cgroup2", "rw")
    fill(unified / V1_GUEST, cpu__pressure=CPU, memory__pressure=MEMORY)
    found = pressure.of_guest(tmp_path / "cgroup/cpu" / V1_GUEST, cgroup.mounts(tree.proc))
    assert (found["cpu"].some_avg10, found["cpu"].full_avg10, found["cpu"].some_seconds) == (12.5, 2.5, 5.0)
    assert found["memory"].some_avg10 == 0.0
    assert "io" not in found


def test_a_host_with_version_2_has_it_in_the_guests_own_directory(tmp_path: Path) -> None:
    tree = systemd_host(tmp_path)
    visible = cgroup.mounts(tree.proc)
    mount = cgroup.cpu_mount(visible)
    assert mount is not None
    fill(mount.point / V2_GUEST, cpu__pressure=CPU)
    assert pressure.of_guest(mount.point / V2_GUEST, visible)["cpu"].some_avg10 == 12.5


def test_without_a_unified_hierarchy_or_the_files_nothing_is_known(tmp_path: Path) -> None:
    tree = plain_host(tmp_path)
    directory = tmp_path / "cgroup/cpu" / V1_GUEST
    assert pressure.of_guest(directory, cgroup.mounts(tree.proc)) == {}
    tree.mount("unified", "cgroup2", "rw")
    assert pressure.of_guest(directory, cgroup.mounts(tree.proc)) == {}
    assert pressure.of_guest(Path("/elsewhere"), cgroup.mounts(tree.proc)) == {}
    assert pressure.of_guest(directory, ()) == {}
