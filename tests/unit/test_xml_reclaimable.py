"""What a definition says of reclaiming a guest's memory."""

import pytest

from kvmctl.model.units import MIB
from kvmctl.xml import tree
from kvmctl.xml.reclaimable import has_balloon, memory_fixed, memory_size, stats_period

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("", ""),
        ("<memoryBacking><nosharepages/></memoryBacking>", ""),
        ("<memoryBacking><hugepages/></memoryBacking>", "huge pages"),
        ("<memoryBacking><locked/></memoryBacking>", "locked"),
        ("<memoryBacking><source type='memfd'/></memoryBacking>", "shared"),
        ("<memoryBacking><access mode='shared'/></memoryBacking>", "shared"),
        ("<devices><hostdev mode='subsystem' type='pci'/></devices>", "passed through"),
        ("<devices><hostdev mode='subsystem' type='mdev'/></devices>", "passed through"),
        ("<devices><interface type='hostdev'/></devices>", "passed through"),
        ("<devices><disk type='nvme'/></devices>", "passed through"),
        ("<devices><hostdev mode='subsystem' type='usb'/></devices>", ""),
        ("<devices><interface type='network'/><disk type='file'/></devices>", ""),
    ],
)
def test_why_memory_stays(inside: str, said: str) -> None:
    found = memory_fixed(tree.read(f"<domain>{inside}</domain>"))
    assert (said in found) if said else not found


def test_how_often_the_balloon_reports() -> None:
    assert stats_period(tree.read("<domain/>")) == 0
    text = "<domain><devices><memballoon><stats period='5'/></memballoon></devices></domain>"
    assert stats_period(tree.read(text)) == 5


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("", False),
        ("<memballoon model='none'/>", False),
        ("<memballoon model='xen'/>", False),
        ("<memballoon model='virtio'/>", True),
        ("<memballoon model='virtio-non-transitional'/>", True),
    ],
)
def test_which_balloon_a_driver_can_be_asked_through(inside: str, expected: bool) -> None:
    assert has_balloon(tree.read(f"<domain><devices>{inside}</devices></domain>")) is expected


def test_what_a_guest_is_to_have() -> None:
    both = "<domain><memory unit='KiB'>524288</memory><currentMemory unit='KiB'>262144</currentMemory></domain>"
    assert memory_size(tree.read(both)) == 256 * MIB
    assert memory_size(tree.read("<domain><memory unit='MiB'>512</memory></domain>")) == 512 * MIB
    assert memory_size(tree.read("<domain/>")) is None
