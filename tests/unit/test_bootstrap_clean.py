"""What the bootstrap takes away that killed tests left."""

import os
from pathlib import Path

import pytest

from kvmctl.bootstrap.clean import forget_owners

pytestmark = pytest.mark.unit


def test_the_account_of_a_killed_daemon_is_taken_off_the_micro_guests_files(tmp_path: Path) -> None:
    kernel, other = tmp_path / "micro/1/vmlinuz", tmp_path / "nested/disk"
    for file in (kernel, other):
        file.parent.mkdir(parents=True)
        file.write_text("x")
        os.setxattr(file, "trusted.libvirt.security.ref_dac", b"7")
    os.setxattr(kernel, "trusted.mine", b"1")
    (tmp_path / "micro/current").symlink_to("1")
    forget_owners(tmp_path)
    assert os.listxattr(kernel) == ["trusted.mine"]
    assert os.listxattr(other) == ["trusted.libvirt.security.ref_dac"]
