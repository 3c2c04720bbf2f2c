"""Real swap of this machine, switched on and off again; and what of a real process goes there and what does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kvmctl.host import cold, ksm, pageout, swap, swap_file
from kvmctl.host.files import PAGE_SIZE
from kvmctl.model.units import MIB
from tests.conftest import Kvmctl, environment
from tests.holder import Holder, holder
from tests.support import until

pytestmark = pytest.mark.paused

FOLDER = Path("/var/lib/libvirt")


def swapped_to() -> set[str]:
    return {area.name for area in swap.areas()}


def devices() -> set[str]:
    return {path.name for path in Path("/sys/block").glob("zram*")}


@pytest.fixture(autouse=True)
def before() -> Iterator[set[str]]:
    """What the machine swaps to; a test that leaves anything else fails, and it is put back all the same."""
    areas, zram = swapped_to(), devices()
    yield areas
    left = swapped_to() - areas
    for name in left:
        swap.swapoff(Path(name))
    assert not left
    assert devices() == zram


@pytest.fixture
def path() -> Iterator[Path]:
    """Where a swap file may come."""
    found = FOLDER / f"kvmctl-test-swap-{os.getpid()}"
    yield found
    for one in FOLDER.glob(f".{found.name}*"):
        one.unlink()
    found.unlink(missing_ok=True)


@pytest.fixture
def zram(kvmctl: Kvmctl, before: set[str]) -> Iterator[str]:
    """The name of an area that kvmctl has made."""
    done = kvmctl("-o", "json", "swap", "enable", "--zram", "256MiB").json()
    yield done[0]["name"]
    kvmctl("swap", "disable")


def rows(kvmctl: Kvmctl) -> dict[str, Any]:
    return {row["name"]: row for row in kvmctl("-o", "json", "swap", "show").json()["areas"]}


def changes(state: Path) -> Any:
    return json.loads((state / "journal.json").read_text())["changes"]


def test_a_file_is_swapped_to_and_gone_again(kvmctl: Kvmctl, before: set[str], path: Path, state: Path) -> None:
    kind = swap_file.file_system(FOLDER)
    assert kind in ("ext4", "xfs"), f"{FOLDER} is on {kind}, where no swap file can be tried"
    pending = kvmctl("-o", "json", "swap", "enable", "--file", path, "16MiB", "--dry-run", code=10).json()
    assert [row["result"] for row in pending] == ["pending"]
    assert not path.exists()
    ran = kvmctl("-o", "json", "swap", "enable", "--file", path, "16MiB")
    assert [row["result"] for row in ran.json()] == ["changed"]
    assert swapped_to() - before == {str(path)}
    assert (path.stat().st_mode & 0o777, path.stat().st_size) == (0o600, 16 * MIB)
    row = rows(kvmctl)[str(path)]
    assert (row["kind"], row["priority"], row["made_by_kvmctl"]) == ("file", swap.PRIORITY, True)
    assert str(path) in changes(state)["swap"]
    assert kvmctl("-o", "json", "swap", "enable", "--file", path, "16MiB").json()[0]["result"] == "unchanged"
    kvmctl("swap", "enable", "--file", path, "32MiB", code=4)

    kvmctl("swap", "disable", "--dry-run", code=10)
    assert str(path) in swapped_to()
    assert kvmctl("-o", "json", "swap", "disable").json()[0]["result"] == "changed"
    assert swapped_to() == before
    assert not path.exists()
    assert changes(state) == {}
    assert kvmctl("swap", "disable").err == "kvmctl made nothing that this host swaps to\n"
    kvmctl("swap", "disable", path, code=3)


def test_zram_is_swapped_to_and_gone_again(kvmctl: Kvmctl, before: set[str], state: Path) -> None:
    (done,) = kvmctl("-o", "json", "swap", "enable", "--zram", "64MiB").json()
    assert swapped_to() - before == {done["name"]}
    row = rows(kvmctl)[done["name"]]
    assert (row["kind"], row["zram"]["size"]) == ("zram", 64 * MIB)
    offered = Path(f"/sys/block/{Path(done['name']).name}/comp_algorithm").read_text()
    assert row["zram"]["algorithm"] == ("zstd" if "zstd" in offered else "lz4" if "lz4" in offered else "lzo-rle")
    assert kvmctl("-o", "json", "swap", "enable", "--zram", "64MiB").json()[0]["result"] == "unchanged"
    assert "kvmctl swap disable" in kvmctl("swap", "enable", "--zram", "65MiB", code=4).err
    kvmctl("swap", "disable", Path(done["name"]).name)
    assert swapped_to() == before
    left = swap.zram(Path(done["name"]).name)
    assert left is None or (left.size, left.used) == (0, 0)


def test_host_restore_undoes_it(kvmctl: Kvmctl, before: set[str], path: Path, state: Path) -> None:
    kvmctl("swap", "enable", "--file", path, "16MiB")
    kvmctl("swap", "enable", "--zram", "16MiB")
    pending = kvmctl("-o", "json", "host", "restore", "--dry-run", code=10).json()
    assert {(row["kind"], row["old"], row["wanted"], row["result"]) for row in pending} == {
        ("swap", "on", "off", "pending")
    }
    done = kvmctl("-o", "json", "host", "restore").json()
    assert [row["result"] for row in done] == ["changed", "changed"]
    assert swapped_to() == before
    assert not path.exists()
    assert changes(state) == {}


def test_somebody_elses_area_has_to_be_named_and_stays(kvmctl: Kvmctl, before: set[str], path: Path) -> None:
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 8 * MIB)
    path.chmod(0o600)
    subprocess.run(["mkswap", path], check=True, capture_output=True)
    kvmctl("swap", "enable", "--file", path, "8MiB", code=4)
    swap.swapon(path, priority=3)
    assert rows(kvmctl)[str(path)]["made_by_kvmctl"] is False
    kvmctl("swap", "disable")
    assert str(path) in swapped_to()
    (done,) = kvmctl("-o", "json", "swap", "disable", path).json()
    assert (done["result"], done["reason"]) == ("changed", "not made by kvmctl, so it is there still")
    assert swapped_to() == before
    assert path.stat().st_size == 8 * MIB


@pytest.mark.parametrize("at", ["swapon", "link", "posix_fallocate", "done"])
def test_a_run_that_is_killed_is_made_up_for(
    kvmctl: Kvmctl, before: set[str], path: Path, state: Path, tmp_path: Path, at: str
) -> None:
    # The real command, which ends itself as SIGKILL would when it comes to this point.
    where = {"swapon": "swap.swapon", "done": "Journal.done"}.get(at, f"os.{at}")
    code = (
        "import os, signal\n"
        "from kvmctl.host import swap\n"
        "from kvmctl.host.journal import Journal\n"
        f"{where} = lambda *words, **more: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from kvmctl.cli.main import run\n"
        f"run(['swap', 'enable', '--file', {str(path)!r}, '16MiB'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(state, tmp_path / "run"), check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert f"had begun to enable {path}" in kvmctl("swap", "show").err
    ran = kvmctl("swap", "disable")
    assert "a run that was interrupted had" in ran.err
    assert swapped_to() == before
    assert [one.name for one in FOLDER.glob(f"*{path.name}*")] == []
    assert json.loads((state / "journal.json").read_text())["intents"] == {}


def test_bad_input_is_refused(kvmctl: Kvmctl, before: set[str], tmp_path: Path) -> None:
    kvmctl("swap", "enable", code=2)
    kvmctl("swap", "enable", "--zram", "1GiB", "--file", "/var/x", "1GiB", code=2)
    kvmctl("swap", "enable", "--zram", "7", code=2)
    kvmctl("swap", "enable", "--file", "relative", "1GiB", code=2)
    kvmctl("swap", "enable", "--zram", "100000GiB", code=5)
    kvmctl("swap", "enable", "--file", "/dev/shm/kvmctl-test-swap", "16MiB", code=5)
    kvmctl("swap", "enable", "--file", tmp_path / "none/swap", "16MiB", code=3)
    kvmctl("-c", "qemu+ssh://elsewhere/system", "swap", "disable", code=5)
    assert swapped_to() == before


def test_a_kernel_without_zram_refuses_it_and_names_what_else_there_is(
    before: set[str], state: Path, tmp_path: Path
) -> None:
    # Nothing of zram, and no module to load, is to be seen by this one process.
    hide = 'mount -t tmpfs none /sys/class; mkdir -p /lib/modules && mount -t tmpfs none /lib/modules; exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", hide, "sh", sys.executable, "-m", "kvmctl", "swap", "enable"]
    env = environment(state, tmp_path / "run")
    done = subprocess.run([*command, "--zram", "64MiB"], env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 5, done.stderr
    assert "this kernel has no zram, not as a module either" in done.stderr
    assert "kvmctl swap enable --file PATH SIZE" in done.stderr
    assert swapped_to() == before
    assert not (state / "journal.json").exists() or json.loads((state / "journal.json").read_text())["intents"] == {}


# What goes there


@pytest.fixture
def merging() -> Iterator[None]:
    """KSM at a good pace; as it was afterwards."""
    names = ("pages_to_scan", "sleep_millisecs", "run")
    found = {name: (ksm.ROOT / name).read_text().strip() for name in names}
    for name, value in (("pages_to_scan", "20000"), ("sleep_millisecs", "10"), ("run", "1")):
        (ksm.ROOT / name).write_text(value)
    yield
    (ksm.ROOT / "run").write_text("2")
    for name, value in found.items():
        (ksm.ROOT / name).write_text(value)


def merged(process: Holder) -> int:
    return sum(flag == 0x80 for flag in process.flags(process.same))


def step_until(process: Holder, most: int, good: Callable[[], bool]) -> cold.Moved:
    """Step every few seconds, as a tick does; the last step."""
    pager = cold.Pager()
    moved: list[cold.Moved] = []

    def once() -> bool:
        moved.append(pager.page_out(process.pid, process.size, most))
        return good()

    until(once, bool, 60, f"what was paged out of {process}")
    return moved[-1]


def test_cold_memory_is_swapped_and_hot_and_merged_memory_stays(zram: str, merging: None) -> None:
    with holder(hot=16, cold=64, same=16) as process:
        pages = len(process.same) // PAGE_SIZE
        until(lambda: merged(process), lambda count: count > pages * 0.99, 60, f"merged pages of {pages}")
        cold_pages, hot_pages = len(process.cold) // PAGE_SIZE, len(process.hot) // PAGE_SIZE
        step_until(process, 32 * MIB, lambda: process.in_swap(process.cold) > 0.9 * cold_pages)
        until(lambda: process.in_swap(process.hot), lambda count: count < 0.02 * hot_pages, 10, "hot pages in swap")
        assert process.in_swap(process.same) < 0.01 * pages
        assert merged(process) > 0.98 * pages
        found = swap.zram(Path(zram).name)
        assert found is not None
        assert found.stored >= 0.9 * len(process.cold)


def test_a_step_moves_no_more_than_is_wanted_and_its_canaries(zram: str) -> None:
    with holder(hot=1, cold=63) as process:
        pager = cold.Pager()
        first = pager.page_out(process.pid, process.size, 8 * MIB)
        assert first.moved == first.canaries * PAGE_SIZE
        assert first.canaries == process.size // cold.SLICE
        step = partial(pager.page_out, process.pid, process.size, 8 * MIB)
        second = until(step, lambda one: one.moved > MIB, 30, "what was moved")
        # Canaries in the process's own memory take the place of those that came back.
        assert 7 * MIB <= second.moved <= 8 * MIB + second.canaries * PAGE_SIZE
        assert pageout.swapped(process.pid) <= first.moved + second.moved + MIB


def test_haste_takes_what_nothing_is_known_of(zram: str) -> None:
    with holder(hot=1, cold=63) as process:
        moved = cold.Pager().page_out(process.pid, process.size, 32 * MIB, haste=True)
        assert moved.moved >= 31 * MIB


def test_what_comes_back_by_itself_is_counted(zram: str) -> None:
    with holder(hot=32, cold=1) as process:
        pager = cold.Pager()
        pager.page_out(process.pid, process.size, 24 * MIB, haste=True)
        until(lambda: process.in_swap(process.hot), lambda count: count == 0, 10, "hot pages in swap")
        again = pager.page_out(process.pid, process.size, 0)
        assert again.returned >= 20 * MIB


def test_what_is_swapped_is_back_in_memory_once_it_is_disabled(kvmctl: Kvmctl, zram: str) -> None:
    with holder(hot=1, cold=63) as process:
        cold.Pager().page_out(process.pid, process.size, 48 * MIB, haste=True)
        areas = [area for area in swap.areas() if area.name == zram]
        assert areas[0].used >= 40 * MIB
        kvmctl("swap", "disable")
        assert process.in_swap(process.cold) == 0
        kvmctl("swap", "enable", "--zram", "256MiB")
