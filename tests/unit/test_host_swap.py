from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kvmctl.host import memory, swap, swap_change, swap_file, swap_unit, swap_zram
from kvmctl.host.files import PAGE_SIZE
from kvmctl.host.journal import Journal
from kvmctl.host.schedule import Job
from kvmctl.model.errors import ConflictError, NotFoundError, RefusedError, UsageError
from kvmctl.model.units import GIB, MIB
from tests.trees import fill

pytestmark = pytest.mark.unit

UUID = "00112233445566778899aabbccddeeff"
OTHER = "ff" * 16
SWAPS = """\
Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority
/dev/zram0                              partition\t1048572\t\t4096\t\t100
/var/my\\040swap                         file\t\t2097148\t\t0\t\t-2
/dev/sda2                               partition\t524284\t\t524284\t\t-3
"""
MM_STAT = "4194304 1048576 1310720 0 2000000 7 0 0 0"
MEMINFO = "MemTotal: 4194304 kB\nMemAvailable: {available} kB\nZswap: 100 kB\nZswapped: 300 kB\n"


class Host:
    """/proc, /sys and /dev of a host as files, and a journal."""

    def __init__(self, top: Path) -> None:
        self.root = top / "host"
        self.journal = Journal(top / "journal.json")
        fill(self.root / "proc", swaps=SWAPS, meminfo=MEMINFO.format(available=1 << 20))
        self.zram(0, disksize=GIB, mm_stat=MM_STAT)
        fill(self.root / "sys/class/zram-control", hot_add=7, hot_remove="")
        self.area("dev/zram0", UUID)
        fill(self.root / "proc/sys/vm", swappiness=60)

    def zram(self, number: int, **values: object) -> Path:
        return fill(
            self.root / f"sys/block/zram{number}",
            **{"comp_algorithm": "lzo [lzo-rle] lz4 zstd", "mm_stat": "0 0 0 0 0 0 0 0 0", "reset": ""} | values,
        )

    def area(self, name: str, uuid: str, size: int = MIB) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with path.open("r+b") as file:
            swap.write_header(file.fileno(), size, uuid)
        return path

    def no_swap(self) -> None:
        fill(self.root / "proc", swaps="Filename Type Size Used Priority")

    def available(self, size: int) -> None:
        fill(self.root / "proc", meminfo=MEMINFO.format(available=size // 1024))

    def choose(self, *names: str) -> list[str]:
        return [area.name for area in swap_change.choose(names, self.journal, self.root)]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "swaps"
    made.mkdir(mode=0o700)
    return made


# What there is


def test_areas_are_listed_with_what_zram_takes(host: Host) -> None:
    zram, file, other = swap.areas(host.root)
    assert zram == swap.Area(
        "/dev/zram0", "zram", 1048572 * 1024, 4 * MIB, 100, UUID, ours=True,
        zram=swap.Zram(GIB, "lzo-rle", 4 * MIB, MIB, 1310720),
    )  # fmt: skip
    assert (file.name, file.kind, file.priority, file.ours, file.uuid) == ("/var/my swap", "file", -2, False, None)
    assert (other.kind, other.used) == ("partition", 524284 * 1024)
    assert swap.swappiness(host.root) == 60


def test_a_host_without_swap_has_none(host: Host) -> None:
    host.no_swap()
    assert swap.areas(host.root) == ()
    assert swap.areas(host.root / "nothing") == ()
    assert swap.zram("zram9", host.root) is None


def test_zswap_has_its_figures_from_debugfs_else_from_meminfo(host: Host) -> None:
    assert swap.zswap(host.root) is None
    fill(host.root / "sys/module/zswap/parameters", enabled="N", compressor="lzo", max_pool_percent=20)
    assert swap.zswap(host.root) == swap.Zswap(False, "lzo", 20, 300 * 1024, 100 * 1024)
    fill(host.root / "sys/module/zswap/parameters", enabled="Y")
    fill(host.root / "sys/kernel/debug/zswap", stored_pages=5, pool_total_size=12345)
    assert swap.zswap(host.root) == swap.Zswap(True, "lzo", 20, 5 * PAGE_SIZE, 12345)


def test_a_header_is_what_other_programs_make_and_read(tmp_path: Path) -> None:
    path = tmp_path / "area"
    path.write_bytes(bytes(MIB))
    assert swap.header(path) == (None, None)
    with path.open("r+b") as file:
        swap.write_header(file.fileno(), MIB, UUID)
    assert swap.header(path) == (b"kvmctl", UUID)
    found = subprocess.run(["blkid", "-p", "-o", "export", path], capture_output=True, text=True, check=True).stdout
    dashed = "00112233-4455-6677-8899-aabbccddeeff"
    assert {"TYPE=swap", "LABEL=kvmctl", f"UUID={dashed}"} <= set(found.splitlines())
    subprocess.run(["mkswap", "-L", "mine", "-U", dashed, path], capture_output=True, check=True)
    assert swap.header(path) == (b"mine", UUID)


# zram


def test_a_device_that_nobody_has_set_up_is_taken_else_one_is_added(host: Host) -> None:
    assert swap_zram.free_device(host.root) == ("zram7", True)
    host.zram(3, disksize=0)
    assert swap_zram.free_device(host.root) == ("zram3", False)


def test_a_device_is_set_up_with_the_best_algorithm_that_is_offered(host: Host) -> None:
    folder = host.zram(3, disksize=0)
    (host.root / "dev/zram3").touch()
    swap_zram.fill("zram3", 64 * MIB, UUID, host.root)
    assert (folder / "comp_algorithm").read_text() == "zstd"
    assert (folder / "disksize").read_text() == str(64 * MIB)
    assert swap.header(host.root / "dev/zram3") == (b"kvmctl", UUID)


def test_a_kernel_without_zram_says_what_else_there_is(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no zram") as caught:
        swap_zram.load(tmp_path)
    assert "--file" in caught.value.hint


def test_more_than_could_ever_be_compressed_is_refused(host: Host) -> None:
    host.no_swap()
    with pytest.raises(RefusedError, match=r"zram of 17GiB is more than 4 times this host's 4GiB"):
        swap_change.enable_zram(17 * GIB, host.journal, root=host.root)
    with pytest.raises(RefusedError, match="too little"):
        swap_change.enable_zram(PAGE_SIZE, host.journal, root=host.root)
    assert not host.journal.unfinished()


def test_zram_that_is_there_is_kept_and_of_another_size_a_conflict(host: Host) -> None:
    done = swap_change.enable_zram(GIB, host.journal, root=host.root)
    assert (done.name, done.result) == ("/dev/zram0", "unchanged")
    with pytest.raises(ConflictError, match="/dev/zram0 of 1GiB already"):
        swap_change.enable_zram(2 * GIB, host.journal, root=host.root)


def test_a_dry_run_changes_nothing(host: Host, folder: Path) -> None:
    host.no_swap()
    assert swap_change.enable_zram(GIB, host.journal, True, host.root).result == "pending"
    assert swap_change.enable_file(folder / "swap", MIB, host.journal, True, host.root).result == "pending"
    assert list(folder.iterdir()) == []
    assert not host.journal.path.exists()


def test_what_the_kernel_does_not_take_is_undone(host: Host) -> None:
    host.no_swap()
    device = host.zram(3, disksize=0)
    (host.root / "dev/zram3").touch()
    # As long as one page, so that the kernel finds its header untrue.
    with pytest.raises(RefusedError, match="the kernel cannot swap to"):
        swap_change.enable_zram(64 * MIB, host.journal, root=host.root)
    assert (device / "reset").read_text() == "1"
    assert not host.journal.unfinished()
    assert host.journal.entries(swap.KIND) == {}


# Files


def test_a_file_is_whole_private_and_under_no_other_name(folder: Path) -> None:
    path = folder / "swap"
    swap_file.make(path, folder / ".temporary", MIB, UUID)
    status = path.stat()
    assert [one.name for one in folder.iterdir()] == ["swap"]
    assert (status.st_mode & 0o777, status.st_size) == (0o600, MIB)
    assert status.st_blocks * 512 >= MIB
    assert swap_file.is_made(path)
    assert swap_file.check_name(path, MIB)
    with pytest.raises(ConflictError, match="swap file of 1MiB already"):
        swap_file.check_name(path, 2 * MIB)


@pytest.mark.parametrize("kind", ["file", "swap", "link", "folder"])
def test_what_kvmctl_did_not_make_is_not_touched(folder: Path, host: Host, kind: str) -> None:
    path = folder / "swap"
    if kind == "link":
        path.symlink_to(host.area("elsewhere", UUID))
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(bytes(MIB))
    if kind == "swap":
        subprocess.run(["mkswap", path], capture_output=True, check=True)
    before = path.lstat()
    with pytest.raises(ConflictError, match="kvmctl did not make it") as raised:
        swap_change.enable_file(path, MIB, host.journal, root=host.root)
    assert ("delete it" in raised.value.hint) == (kind in ("file", "swap"))
    with pytest.raises(ConflictError, match="kvmctl did not make it"):
        swap_file.make(path, folder / ".temporary", MIB, UUID)
    assert path.lstat() == before


@pytest.mark.parametrize("path", ["swap", "./swap", "/var/../swap", "/tmp/a\nb"])
def test_a_path_has_to_be_written_in_full(path: str) -> None:
    with pytest.raises(UsageError, match="not an absolute path"):
        swap_file.check_name(Path(path), MIB)


def test_a_place_is_refused_with_the_reason(folder: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no folder"):
        swap_file.check_place(folder / "none/swap", MIB)
    with pytest.raises(RefusedError, match=r"are free on the file system .* would leave less than"):
        swap_file.check_place(folder / "swap", 1 << 50)
    folder.chmod(0o777)
    with pytest.raises(RefusedError, match="others than root may change"):
        swap_file.check_place(folder / "swap", MIB)


def test_a_file_system_in_memory_is_refused() -> None:
    shm = Path("/dev/shm")
    assert swap_file.file_system(shm) == "tmpfs"
    with pytest.raises(RefusedError, match="is on tmpfs, which cannot be swapped to"):
        swap_file.check_place(shm / "kvmctl-test-swap", MIB)


def test_a_file_system_without_room_is_refused() -> None:
    with pytest.raises(RefusedError, match="is on proc, which has no room for files"):
        swap_file.check_place(Path("/proc/kvmctl-test-swap"), MIB)


# Off again


def test_without_names_only_what_kvmctl_made_is_chosen(host: Host) -> None:
    assert host.choose() == ["/dev/zram0"]
    host.area("dev/zram0", OTHER)
    (host.root / "dev/zram0").write_bytes(b"")
    assert host.choose() == []
    host.journal.record(swap.KIND, "/dev/zram0", None, {"kind": "zram", "uuid": UUID, "size": GIB})
    assert host.choose() == ["/dev/zram0"]


def test_areas_are_named_as_people_name_them(host: Host) -> None:
    assert host.choose("zram0", "/dev/zram0", "/var/my swap", "sda2") == ["/dev/zram0", "/var/my swap", "/dev/sda2"]
    with pytest.raises(NotFoundError, match="does not swap to /dev/zram1"):
        host.choose("zram1")


def test_what_somebody_else_has_switched_off_is_still_chosen_for_removal(host: Host) -> None:
    host.area("var/swap", UUID)
    host.journal.record(swap.KIND, "/var/swap", None, {"kind": "file", "uuid": UUID, "size": MIB})
    host.journal.record(swap.KIND, "/var/gone", None, {"kind": "file", "uuid": OTHER, "size": MIB})
    assert host.choose() == ["/dev/zram0", "/var/swap"]
    host.area("var/swap", OTHER)
    assert host.choose() == ["/dev/zram0"]


def test_a_file_of_an_earlier_boot_is_found_by_its_name(host: Host) -> None:
    host.area("var/swap", UUID)
    assert host.choose("/var/swap") == ["/var/swap"]


def test_what_does_not_fit_in_memory_is_refused_with_the_sum(host: Host) -> None:
    chosen = swap_change.choose(["zram0", "sda2"], host.journal, host.root)
    swap_change.check_fits(chosen, host.root)
    host.available(512 * MIB)
    swap_change.check_fits(chosen[1:], host.root)
    with pytest.raises(RefusedError, match=r"516MiB are swapped to /dev/zram0, /dev/sda2, 512MiB .* 2.7MiB too little"):
        swap_change.check_fits(chosen, host.root)


def test_it_has_to_fit_into_what_the_guests_group_may_have(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = swap_change.choose(["sda2"], host.journal, host.root)
    monkeypatch.setattr(memory, "guests_available", lambda _root: 8 * MIB)
    with pytest.raises(RefusedError, match="8MiB of memory are available"):
        swap_change.check_fits(chosen, host.root)


def test_a_device_that_somebody_else_has_taken_is_not_reset(host: Host) -> None:
    data = {"kind": "zram", "uuid": OTHER, "size": GIB, "added": True, "temporary": "", "boot": ""}
    swap_zram.give_back("zram0", data, host.root)
    assert (host.root / "sys/block/zram0/reset").read_text() == "\n"
    assert (host.root / "sys/class/zram-control/hot_remove").read_text() == "\n"
    swap_zram.give_back("zram0", data | {"uuid": UUID}, host.root)
    assert (host.root / "sys/block/zram0/reset").read_text() == "1"


# After a crash


def begun(kind: str, **more: object) -> dict[str, object]:
    return {"kind": kind, "uuid": UUID, "size": MIB, "added": False, "temporary": "", "boot": ""} | more


def test_a_file_that_was_begun_is_removed_and_nothing_else(host: Host) -> None:
    host.no_swap()
    path = Path("/var/swap")
    temporary = host.area("var/.swap.123", UUID)
    foreign = host.area("var/swap", OTHER)
    host.journal.begin(swap.KIND, str(path), begun("file", temporary=str(temporary)))
    (said,) = swap_change.recover(host.journal, host.root)
    assert said == "a run that was interrupted had begun to set up /var/swap: what there was of it is removed"
    assert not temporary.exists()
    assert swap.header(foreign) == (b"kvmctl", OTHER)
    assert not host.journal.unfinished()
    assert swap_change.recover(host.journal, host.root) == []


def test_a_file_that_was_whole_but_not_enabled_is_removed(host: Host) -> None:
    host.no_swap()
    made = host.area("var/swap", UUID)
    host.journal.begin(swap.KIND, "/var/swap", begun("file"))
    swap_change.recover(host.journal, host.root)
    assert not made.exists()


def test_what_was_enabled_is_kept_and_recorded(host: Host) -> None:
    host.journal.begin(swap.KIND, "/dev/zram0", begun("zram"))
    (said,) = swap_change.recover(host.journal, host.root)
    assert said.endswith("had enabled /dev/zram0: it is kept")
    assert host.journal.entries(swap.KIND)["/dev/zram0"].new["uuid"] == UUID


def test_zram_that_was_begun_before_a_reboot_is_nobodys(host: Host) -> None:
    host.no_swap()
    host.journal.begin(swap.KIND, "/dev/zram0", begun("zram", boot="another", size=GIB))
    (said,) = swap_change.recover(host.journal, host.root)
    assert "gone since the reboot" in said
    assert (host.root / "sys/block/zram0/reset").read_text() == "\n"


# At boot


def job(*words: str) -> Job:
    return Job(("/usr/bin/kvmctl", "-q", "swap", "enable", *words), {"PATH": "/usr/bin:/sbin"})


def test_a_unit_is_written_kept_and_removed(tmp_path: Path) -> None:
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    assert swap_unit.install("zram", job("--zram", "1048576KiB"), tmp_path) == ""
    path = tmp_path / "etc/systemd/system/kvmctl-swap-zram.service"
    text = path.read_text()
    assert "\nExecStart=/usr/bin/kvmctl -q swap enable --zram 1048576KiB\n" in text
    assert "\nEnvironment=PATH=/usr/bin:/sbin\n" in text
    assert path.stat().st_mode & 0o777 == 0o644
    written = path.stat().st_ino
    swap_unit.install("zram", job("--zram", "1048576KiB"), tmp_path)
    assert path.stat().st_ino == written
    assert swap_unit.installed("zram", tmp_path)
    swap_unit.remove("zram", tmp_path)
    assert not path.exists()
    assert not swap_unit.installed("zram", tmp_path)


def test_a_unit_that_is_not_ours_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "etc/systemd/system"
    folder.mkdir(parents=True)
    path = folder / "kvmctl-swap-zram.service"
    path.write_text("[Unit]\n")
    with pytest.raises(ConflictError, match="is not kvmctl's"):
        swap_unit.install("zram", job(), tmp_path)
    swap_unit.remove("zram", tmp_path)
    assert path.read_text() == "[Unit]\n"


def test_units_of_different_files_have_different_names() -> None:
    names = {swap_unit.unit(name) for name in ("zram", "/a-b", "/a/b", "/a b", "/" + "x" * 200, "/" + "x" * 201)}
    assert len(names) == 6
    assert max(map(len, names)) < 100


def test_what_a_unit_cannot_carry_is_said(tmp_path: Path) -> None:
    said = swap_unit.install("/a b", job("--file", "/a b", "1024KiB"), tmp_path)
    assert said.startswith("no unit can be written for '/a b'")
    assert list(tmp_path.iterdir()) == []


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    program = tmp_path / "kvmctl"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    swap_unit.install("/var/swap", Job((str(program), "swap"), {"PATH": "/usr/bin"}), tmp_path)
    path = tmp_path / "etc/systemd/system" / swap_unit.unit("/var/swap")
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert path.name not in done.stderr
    assert done.returncode == 0, done.stderr
