"""A host whose IOMMU does not remap interrupts: VFIO refuses, and so it is said before anything is bound."""

from __future__ import annotations

import pytest

from kvmctl.bootstrap.nested import image
from kvmctl.bootstrap.nested.host import booted
from tests.nested.support import Nested

pytestmark = pytest.mark.nested


@pytest.mark.usefixtures("alone")
def test_without_interrupt_remapping_nothing_is_bound() -> None:
    with booted(image.ensure(), remapping=False) as host:
        nested = Nested(host)
        card = nested.devices.e1000e
        row = nested.rows()[card]
        assert row["iommu_group"] is not None
        assert (row["passthrough"], "not remapped" in row["reason"]) == ("no", True)
        assert "not remapped" in nested.kvmctl("pci", "bind", card, "--yes", code=5).err
        assert nested.driver(card) == "e1000e"
        guest = nested.guest("unsafe", card, managed=True, start=False)
        assert "not remapped" in nested.kvmctl("start", guest, code=5).err
        assert nested.driver(card) == "e1000e"
        nested.sh("modprobe vfio_iommu_type1; echo 1 >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts")
        assert nested.rows()[card]["passthrough"] == "yes"
