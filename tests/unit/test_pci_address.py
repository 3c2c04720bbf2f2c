import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvmctl.model.errors import UsageError
from kvmctl.model.pci import is_address, order, parse_address
from kvmctl.xml import tree
from kvmctl.xml.pci import pci_devices

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("01:00.0", "0000:01:00.0"),
        ("1:0.0", "0000:01:00.0"),
        ("0000:01:00.0", "0000:01:00.0"),
        ("0:AF:1F.7", "0000:af:1f.7"),
        ("10000:e1:00.0", "10000:e1:00.0"),
        ("c05cbbc9:00:02.0", "c05cbbc9:00:02.0"),
    ],
)
def test_short_addresses_become_the_kernels(text: str, address: str) -> None:
    assert parse_address(text) == address
    assert is_address(address)


@pytest.mark.parametrize(
    "text",
    ["", "01", "01:00", "01:00.8", "01:20.0", "100:00.0", "01:00.0 ", "01:00.0\n", "-1:00.0", "0x01:00.0", "..",
     "01:00.00", "000000001:01:00.0", "０１:00.0", "0000:01:00.0/../..", "pci_0000_01_00_0", ":01:00.0"],
)  # fmt: skip
def test_what_is_no_address_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="is not a PCI address"):
        parse_address(text)
    assert not is_address(text)


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 255), st.integers(0, 31), st.integers(0, 7), st.booleans())
def test_every_address_there_can_be_is_read_in_either_case(
    domain: int, bus: int, slot: int, function: int, upper: bool
) -> None:
    text = f"{domain:x}:{bus:x}:{slot:x}.{function}"
    found = parse_address(text.upper() if upper else text)
    assert found == parse_address(found) == f"{domain:04x}:{bus:02x}:{slot:02x}.{function}"
    assert order(found) == (domain, bus, slot, function)


@given(st.text(st.sampled_from(string.hexdigits + ":. \n-/x０ſ"), max_size=16) | st.text(max_size=16))
@example("0000:01:00.0")
def test_any_text_is_an_address_of_the_kernel_or_a_usage_error(text: str) -> None:
    try:
        found = parse_address(text)
    except UsageError:
        return
    assert is_address(found)
    assert found.isascii()
    assert not set(found) - set("0123456789abcdef:.")


def test_a_definition_names_devices_in_three_ways() -> None:
    place = "<address domain='0x{}' bus='0x{}' slot='0x{}' function='0x{}'/>"
    mdev = "<source><address uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/></source>"
    root = tree.read(f"""<domain><devices>
      <hostdev mode='subsystem' type='pci' managed='yes'><source>
        {place.format("0000", "01", "00", "0")}</source></hostdev>
      <hostdev mode='subsystem' type='usb'><source><address bus='1' device='2'/></source></hostdev>
      <interface type='hostdev' managed='no'><source>
        {place.format("0000", "07", "10", "4").replace("<address", "<address type='pci'")}</source></interface>
      <interface type='network'><source network='default'/><address type='pci' bus='0x09' slot='0x00'/></interface>
      <disk type='nvme' device='disk'><source type='pci' managed='yes' namespace='1'>
        {place.format("10000", "e1", "00", "0")}</source></disk>
      <hostdev mode='subsystem' type='mdev'>{mdev}</hostdev>
    </devices></domain>""")
    assert pci_devices(root) == {"0000:01:00.0": True, "0000:07:10.4": False, "10000:e1:00.0": True}
