"""The ledgers measure what a running Linux guest really uses."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Kvmctl
from tests.support import Boot, until

pytestmark = pytest.mark.booted

MIB = 1 << 20


def test_use_and_the_guests_own_figures(kvmctl: Kvmctl, boot: Boot) -> None:
    guest, line = boot("cpu: {count: 1, limit: 0.5}\n    memory: {size: 256MiB}")

    def ledger(*command: str) -> dict[str, Any]:
        guests = kvmctl("-o", "json", *command).json()["guests"]
        found: dict[str, Any] = next(one for one in guests if one["name"] == guest.name)
        return found

    fresh = until(lambda: ledger("memory"), lambda found: found["usable"] is not None, 60, "the guest's own figures")
    assert fresh["usable"] == pytest.approx(line.meminfo("MemAvailable"), abs=32 * MIB)
    assert fresh["used"] + fresh["usable"] == fresh["balloon"] == 256 * MIB
    assert fresh["resident"] > 64 * MIB

    idle = until(lambda: ledger("cpu", "--sample", "2s"), lambda found: found["used"] < 0.2, 60, "an idle guest's use")
    assert (idle["bound"], idle["entitlement"]) == ("demand", idle["demand"])
    assert idle["demand"] >= idle["used"]
    assert idle["hungry"] > idle["entitlement"]

    line.run("(while :; do :; done) & true")
    busy = until(lambda: ledger("cpu", "--sample", "2s"), lambda found: found["used"] > 0.25, 60, "a busy guest's use")
    assert busy["used"] <= 0.6, "the limit holds"
    assert 0 <= busy["steal"] <= 100
    assert busy["demand"] is None, "it would use more"
    assert busy["bound"] == "limit" or busy["entitlement"] < 0.5, "others may be at work on this host"
    said = kvmctl("cpu", "--sample", "2s", "--explain", guest.name).out
    assert f"{guest.name} is entitled to " in said
