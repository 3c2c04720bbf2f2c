"""KSM driven towards an aim, and put back."""

from pathlib import Path

import pytest

from kvmctl.host import ksm, ksm_steer
from kvmctl.host.journal import Journal
from kvmctl.model.reclaim import KsmAim
from kvmctl.model.units import GIB
from kvmctl.policy.ksm import LEAST_PAGES, MOST_PAGES, PAGE, PAGE_SECONDS, scan_rate

pytestmark = pytest.mark.unit

OLD = {"run": "0", "pages_to_scan": "100", "sleep_millisecs": "20"}
NEW = OLD | {
    "ksm_zero_pages": "0",
    "use_zero_pages": "0",
    "smart_scan": "1",
    "advisor_mode": "[none] scan-time",
    "advisor_max_cpu": "70",
    "advisor_target_scan_time": "200",
}
AIM = KsmAim(True, 60, 0.3, "the host is short")


def make(top: Path, files: dict[str, str]) -> tuple[Path, Journal]:
    root = top / "ksm"
    root.mkdir()
    for name, value in files.items():
        (root / name).write_text(f"{value}\n")
    return root, Journal(top / "journal.json")


def now(root: Path) -> dict[str, str]:
    return {path.name: path.read_text().strip() for path in root.iterdir()}


def test_the_kernels_advisor_is_given_the_aim(tmp_path: Path) -> None:
    root, journal = make(tmp_path, NEW)
    done = ksm_steer.steer(AIM, 1000, journal, root=root)
    assert {one.result for one in done} <= {"changed", "not applied"}
    found = now(root)
    assert found["advisor_mode"] == "scan-time"
    assert (found["advisor_max_cpu"], found["advisor_target_scan_time"], found["run"]) == ("30", "60", "1")
    assert found["use_zero_pages"] == "1"
    assert found["pages_to_scan"] == "100", "the advisor's to set"


def test_without_an_advisor_the_pace_is_set(tmp_path: Path) -> None:
    root, journal = make(tmp_path, OLD)
    ksm_steer.steer(AIM, 1234, journal, root=root)
    found = now(root)
    assert found["run"] == "1"
    assert found["pages_to_scan"] == "1234"
    ksm.disable(journal, root=root)
    assert now(root) == OLD


def test_a_second_time_changes_nothing_with_the_advisor(tmp_path: Path) -> None:
    root, journal = make(tmp_path, NEW | {"advisor_mode": "none [scan-time]"})
    ksm_steer.steer(AIM, 1000, journal, root=root)
    assert ksm_steer.steer(AIM, 1000, journal, root=root) == []


def test_what_somebody_else_set_is_left(tmp_path: Path) -> None:
    root, journal = make(tmp_path, OLD)
    ksm_steer.steer(AIM, 1000, journal, root=root)
    (root / "run").write_text("0\n")
    done = {one.file: one for one in ksm_steer.steer(AIM, 1000, journal, root=root)}
    assert done["run"].respected
    assert now(root)["run"] == "0"


def test_it_is_switched_off_only_where_kvmctl_had_switched_it_on(tmp_path: Path) -> None:
    rest = KsmAim(False, 200, 0.3, "it costs more than it saves")
    root, journal = make(tmp_path, OLD | {"run": "1"})
    assert ksm_steer.steer(rest, 1000, journal, root=root) == []
    (root / "run").write_text("0\n")
    ksm_steer.steer(AIM, 1000, journal, root=root)
    ksm_steer.steer(rest, 1000, journal, root=root)
    assert now(root)["run"] == "0"


def test_the_law_keeps_the_kernels_bounds_and_the_cpu() -> None:
    assert scan_rate(0, 0, 200, 20, 0.9) == LEAST_PAGES
    assert scan_rate(MOST_PAGES, 1000 * GIB, 20, 20, 0.95) <= MOST_PAGES
    slow = scan_rate(30_000, 1000 * GIB, 20, 20, 0.1)
    assert slow * PAGE_SECONDS / (0.02 + slow * PAGE_SECONDS) == pytest.approx(0.1, rel=0.01)


def test_the_law_settles_where_one_pass_takes_its_time() -> None:
    rate = 100
    for _ in range(60):
        rate = scan_rate(rate, 64 * GIB, 60, 20, 0.9)
    wanted = 64 * GIB / PAGE / (60 / 0.02)
    assert rate == pytest.approx(min(wanted, 0.9 / 0.1 * 0.02 / PAGE_SECONDS), rel=0.01)
