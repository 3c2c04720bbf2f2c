"""Queues of NVMe functions, with a controller whose answers are laid out by the specification."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.host import pci_kernel, pci_nvme
from kvmctl.host.pci_kernel import Kernel
from kvmctl.model.errors import KvmctlError
from tests.trees import fill

pytestmark = pytest.mark.unit

PF = "0000:04:00.0"


class Controller(Kernel):
    """A primary controller with flexible queues and interrupts, and what its functions were given."""

    def __init__(self, root: Path, queues: int = 8, interrupts: int = 4, most: int = 0, functions: int = 4) -> None:
        super().__init__(root)
        folder = fill(root / "sys/bus/pci/devices" / PF, **{"class": "0x010802"})
        (folder / "nvme/nvme0").mkdir(parents=True)
        self.flexible = {0: queues, 1: interrupts}
        self.most, self.functions = most, functions
        self.given: dict[tuple[int, int], int] = {}
        self.online: set[int] = set()

    def nvme_admin(self, name: str, code: int, word10: int, word11: int, length: int) -> bytes:
        assert name == "nvme0"
        if code == 0x06:
            return {0x14: self.capabilities, 0x15: self.secondaries}[word10]().ljust(length, b"\0")
        assert (code, length) == (0x1C, 0)
        controller, kind, action = word10 >> 16, word10 >> 8 & 7, word10 & 15
        if action == 8:
            assert controller not in self.online
            self.given[controller, kind] = word11
        elif action == 9:
            self.online.add(controller)
        else:
            assert action == 7
            self.online.discard(controller)
        return b""

    def capabilities(self) -> bytes:
        kinds = sum(1 << kind for kind, total in self.flexible.items() if total)
        parts = [
            struct.pack("<IIHHHH", total, 0, 0, 1, self.most, 1).ljust(32, b"\0") for total in self.flexible.values()
        ]
        return struct.pack("<HHB", 0, 0, kinds).ljust(32, b"\0") + b"".join(parts)

    def secondaries(self) -> bytes:
        entries = [
            struct.pack("<HHB3xHHH", 10 + number, 0, 0, number, 0, 0).ljust(32, b"\0")
            for number in range(1, self.functions + 1)
        ]
        return bytes([self.functions]).ljust(32, b"\0") + b"".join(entries)


def test_each_function_gets_its_part_and_is_online(tmp_path: Path) -> None:
    controller = Controller(tmp_path)
    assert pci_nvme.is_controller(PF, tmp_path)
    pci_nvme.bring_online(PF, 2, controller)
    assert controller.given == {(11, 0): 4, (11, 1): 2, (12, 0): 4, (12, 1): 2}
    assert controller.online == {11, 12}


def test_a_function_gets_no_more_than_the_controller_allows_each(tmp_path: Path) -> None:
    controller = Controller(tmp_path, most=2)
    pci_nvme.bring_online(PF, 1, controller)
    assert controller.given == {(11, 0): 2, (11, 1): 2}


def test_too_few_queues_for_all_is_said(tmp_path: Path) -> None:
    controller = Controller(tmp_path, queues=5)
    with pytest.raises(KvmctlError, match=r"5 queues .* too few for 4"):
        pci_nvme.bring_online(PF, 4, controller)
    assert not controller.given


def test_a_controller_that_manages_its_functions_itself_is_left_to_it(tmp_path: Path) -> None:
    controller = Controller(tmp_path, queues=0, interrupts=0)
    pci_nvme.bring_online(PF, 4, controller)
    assert (controller.given, controller.online) == ({}, set())


def test_one_without_a_driver_is_said(tmp_path: Path) -> None:
    controller = Controller(tmp_path)
    (tmp_path / f"sys/bus/pci/devices/{PF}/nvme/nvme0").rmdir()
    with pytest.raises(KvmctlError, match="no NVMe controller that answers"):
        pci_nvme.bring_online(PF, 1, controller)


@given(st.integers(2, 300), st.integers(1, 300), st.integers(1, 20))
def test_no_more_is_given_than_there_is(queues: int, interrupts: int, count: int) -> None:
    controller = Controller.__new__(Controller)
    controller.flexible, controller.most, controller.functions = {0: queues, 1: interrupts}, 0, count
    try:
        parts = pci_nvme._parts(
            lambda _code, _ten, _eleven, length: controller.capabilities().ljust(length, b"\0"), count
        )
    except KvmctlError:
        assert queues < 2 * count or interrupts < count
    else:
        assert 2 * count <= parts[0] * count <= queues
        assert count <= parts[1] * count <= interrupts


def test_a_device_that_is_no_controller_refuses(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvme0").write_text("")
    with pytest.raises(KvmctlError, match="did not take a command: Inappropriate ioctl"):
        pci_kernel.Kernel(tmp_path).nvme_admin("nvme0", 6, 0, 0, 4096)
