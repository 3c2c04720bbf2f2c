import gzip
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.bootstrap import cpio
from kvmctl.bootstrap.microguest import load_order

pytestmark = pytest.mark.unit

PATHS = st.text("abcdefghij-.", min_size=1, max_size=12).filter(lambda name: name.strip("."))
FILES = st.dictionaries(PATHS, st.binary(max_size=300), max_size=8)


def read_archive(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Path → (mode, content), read by the format's description."""
    raw, at = gzip.decompress(data), 0
    found: dict[str, tuple[int, bytes]] = {}
    while True:
        assert raw[at : at + 6] == b"070701"
        fields = [int(raw[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = raw[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, raw[start : start + size])
        at = (start + size + 3) // 4 * 4


@given(FILES)
def test_an_archive_holds_what_was_put_in(files: dict[str, bytes]) -> None:
    data = cpio.archive(cpio.program(path, content) for path, content in files.items())
    assert read_archive(data) == {path: (0o100755, content) for path, content in files.items()}


@given(FILES)
def test_equal_contents_make_equal_archives(files: dict[str, bytes]) -> None:
    assert cpio.archive(cpio.program(*item) for item in files.items()) == cpio.archive(
        cpio.program(*item) for item in files.items()
    )


def test_a_device_node_keeps_its_numbers() -> None:
    raw = gzip.decompress(cpio.archive([cpio.character_device("dev/console", 5, 1)]))
    assert raw[6 + 8 : 14 + 8] == b"00002180"  # a character device of mode 0600
    assert raw[6 + 8 * 9 : 6 + 8 * 11] == b"0000000500000001"


@given(st.lists(st.sets(st.integers(0, 30)), min_size=1, max_size=30), st.data())
def test_every_module_comes_after_what_it_needs(needs_of: list[set[int]], data: st.DataObject) -> None:
    # Only smaller numbers: module dependencies have no circles.
    needs = {f"m{i}": tuple(f"m{j}" for j in sorted(js) if j < i) for i, js in enumerate(needs_of)}
    wanted = tuple(data.draw(st.lists(st.sampled_from(sorted(needs)), unique=True)))
    order = load_order(wanted, needs)
    assert len(set(order)) == len(order)
    assert set(wanted) <= set(order)
    for index, name in enumerate(order):
        assert set(needs[name]) <= set(order[:index])


def test_what_is_part_of_the_kernel_is_not_loaded() -> None:
    assert load_order(("virtio_blk", "builtin"), {"virtio_blk": ("virtio", "scsi"), "virtio": ()}) == [
        "virtio",
        "virtio_blk",
    ]


@pytest.mark.parametrize("script", ["init", "udhcpc"])
def test_the_guests_scripts_are_shell(script: str) -> None:
    path = Path(cpio.__file__).with_name("guest") / script
    assert subprocess.run(["sh", "-n", path], check=False, capture_output=True, text=True).stderr == ""
