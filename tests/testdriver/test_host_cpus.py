"""Pinning to CPUs that the host has, and amounts of CPU by its clock.

The test driver's host has the CPUs 0 to 7, of which 0, 2 and 4 are on-line, and says nothing of its base clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Kvmctl

pytestmark = pytest.mark.testdriver
TEST = ("-c", "test:///default")


@pytest.mark.parametrize("key", ["cpu.pin", "cpu.emulator-pin"])
@pytest.mark.parametrize(
    ("cpus", "why"),
    [
        ("8", "CPU 8, which this host does not have: it has 0-7"),
        ("0,9-10", "CPUs 9-10, which this host does not have: it has 0-7"),
        ("7", "CPU 7, which is off-line: on-line here are 0,2,4"),
        ("1,3", "CPUs 1,3, which are off-line: on-line here are 0,2,4"),
    ],
)
def test_cpus_that_cannot_be_had_are_refused(kvmctl: Kvmctl, key: str, cpus: str, why: str) -> None:
    ran = kvmctl(*TEST, "set", "test", f"{key}={cpus}", code=5)
    assert ran.err == f"error: guest test: {key} names {why}\n  choose from 0,2,4, or write none\n"
    assert ran.out == ""


def test_a_new_guest_is_refused_as_well_with_all_that_is_wrong(kvmctl: Kvmctl, tmp_path: Path) -> None:
    file = tmp_path / "guests.yaml"
    file.write_text("guests: [{name: g, cpu: {pin: 0-63, emulator-pin: 5}}, {name: h, cpu: {pin: 9}}]")
    ran = kvmctl(*TEST, "apply", "-f", file, code=5)
    for words in ("guest g: cpu.pin names CPUs 8-63", "guest g: cpu.emulator-pin names CPU 5", "guest h: cpu.pin"):
        assert words in ran.err
    assert "changed" not in ran.out


def test_a_pinning_to_some_that_are_on_line_is_taken(kvmctl: Kvmctl) -> None:
    changed = kvmctl(*TEST, "-o", "json", "set", "test", "cpu.emulator-pin=0-3").json()
    assert [(one["field"], one["new"], one["result"]) for one in changed] == [("cpu.emulator-pin", "0-3", "changed")]


@pytest.mark.parametrize("assignment", ["cpu.limit=2400MHz", "cpu.reservation=0.4 GHz"])
def test_an_unknown_base_clock_is_said(kvmctl: Kvmctl, assignment: str) -> None:
    ran = kvmctl(*TEST, "set", "test", assignment, code=2)
    assert "this host's base clock is unknown, so write cores (1.5) or percent (150%)" in ran.err
    assert "guest test was not changed" in ran.err


def test_an_unknown_base_clock_is_a_fault_of_the_file(kvmctl: Kvmctl, tmp_path: Path) -> None:
    file = tmp_path / "guests.yaml"
    file.write_text("guests:\n  - name: g\n    cpu: {limit: 2.4GHz}\n")
    ran = kvmctl(*TEST, "apply", "-f", file, code=2)
    assert f"{file}:3:18: guest g: cpu.limit: '2.4GHz': this host's base clock is unknown" in ran.err
    file.write_text("guests: []  # of 2.4GHz\n")
    assert "clock" not in kvmctl(*TEST, "apply", "-f", file).err


def test_a_guest_leaves_rebalancing_and_comes_back(kvmctl: Kvmctl) -> None:
    changed = kvmctl(*TEST, "-o", "json", "set", "test", "rebalance=false").json()
    assert [(one["old"], one["new"], one["result"]) for one in changed] == [(None, False, "changed")]
    assert kvmctl(*TEST, "-o", "json", "set", "test", "rebalance=true").json() == []
    assert "rebalance" not in kvmctl(*TEST, "spec", "test").out
