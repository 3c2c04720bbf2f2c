from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmctl.host import ksm, memory
from kvmctl.host.journal import Journal
from kvmctl.host.ksm import KsmSettings, Setting
from kvmctl.model.errors import RefusedError

pytestmark = pytest.mark.unit

OLD = {
    "run": "0", "pages_to_scan": "100", "sleep_millisecs": "20", "merge_across_nodes": "1", "full_scans": "0",
    "pages_shared": "0", "pages_sharing": "0", "pages_unshared": "0", "pages_volatile": "0",
}  # fmt: skip
NEW = OLD | {
    "general_profit": "0", "use_zero_pages": "0", "ksm_zero_pages": "0", "smart_scan": "1",
    "advisor_mode": "[none] scan-time",
}  # fmt: skip
WRITABLE = (
    "run",
    "merge_across_nodes",
    "pages_to_scan",
    "sleep_millisecs",
    "use_zero_pages",
    "smart_scan",
    "advisor_mode",
)


class Host:
    """A folder like /sys/kernel/mm/ksm and a journal."""

    def __init__(self, top: Path, files: dict[str, str]) -> None:
        self.root = top / "ksm"
        self.root.mkdir()
        self.journal = Journal(top / "journal.json")
        self.write(**files)

    def write(self, **files: str) -> None:
        for name, value in files.items():
            (self.root / name).write_text(f"{value}\n")

    def now(self) -> dict[str, str]:
        """Chosen words instead of the lists that the kernel shows, which a plain file does not make."""
        found = {name: (self.root / name).read_text().strip() for name in WRITABLE if (self.root / name).exists()}
        return {name: value.replace("[none] scan-time", "none") for name, value in found.items()}

    def enable(self, force: bool = False, **wanted: Any) -> dict[str, Setting]:
        return {s.file: s for s in ksm.enable(KsmSettings(**wanted), self.journal, force, self.root)}

    def disable(self, unmerge: bool = False, force: bool = False) -> dict[str, Setting]:
        return {s.file: s for s in ksm.disable(self.journal, unmerge, force, self.root)}


@pytest.fixture
def old(tmp_path: Path) -> Host:
    return Host(tmp_path, OLD)


@pytest.fixture
def new(tmp_path: Path) -> Host:
    return Host(tmp_path, NEW)


def test_a_kernel_without_an_advisor_gets_a_pace_and_back(old: Host) -> None:
    before = old.now()
    done = old.enable()
    assert old.now() == before | {"run": "1", "pages_to_scan": str(ksm.PAGES_TO_SCAN)}
    assert {name: s.result for name, s in done.items()} == {
        "pages_to_scan": "changed", "sleep_millisecs": "unchanged", "run": "changed",
    }  # fmt: skip
    assert list(done)[-1] == "run"
    old.disable()
    assert old.now() == before
    assert old.journal.entries(ksm.KIND) == {}


def test_a_kernel_with_an_advisor_lets_it_choose_and_back(new: Host) -> None:
    before = new.now()
    done = new.enable()
    assert "pages_to_scan" not in done
    assert new.now()["advisor_mode"] == "scan-time"
    assert new.now()["use_zero_pages"] == "1"
    new.write(pages_to_scan="4711")  # the advisor's doing
    new.disable()
    assert new.now() == before


def test_the_users_own_pace_turns_the_advisor_off(new: Host) -> None:
    new.write(advisor_mode="none [scan-time]", pages_to_scan="3333")
    new.enable(pages_to_scan=2000, sleep_millisecs=10)
    assert new.now() | {"advisor_mode": "none", "pages_to_scan": "2000", "sleep_millisecs": "10"} == new.now()
    done = new.disable()
    assert new.now()["advisor_mode"] == "scan-time"
    assert done["pages_to_scan"].result == "unchanged"
    assert new.journal.entries(ksm.KIND) == {}


def test_enabling_twice_changes_nothing_and_still_remembers_the_first_values(old: Host) -> None:
    before = old.now()
    old.enable()
    assert {s.result for s in old.enable().values()} == {"unchanged"}
    old.enable(pages_to_scan=50)
    old.disable()
    assert old.now() == before


def test_merging_across_nodes_is_changed_with_nothing_merged_and_put_back(old: Host) -> None:
    before = old.now()
    done = old.enable(merge_across_nodes=False)
    assert next(iter(done)) == ksm.NODES
    assert (done[ksm.NODES].result, done["run"].old, done["run"].result) == ("changed", "2", "changed")
    assert (old.now()[ksm.NODES], old.now()["run"]) == ("0", "1")
    assert old.enable(merge_across_nodes=False)[ksm.NODES].result == "unchanged"
    assert old.enable()["run"].result == "unchanged", "it is not taken apart for nothing"
    assert ksm.NODES not in old.enable()
    undone = old.disable()
    assert undone[ksm.NODES].result == "changed"
    assert old.now() == before
    assert old.journal.entries(ksm.KIND) == {}


def test_merged_pages_are_not_taken_apart_where_they_do_not_fit(old: Host) -> None:
    old.write(pages_sharing=str(1 << 40), run="1")
    before = old.now()
    with pytest.raises(RefusedError, match="unmerging needs"):
        old.enable(merge_across_nodes=False)
    assert old.now() == before
    assert old.journal.entries(ksm.KIND) == {}


def test_what_does_not_fit_any_more_keeps_the_rest_from_nothing(old: Host) -> None:
    old.enable(merge_across_nodes=False, sleep_millisecs=50)
    old.write(pages_sharing=str(1 << 40))
    undone = old.disable()
    assert (undone[ksm.NODES].result, undone["sleep_millisecs"].result) == ("not applied", "changed")
    assert "unmerging needs" in undone[ksm.NODES].reason
    assert list(old.journal.entries(ksm.KIND)) == [ksm.NODES], "it can be put back later"
    old.write(pages_sharing="0")
    assert old.disable()[ksm.NODES].result == "changed"


def test_a_host_that_merged_before_goes_on_merging(old: Host) -> None:
    old.write(run="1")
    old.enable(merge_across_nodes=False)
    old.disable()
    assert (old.now()["run"], old.now()[ksm.NODES]) == ("1", "1")


def test_a_kernel_without_nodes_says_so(old: Host) -> None:
    (old.root / ksm.NODES).unlink()
    with pytest.raises(RefusedError, match="no NUMA nodes"):
        old.enable(merge_across_nodes=False)
    assert old.now()["run"] == "0"
    done = old.enable(merge_across_nodes=True)[ksm.NODES]
    assert (done.result, "no NUMA nodes" in done.reason) == ("unchanged", True)


def test_a_foreign_change_is_named_and_left_alone(old: Host) -> None:
    old.enable()
    old.write(pages_to_scan="64")
    for done in (old.enable(), old.disable()):
        assert done["pages_to_scan"].result == "not applied"
        assert done["pages_to_scan"].respected
        assert "someone else 64" in done["pages_to_scan"].reason
    assert old.now()["pages_to_scan"] == "64"
    assert old.now()["run"] == "0"
    assert old.disable(force=True)["pages_to_scan"].result == "changed"
    assert old.now()["pages_to_scan"] == "100"


def test_what_the_user_asks_for_now_overrides_a_foreign_change(old: Host) -> None:
    old.enable()
    old.write(pages_to_scan="64", run="0")
    done = old.enable(pages_to_scan=500)
    assert done["run"].result == done["pages_to_scan"].result == "changed"
    assert "someone else 64" in done["pages_to_scan"].reason
    old.disable()
    assert old.now()["pages_to_scan"] == "100"


def test_ksm_that_somebody_else_switched_on_is_still_switched_off(old: Host) -> None:
    old.write(run="1")
    assert old.enable()["run"].result == "unchanged"
    old.disable()
    assert old.now()["run"] == "0"


def test_each_file_is_put_back_on_its_own_and_run_first(new: Host) -> None:
    new.enable(pages_to_scan=500, sleep_millisecs=5)
    entries = ksm.changed(new.journal)
    assert next(iter(entries)) == "run"
    new.write(run="2")
    assert ksm.put_back("run", entries["run"], new.journal, root=new.root).respected
    assert ksm.value("run", new.root) == "2"
    for name, entry in entries.items():
        assert ksm.put_back(name, entry, new.journal, force=True, root=new.root).result != "not applied"
    assert new.now()["run"] == "0"
    assert ksm.changed(new.journal) == {}


def test_unmerging_has_to_fit_into_what_the_guests_group_may_have(new: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    new.enable()
    new.write(pages_sharing="256")
    monkeypatch.setattr(memory, "guests_available", lambda _root: 1 << 19)
    with pytest.raises(RefusedError, match="512KiB are available"):
        new.disable(unmerge=True)
    monkeypatch.setattr(memory, "guests_available", lambda _root: 1 << 20)
    new.disable(unmerge=True)


def test_unmerging_that_does_not_fit_is_refused_with_the_sum(new: Host) -> None:
    new.enable()
    new.write(pages_sharing=str(10**12), ksm_zero_pages="1")
    with pytest.raises(
        RefusedError, match=r"unmerging needs .* \(1000000000001 pages of \d+ bytes\), and .* too little"
    ):
        new.disable(unmerge=True)
    assert new.now()["run"] == "1"
    assert new.journal.entries(ksm.KIND)


def test_unmerging_ends_with_what_run_was(new: Host) -> None:
    new.write(run="2")
    new.enable()
    new.write(pages_sharing="10")
    done = new.disable()
    assert (done["run"].old, done["run"].found) == ("1", "2")
    new.write(run="1")
    assert new.disable(unmerge=True)["run"].found == "0"


def test_a_kernel_without_ksm_refuses_and_has_no_sample(tmp_path: Path) -> None:
    assert ksm.sample(tmp_path) is None
    with pytest.raises(RefusedError, match="no KSM"):
        ksm.enable(KsmSettings(), Journal(tmp_path / "journal.json"), root=tmp_path)


def test_a_sample_has_none_for_what_an_older_kernel_lacks(old: Host, tmp_path: Path) -> None:
    found = ksm.sample(old.root)
    assert found is not None
    assert (found.run, found.pages_to_scan) == (0, 100)
    assert (found.general_profit, found.advisor_mode, found.smart_scan) == (None, None, None)


def test_a_value_the_kernel_does_not_take_is_reported_with_what_it_holds(old: Host) -> None:
    (old.root / "pages_to_scan").unlink()
    (old.root / "pages_to_scan").symlink_to("/dev/null")
    done = old.enable()
    assert done["pages_to_scan"].result == "not applied"
    assert not done["pages_to_scan"].respected
    assert done["run"].result == "changed"


pace = st.none() | st.integers(1, 10_000)


@settings(deadline=None, max_examples=40)
@given(kernel=st.sampled_from([OLD, NEW]), steps=st.lists(st.tuples(pace, pace), min_size=1, max_size=4))
def test_whatever_was_enabled_disabling_puts_all_of_it_back(
    tmp_path_factory: pytest.TempPathFactory, kernel: dict[str, str], steps: list[tuple[int | None, int | None]]
) -> None:
    host = Host(tmp_path_factory.mktemp("ksm"), kernel)
    before = host.now()
    for pages, sleep in steps:
        ksm.enable(KsmSettings(pages, sleep), host.journal, root=host.root)
        assert host.now()["run"] == "1"
    host.disable()
    assert host.now() == before
    assert host.journal.entries(ksm.KIND) == {}
