"""Interrupts that no IOMMU remaps."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmctl.control import pci
from kvmctl.model.errors import RefusedError
from tests.trees import fill
from tests.unit.test_pci_bind import GPU, NIC, Desk

pytestmark = pytest.mark.unit


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


INTERRUPTS = "            CPU0\n   0:         89   {}IO-APIC   2-edge      timer\n"


@pytest.mark.parametrize(
    ("interrupts", "allowed", "refused"),
    [
        (INTERRUPTS.format(""), None, True),
        (INTERRUPTS.format(""), "N\n", True),
        (INTERRUPTS.format(""), "Y\n", False),
        (INTERRUPTS.format("IR-"), None, False),
        ("  11:  4  GICv3  27 Level  arch_timer\n", None, False),
    ],
)
def test_without_interrupt_remapping_nothing_is_bound(
    desk: Desk, interrupts: str, allowed: str | None, refused: bool
) -> None:
    fill(desk.host.root / "proc", interrupts=interrupts)
    if allowed:
        fill(desk.host.root / "sys/module/vfio_iommu_type1/parameters", allow_unsafe_interrupts=allowed)
    rows = {row["name"]: row for row in pci.rows(desk.machine())}
    if not refused:
        assert (rows[NIC]["passthrough"], rows[GPU]["passthrough"]) == ("yes", "group")
        desk.bind(NIC)
        return
    assert {row["passthrough"] for row in rows.values()} == {"no"}
    assert "not remapped" in rows[NIC]["reason"]
    with pytest.raises(RefusedError, match="interrupts are not remapped"):
        desk.bind(NIC)
    assert desk.is_untouched()
