"""What the memory bench borrows from the machine, recorded in a folder before it is changed and put back from there:
the settings of KSM, and a zram device to swap to. Both are of the whole machine, whatever namespace uses them."""

from __future__ import annotations

import contextlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

KSM = Path("/sys/kernel/mm/ksm")
BLOCK = Path("/sys/block")
_CONTROL = Path("/sys/class/zram-control")
_WRITABLE = ("advisor_mode", "pages_to_scan", "sleep_millisecs", "use_zero_pages", "smart_scan", "run")
"""In the order in which they can be put back: the advisor sets pages_to_scan."""
KSM_DEFAULTS = {
    "advisor_mode": "none", "pages_to_scan": "100", "sleep_millisecs": "20", "use_zero_pages": "0", "smart_scan": "1",
}  # fmt: skip
"""The kernel's own, since Linux 6.7; older ones lack some of the files."""


@dataclass(frozen=True, slots=True)
class KsmCounters:
    """Bytes, but `run` and `pages_to_scan`, which are as in the kernel's files."""

    run: int
    pages_to_scan: int
    sharing: int
    """What merging saves: pages that have no memory of their own."""
    zero: int
    """The same, of pages that hold nothing but zeroes."""


def ksm_settings() -> dict[str, str]:
    """What the machine has now; of a choice such as `[none] scan-time`, the chosen word."""
    texts = {name: (KSM / name).read_text().strip() for name in _WRITABLE if (KSM / name).exists()}
    return {name: text.partition("[")[2].partition("]")[0] or text for name, text in texts.items()}


def ksm_counters() -> KsmCounters:
    """KSM as it is now."""
    zero = KSM / "ksm_zero_pages"
    return KsmCounters(
        run=_number(KSM / "run"),
        pages_to_scan=_number(KSM / "pages_to_scan"),
        sharing=_number(KSM / "pages_sharing") * 4096,
        zero=_number(zero) * 4096 if zero.exists() else 0,
    )


def _number(path: Path) -> int:
    return int(path.read_text())


def set_ksm(wanted: dict[str, str]) -> None:
    """Write those of the files that this kernel has, where they hold anything else."""
    for name in _WRITABLE:
        if name in wanted and ksm_settings().get(name, wanted[name]) != wanted[name]:
            (KSM / name).write_text(wanted[name])


def reset_ksm(folder: Path) -> None:
    """Unmerge everything and give KSM the kernel's own settings, stopped; what was found is kept in the folder."""
    record = folder / "ksm.json"
    if not record.exists():
        record.write_text(json.dumps(ksm_settings()))
    (KSM / "run").write_text("2")
    set_ksm(KSM_DEFAULTS | {"run": "0"})


def restore_ksm(folder: Path) -> None:
    """What the folder says was found; nothing is merged afterwards."""
    record = folder / "ksm.json"
    if record.exists():
        (KSM / "run").write_text("2")
        set_ksm(json.loads(record.read_text()))
        record.unlink()


def add_zram(folder: Path, size: int) -> str:
    """Swap to a new zram device of `size` bytes; its name. Fails where this kernel has no zram."""
    if not _CONTROL.exists():
        subprocess.run(["modprobe", "zram"], check=True)
    number = int((_CONTROL / "hot_add").read_text())
    name = f"zram{number}"
    (folder / "zram").write_text(name)
    (BLOCK / name / "disksize").write_text(str(size))
    subprocess.run(["mkswap", f"/dev/{name}"], check=True, capture_output=True)
    subprocess.run(["swapon", "--priority", "100", f"/dev/{name}"], check=True, capture_output=True)
    return name


def zram_used(name: str) -> tuple[int, int]:
    """Bytes of memory that the device takes, and bytes that were swapped to it."""
    figures = (BLOCK / name / "mm_stat").read_text().split()
    return int(figures[2]), int(figures[0])


def remove_zram(folder: Path) -> None:
    """Swap no more to the folder's device, and remove it."""
    record = folder / "zram"
    if not record.exists():
        return
    name = record.read_text()
    if (BLOCK / name).exists():
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["swapoff", f"/dev/{name}"], check=True, capture_output=True)
        (BLOCK / name / "reset").write_text("1")
        (_CONTROL / "hot_remove").write_text(name.removeprefix("zram"))
    record.unlink()
