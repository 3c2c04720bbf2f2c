"""apply, diff, set and prune on paused guests: the definition and the kernel's files say what the file says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmctl.control.hostpolicy import host_policy
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.hostpolicy import capacity
from kvmctl.model.units import format_cores
from tests.conftest import Kvmctl, environment
from tests.support import Guest, until

pytestmark = pytest.mark.paused

Names = Callable[..., str]


def guest_file(path: Path, *guests: str, project: str = "") -> Path:
    head = f"project: {project}\n" if project else ""
    body = "".join(f"  - {guest}\n" for guest in guests)
    path.write_text(
        f"{head}defaults: {{accelerator: tcg, memory: {{size: 64MiB}}, state: paused}}\nguests:\n{body or '  []'}"
    )
    return path


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    return lambda *guests, **more: guest_file(tmp_path / "guests.yaml", *guests, **more)


def test_a_second_apply_changes_nothing(
    kvmctl: Kvmctl, make_name: Names, hypervisor: Hypervisor, file: Callable[..., Path]
) -> None:
    name = make_name()
    path = file(
        f"{{name: {name}, cpu: {{count: 2, shares: 2000, limit: 150%, reservation: 0.25}}, labels: {{tier: a}}}}"
    )
    assert "changed" in kvmctl("apply", "-f", path).out
    guest = Guest(hypervisor, name)
    before = domains.definition(guest.domain), domains.live_definition(guest.domain)
    again = kvmctl("-o", "json", "apply", "-f", path)
    assert again.json() == []
    assert "0 changes" in again.err
    assert (domains.definition(guest.domain), domains.live_definition(guest.domain)) == before
    kvmctl("diff", "-f", path)


def test_promises_reach_the_kernel(
    kvmctl: Kvmctl, make_name: Names, hypervisor: Hypervisor, file: Callable[..., Path]
) -> None:
    name = make_name()
    kvmctl("apply", "-f", file(f"{{name: {name}, cpu: {{count: 1, shares: 700, limit: 0.5}}}}"))
    guest = Guest(hypervisor, name)
    quota, period = ((guest.cgroup / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period"))
    assert int(quota) / int(period) == 0.5
    kvmctl("set", name, "cpu.limit=75%")
    assert int((guest.cgroup / "cpu.cfs_quota_us").read_text()) / int(period) == 0.75
    kvmctl("set", name, "cpu.limit=unlimited")
    assert int((guest.cgroup / "cpu.cfs_quota_us").read_text()) == -1


def test_diff_and_dry_run_change_nothing(kvmctl: Kvmctl, make_name: Names, file: Callable[..., Path]) -> None:
    name = make_name()
    path = file(f"{{name: {name}}}")
    shown = kvmctl("-o", "json", "diff", "-f", path, code=10).json()
    assert [change["field"] for change in shown] == ["guest", "state"]
    assert kvmctl("-o", "json", "apply", "-f", path, "--dry-run", code=10).json() == shown
    kvmctl("show", name, code=3)


def test_what_needs_a_restart_is_stored_and_shown(
    kvmctl: Kvmctl, make_name: Names, hypervisor: Hypervisor, file: Callable[..., Path]
) -> None:
    name = make_name()
    kvmctl("apply", "-f", file(f"{{name: {name}}}"))
    pid = Guest(hypervisor, name).pid
    outcome = kvmctl("-o", "json", "set", name, "memory.sharing=false").json()
    assert [(one["field"], one["result"]) for one in outcome] == [("memory.sharing", "pending restart")]
    assert "<nosharepages/>" in domains.definition(Guest(hypervisor, name).domain)
    assert [one["field"] for one in kvmctl("-o", "json", "show", name).json()["pending_restart"]] == ["memory.sharing"]
    assert Guest(hypervisor, name).pid == pid


def test_a_paused_guest_cannot_move_its_balloon_and_that_is_said(
    kvmctl: Kvmctl, make_name: Names, file: Callable[..., Path]
) -> None:
    name = make_name()
    kvmctl("apply", "-f", file(f"{{name: {name}, memory: {{size: 64MiB, max: 128MiB}}}}"))
    ran = kvmctl("-o", "json", "set", name, "memory.size=96MiB", code=7)
    assert ran.json()[0]["result"] == "not applied"
    assert "paused" in ran.json()[0]["reason"]


def test_a_machine_change_is_refused(kvmctl: Kvmctl, make_name: Names, file: Callable[..., Path]) -> None:
    name = make_name()
    kvmctl("apply", "-f", file(f"{{name: {name}}}"))
    assert kvmctl("-o", "json", "set", name, "boot.machine=pc", code=5).json()[0]["result"] == "not applied"


def test_admission_counts_reservations(kvmctl: Kvmctl, make_name: Names, file: Callable[..., Path]) -> None:
    name, cores = make_name(), os.cpu_count() or 1
    path = file(f"{{name: {name}, cpu: {{count: {cores + 1}, reservation: {cores + 1}}}}}")
    refused = kvmctl("apply", "-f", path, code=5)
    assert f"{name} {cores + 1}" in refused.err
    room = format_cores(capacity(host_policy(), cores))
    assert f"> {room} cores ({cores} of the host less " in refused.err
    kvmctl("show", name, code=3)
    assert "forced" in kvmctl("apply", "-f", path, "--force").err


def test_spec_applies_with_no_change(
    kvmctl: Kvmctl, make_name: Names, file: Callable[..., Path], pool: tuple[str, Path]
) -> None:
    name = make_name()
    kvmctl("apply", "-f", file(
        f"{{name: {name}, cpu: {{count: 2, max: 4, pin: '0', shares: 12000}}, memory: {{size: 64MiB, max: 128MiB}}, "
        f"disks: [{{volume: a.qcow2, pool: {pool[0]}, size: 1GiB}}], nics: [{{user: true}}], "
        "description: 'a </description><devices/> & more', labels: {tier: front}, vnc: true, autostart: true}",
        project="kvmctl-test",
    ))  # fmt: skip
    spec = kvmctl("spec", name).out
    assert kvmctl("-o", "json", "apply", "-f", "-", stdin=spec).json() == []


def test_volumes_are_made_over_a_base_and_outlive_a_failed_definition(
    kvmctl: Kvmctl, make_name: Names, file: Callable[..., Path], pool: tuple[str, Path], hypervisor: Hypervisor
) -> None:
    name, (pool_name, folder) = make_name(), pool
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", folder / "base.qcow2", "64M"], check=True)
    hypervisor.connection.storagePoolLookupByName(pool_name).refresh()
    path = file(f"{{name: {name}, disks: [{{volume: top.qcow2, pool: {pool_name}, base: base.qcow2}}]}}")
    kvmctl("apply", "-f", path)
    info = subprocess.run(
        ["qemu-img", "info", "-U", folder / "top.qcow2"], capture_output=True, text=True, check=True
    ).stdout
    assert "backing file: " + str(folder / "base.qcow2") in info
    assert "64 MiB" in info
    other = make_name()
    disk = f"volume: new.qcow2, pool: {pool_name}, size: 1GiB"
    broken = file(f"{{name: {other}, cpu: {{model: no-such-model}}, disks: [{{{disk}}}]}}")
    kvmctl("apply", "-f", broken, code=None)
    if not any(domain.name() == other for domain in hypervisor.connection.listAllDomains()):
        assert not (folder / "new.qcow2").exists()


def test_prune_deletes_what_the_project_no_longer_declares(
    kvmctl: Kvmctl, make_name: Names, file: Callable[..., Path], pool: tuple[str, Path]
) -> None:
    kept, gone, foreign = make_name(), make_name(), make_name()
    disk = f"disks: [{{volume: {gone}.qcow2, pool: {pool[0]}, size: 1MiB}}]"
    kvmctl("apply", "-f", file(f"{{name: {foreign}}}"))
    kvmctl("apply", "-f", file(f"{{name: {kept}}}", f"{{name: {gone}, {disk}}}", project="kvmctl-test-prune"))
    fewer = file(f"{{name: {kept}}}", project="kvmctl-test-prune")
    assert kvmctl("apply", "-f", fewer, "--prune", "--dry-run", code=10).out.count("delete") == 1
    kvmctl("apply", "-f", fewer, "--prune", "--force", code=5)
    kvmctl("--yes", "apply", "-f", fewer, "--prune", "--force")
    kvmctl("show", gone, code=3)
    kvmctl("show", kept)
    kvmctl("show", foreign)
    assert (pool[1] / f"{gone}.qcow2").exists()


def test_a_run_that_was_killed_between_volume_and_definition_is_finished(
    kvmctl: Kvmctl, make_name: Names, file: Callable[..., Path], pool: tuple[str, Path], state: Path, tmp_path: Path
) -> None:
    name, (pool_name, folder) = make_name(), pool
    path = file(f"{{name: {name}, disks: [{{volume: v.qcow2, pool: {pool_name}, size: 1MiB}}]}}")
    program = (
        "import os, signal, sys\nfrom kvmctl.hypervisor import domains\n"
        "domains.define = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from kvmctl.cli.main import run\nrun(sys.argv[1:])\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, "apply", "-f", str(path)], env=environment(state, tmp_path / "run"), check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert (folder / "v.qcow2").exists()
    other = guest_file(tmp_path / "other.yaml", f"{{name: {make_name()}}}")
    assert str(folder / "v.qcow2") in kvmctl("apply", "-f", other).err
    kvmctl("apply", "-f", path)
    assert "v.qcow2" not in kvmctl("apply", "-f", other).err


def test_a_second_kvmctl_waits_or_says_who_holds_the_lock(kvmctl: Kvmctl, state: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom kvmctl.host.lock import lock\n"
        "with lock('qemu:///system'):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment(state, tmp_path / "run"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    try:
        assert str(holder.pid) in kvmctl("stop", "kvmctl-test-nobody", code=9).err
        kvmctl("list")
    finally:
        holder.communicate()


def test_pause_resume_stop_and_delete(
    kvmctl: Kvmctl, make_name: Names, file: Callable[..., Path], pool: tuple[str, Path], hypervisor: Hypervisor
) -> None:
    name = make_name()
    kvmctl("apply", "-f", file(f"{{name: {name}, disks: [{{volume: d.qcow2, pool: {pool[0]}, size: 1MiB}}]}}"))
    assert "already" in kvmctl("pause", name).out
    kvmctl("stop", name, code=4)
    kvmctl("delete", name, "--force", code=5)
    kvmctl("--yes", "delete", name, code=4)
    kvmctl("stop", name, "--force")
    assert "already" in kvmctl("stop", name).out
    kvmctl("start", name, "--paused")
    until(lambda: domains.state(Guest(hypervisor, name).domain), lambda state: state == "paused", 10, "the state")
    assert "d.qcow2" in kvmctl("--yes", "delete", name, "--force", "--disks").err
    assert not (pool[1] / "d.qcow2").exists()
    kvmctl("start", name, code=3)


def test_delete_keeps_what_others_need(
    kvmctl: Kvmctl, make_name: Names, file: Callable[..., Path], pool: tuple[str, Path]
) -> None:
    one, two, three, (pool_name, folder) = make_name(), make_name(), make_name(), pool
    kvmctl(
        "apply",
        "-f",
        file(f"{{name: {one}, state: stopped, disks: [{{volume: base.qcow2, pool: {pool_name}, size: 1MiB}}]}}"),
    )
    kvmctl(
        "apply",
        "-f",
        file(f"{{name: {two}, state: stopped, disks: [{{volume: top.qcow2, pool: {pool_name}, base: base.qcow2}}]}}"),
    )
    (folder / "cd.iso").write_bytes(bytes(4096))
    kvmctl("apply", "-f", file(f"{{name: {three}, state: stopped, boot: {{iso: {folder}/cd.iso}}}}"))
    said = kvmctl("--yes", "delete", one, three, "--disks").err
    assert "top.qcow2 overlays it" in said
    assert (folder / "base.qcow2").exists()
    assert (folder / "cd.iso").exists()


def test_a_weight_that_virsh_set_is_put_back_by_the_next_apply(
    kvmctl: Kvmctl, make_name: Names, hypervisor: Hypervisor, file: Callable[..., Path]
) -> None:
    name = make_name()
    path = file(f"{{name: {name}, cpu: {{shares: 2000}}}}")
    kvmctl("apply", "-f", path)
    shares = Guest(hypervisor, name).cgroup / "cpu.shares"
    due = shares.read_text()
    Guest(hypervisor, name).domain.setSchedulerParametersFlags({"cpu_shares": 77}, 1)
    assert shares.read_text().strip() == "77"
    assert kvmctl("-o", "json", "apply", "-f", path).json() == []
    assert shares.read_text() == due
