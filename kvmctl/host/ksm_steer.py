"""KSM driven as a policy aims: by the kernel's own advisor where it has one, by the advisor's law where not.

Every value is journaled before it is changed, as in `kvmctl.host.ksm`, and undone by `kvmctl ksm disable`.
"""

from __future__ import annotations

from pathlib import Path

from kvmctl.host import ksm
from kvmctl.host.journal import Journal
from kvmctl.host.ksm import ROOT, Setting
from kvmctl.model.reclaim import KsmAim

_ORDER = (
    "advisor_mode",
    "advisor_max_cpu",
    "advisor_target_scan_time",
    "sleep_millisecs",
    "pages_to_scan",
    "use_zero_pages",
    "smart_scan",
    "run",
)
"""The advisor decides who sets pages_to_scan; `run` comes last."""


def steer(aim: KsmAim, pages_to_scan: int, journal: Journal, force: bool = False, root: Path = ROOT) -> list[Setting]:
    """Set what differs from `aim`, and what became of each file that was to be written. `pages_to_scan` each round is
    for a kernel that has no advisor. KSM is switched off only where kvmctl had switched it on, and a file that
    somebody else has changed since is left alone unless `force`.

    Raises KvmctlError where the journal cannot be written.
    """
    entries = journal.entries(ksm.KIND)
    if not aim.run and "run" not in entries:
        return []  # somebody else has switched it on
    done = []
    for name, wanted in wanted_values(aim, pages_to_scan, root).items():
        present = ksm.value(name, root)
        if present in ("", wanted):
            continue
        entry = entries.get(name)
        if entry is not None and entry.new is not None and present != entry.new and not force:
            done.append(Setting(name, present, wanted, present, f"somebody else has set {present}", respected=True))
            continue
        if name == "advisor_mode":
            # The kernel sets pages_to_scan anew whenever the advisor is switched.
            journal.record(ksm.KIND, "pages_to_scan", ksm.value("pages_to_scan", root), None)
        done.append(ksm.write(root, name, present, wanted, journal))
    return done


def wanted_values(aim: KsmAim, pages_to_scan: int, root: Path = ROOT) -> dict[str, str]:
    """What each file is to hold, in the order in which they are to be written."""
    if not aim.run:
        return {"run": "0"}
    wanted = {"sleep_millisecs": str(ksm.SLEEP_MILLISECS), "smart_scan": "1", "run": "1"}
    if (root / "ksm_zero_pages").exists():
        # Before Linux counted them, merged zero pages could not be told from others or taken apart again.
        wanted["use_zero_pages"] = "1"
    if (root / "advisor_mode").exists() and aim.hurry:
        wanted |= {"advisor_mode": "none", "pages_to_scan": str(pages_to_scan)}
    elif (root / "advisor_mode").exists():
        wanted["advisor_mode"] = "scan-time"
        wanted["advisor_max_cpu"] = str(max(1, min(100, round(100 * aim.cores))))
        wanted["advisor_target_scan_time"] = str(aim.scan_seconds)
    else:
        wanted["pages_to_scan"] = str(pages_to_scan)
    return {name: wanted[name] for name in _ORDER if name in wanted}
