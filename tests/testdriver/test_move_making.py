"""What libvirt will make at the target of a move, asked just before: the target may have it by then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from kvmctl.control.move_copy import Copier
from kvmctl.hypervisor.connection import Hypervisor, open_hypervisor
from kvmctl.model.errors import ConflictError, RefusedError
from kvmctl.model.migration import MovedDisk
from tests import archives

pytestmark = pytest.mark.testdriver

FOLDER = "/default-pool"
VOLUME = "<volume><name>{}</name><capacity unit='MiB'>1</capacity></volume>"
NEW, OLD = (MovedDisk("vda", f"{FOLDER}/{name}", "file", shared=False, exists=False) for name in ("new", "old"))


@pytest.fixture
def target() -> Iterator[Hypervisor]:
    with open_hypervisor("test:///default") as opened:
        pool = opened.connection.storagePoolLookupByName("default-pool")
        for name in ("old", "base"):
            pool.createXML(VOLUME.format(name))
        yield opened
        for volume in pool.listAllVolumes():
            volume.delete()
        with suppress(Exception):
            opened.connection.lookupByName("other").undefine()


def test_what_has_come_to_exist_is_neither_written_over_nor_ours(target: Hypervisor) -> None:
    copier = Copier(target, target, None)
    assert copier.making([NEW], overwrite=False) == (NEW.path,)
    with pytest.raises(ConflictError, match=str(OLD.path)):
        copier.making([NEW, OLD], overwrite=False)
    assert copier.making([NEW, OLD], overwrite=True) == (NEW.path,)
    assert copier.making([MovedDisk("vda", "/elsewhere/x", "file", exists=None)], overwrite=False) == ()


@pytest.mark.parametrize("source", [f"file='{OLD.path}'", "pool='default-pool' volume='old'"])
def test_what_a_guest_uses_by_then_stays_even_with_overwrite(target: Hypervisor, source: str) -> None:
    text = archives.definition("other", kind="test").replace("file='/elsewhere/a.qcow2'", source)
    if "volume" in source:
        text = text.replace("<disk type='file'", "<disk type='volume'")
    target.connection.defineXML(text)
    with pytest.raises(RefusedError, match="guest other of the target uses"):
        Copier(target, target, None).making([OLD], overwrite=True)
