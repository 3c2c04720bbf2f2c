"""The host's policy as the command line shows it: of this machine, whether or not its libvirt answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvmctl.host import cpu
from kvmctl.model.units import format_cores
from tests.conftest import Kvmctl, Ran

pytestmark = pytest.mark.testdriver

CPUS = cpu.read().online
Host = Callable[..., Ran]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the policy file is looked for."""
    return tmp_path / "host.yaml"


@pytest.fixture
def host(kvmctl: Kvmctl, tmp_path: Path, path: Path) -> Host:
    """`kvmctl host …` of this machine, as if its libvirt did not run."""
    uri = f"qemu:///system?socket={tmp_path}/none"

    def run(*words: str, code: int) -> Ran:
        return kvmctl("-c", uri, "host", *words, code=code, env={"KVMCTL_HOST_FILE": str(path)})

    return run


def line(ran: Ran) -> str:
    (found,) = [line for line in ran.out.splitlines() if line.startswith("policy:")]
    return found.removeprefix("policy:").strip()


def parts(kept: float) -> str:
    left = format_cores(CPUS - kept)
    return f"{format_cores(kept)} of {CPUS} cores kept for the host, {left} for guests"


def check(ran: Ran) -> dict[str, Any]:
    (found,) = [check for check in ran.json() if check["name"] == "policy"]
    assert isinstance(found, dict)
    return found


def test_a_host_without_the_file(host: Host, path: Path) -> None:
    kept = max(0.25, 0.02 * CPUS)
    assert line(host("show", code=6)) == f"defaults; {parts(kept)}"
    found = host("show", "-o", "json", code=6).json()["policy"]
    assert found == {
        "file": None,
        "cpu": {
            "reserve": None, "parent": "manage", "threads": "manage", "correct": "weights", "foreign": "correct",
            "kept_for_host": pytest.approx(kept), "capacity": pytest.approx(CPUS - kept),
        },
        "memory": {
            "reserve": None, "limit": None, "overcommit": 1.5, "cover": 0.25, "sharing": "manage", "balloon": "manage",
            "swap": "manage", "ksm_cores": 0.5, "for_guests": found["memory"]["for_guests"],
        },
    }  # fmt: skip
    doctor = check(host("doctor", "-o", "json", code=1))
    assert doctor["result"] == "ok"
    assert doctor["found"].startswith(f"there is no {path}, so defaults hold: ")


def test_what_the_file_says_that_is_no_default_is_shown(host: Host, path: Path) -> None:
    path.write_text("cpu: {reserve: 25%, parent: leave, threads: manage, correct: off}\n")
    assert line(host("show", code=6)) == f"{path}; {parts(0.25)}; parent leave, correct off"
    found = host("show", "-o", "json", code=6).json()["policy"]
    assert (found["file"], found["cpu"]["reserve"], found["cpu"]["capacity"]) == (str(path), 0.25, CPUS - 0.25)
    doctor = check(host("doctor", "-o", "json", code=1))
    assert (doctor["result"], doctor["cause"], doctor["next"]) == ("ok", "", "")
    assert doctor["found"].startswith(f"{path} is sound: 0.25 of {CPUS} cores are kept for the host")


def test_more_than_half_of_the_host_is_cut_and_said(host: Host, path: Path) -> None:
    path.write_text("cpu: {reserve: 4096}\n")
    half = CPUS / 2
    assert line(host("show", code=6)) == f"{path}; {parts(half)} (4096 is more than half)"
    doctor = check(host("doctor", "-o", "json", code=1))
    assert doctor["result"] == "warn"
    assert "keeps no more than half" in doctor["cause"]
    assert doctor["next"] == f"make cpu.reserve {format_cores(half)} or less in {path}"


def test_a_broken_file_is_a_usage_error_with_every_fault(host: Host, path: Path) -> None:
    path.write_text("cpu:\n  reserv: 0.5\n  parent: mange\n")
    ran = host("show", code=2)
    assert ran.out == ""
    assert ran.err.splitlines() == [
        f"error: {path}:2:3: unknown key 'cpu.reserv': did you mean reserve?",
        f"{path}:3:11: cpu.parent: 'mange' is not possible here: did you mean manage?",
        "  nothing was done: correct this and run the command again",
    ]
    doctor = check(host("doctor", "-o", "json", code=1))
    assert doctor["result"] == "fail"
    assert doctor["cause"] == f"{path}:2:3: unknown key 'cpu.reserv': did you mean reserve?; and 1 more"
    assert doctor["next"] == "kvmctl host show lists every fault"


def test_a_path_that_is_no_file_is_a_usage_error(host: Host, path: Path) -> None:
    path.mkdir()
    assert f"cannot read the host's policy {path}: it is not a file" in host("show", code=2).err
    doctor = check(host("doctor", "-o", "json", code=1))
    assert (doctor["result"], doctor["next"]) == ("fail", f"look at it: ls -ld {path}")


def test_another_machine_has_a_policy_of_its_own(kvmctl: Kvmctl, path: Path) -> None:
    path.write_text("nonsense")
    env = {"KVMCTL_HOST_FILE": str(path)}
    assert kvmctl("-c", "test:///default", "host", "show", "-o", "json", env=env).json()["policy"] is None
    checks = kvmctl("-c", "test:///default", "host", "doctor", "-o", "json", env=env).json()
    assert "policy" not in {check["name"] for check in checks}


def test_what_the_file_says_of_memory_is_shown(host: Host, path: Path) -> None:
    path.write_text("memory: {limit: 16MiB, overcommit: 300%, balloon: leave}\n")
    lines = host("show", code=6).out.splitlines()
    found = next(text for text in lines if "for guests, which may grow to" in text)
    assert "16MiB for guests, which may grow to 300% of that; balloon left alone" in found
