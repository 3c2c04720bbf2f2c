import itertools
import json
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.bench import memfigures, memreport, peers
from tests.bench.memfigures import Step, density_row, longest_below, most, percentile, rate, well_again, why
from tests.bench.memguest import MIXES, SIZE, Guest, Report, Reports, command_line, parse, random_phases
from tests.bench.memory import read_options
from tests.bench.peers import GuestView, HostView, Scan, ksmtuned, mom, proxmox

pytestmark = pytest.mark.unit

MIB = 1 << 20
GIB = 1 << 30


def said(*per_second: int, grown_at: int | None = None) -> list[tuple[float, Report]]:
    """Lines of a guest, one a second, with what it did between each two; those after `grown_at` are about more."""
    ops, lines = 0, [(0.0, Report(0.0, 0, 1.0, 96, ready=True))]
    for second, done in enumerate(per_second, start=1):
        ops += done
        hot = 96 if grown_at is None or second <= grown_at else 160
        lines.append((float(second), Report(float(second), ops, 1.0, hot, ready=True)))
    return lines


def step(guests: int, least: float = 1.0, dead: tuple[str, ...] = (), refused: str = "") -> Step:
    return Step(
        guests, least, 4.0, guests * 300 * MIB, GIB, 64 * MIB, 0, 0, guests * SIZE * MIB, 0.1, None, 20.0, dead, refused
    )


@pytest.mark.parametrize(
    "line",
    ["mem t=12.5 ops=100000 worst=3.1 hot=96 ready=1", "mem t=12.5 ops=100000 worst=3.1 hot=96 ready=1\r\n"],
)
def test_a_guests_line_is_read(line: str) -> None:
    assert parse(line) == Report(12.5, 100_000, 3.1, 96, ready=True)


@pytest.mark.parametrize("line", ["", "mem t=12.5 ops=1000", "12.5 ops=100000 worst=3.1 hot=96 ready=1", "micro-ready"])
def test_a_torn_line_is_none(line: str) -> None:
    assert parse(line) is None


def test_a_line_that_is_still_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "report"
    file.write_text("mem t=1.0 ops=10 worst=1.0 hot=96 ready=0\nmem t=2.0 ops=20 wor")
    reports = Reports(file)
    reports.poll()
    assert [report.ops for _at, report in reports.lines] == [10]
    assert not reports.ready
    with file.open("a") as more:
        more.write("st=1.0 hot=96 ready=1\n")
    reports.poll()
    assert [report.ops for _at, report in reports.lines] == [10, 20]
    assert reports.ready


def test_a_rate_is_of_the_window_only() -> None:
    assert rate(said(1000, 1000, 5000, 5000), 2.0, 4.0) == 5000


def test_silence_counts_as_no_work() -> None:
    assert rate(said(5000, 5000), 0.0, 2.0) == 5000
    assert rate(said(5000, 5000), 0.0, 2.0 + memfigures.LINE_LATE + 2.0) == pytest.approx(2500)
    assert rate(said(5000), 5.0, 9.0) == 0.0


def test_the_longest_time_below_a_rate_counts_neighbours_only() -> None:
    lines = said(5000, 4000, 5000, 4000, 4000, 4000, 5000)
    assert longest_below(lines, 4500, 0.0, 7.0) == 3.0
    assert longest_below(lines, 3000, 0.0, 7.0) == 0.0


def test_a_guest_that_says_nothing_any_more_is_below() -> None:
    assert longest_below(said(5000, 4000), 4500, 0.0, 12.0) == 11.0


def test_relief_is_over_when_the_guest_is_well_for_a_while() -> None:
    assert well_again(said(5000, 2000, 5000, 2000, 5000, 5000, 5000, grown_at=1), 4750) == 3.0
    assert well_again(said(100, 5000, 5000, 5000, 5000, grown_at=1), 4750) == 0.0


def test_relief_that_has_not_come_is_unknown() -> None:
    assert well_again(said(5000, 2000, 2000, 5000, grown_at=1), 4750) is None
    assert well_again(said(5000, 5000, grown_at=1), 4750) is None
    assert well_again(said(5000, 5000, 5000), 4750) is None


def test_percentiles_are_values_that_were_seen() -> None:
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([], 0.99) is None


def test_the_density_ends_at_the_first_step_that_is_not_good() -> None:
    steps = [step(1), step(2), step(3, least=0.9), step(4)]
    assert most(steps) == steps[1]
    assert why(steps) == "3: worst at 90.0 %"
    assert why([step(1), step(2, dead=("a",))]) == "2: 1 killed"
    assert why([step(1), step(2, refused="refused: too much")]) == "2: refused: too much"
    assert why([step(1)]) == "not reached"
    long = "refused: error: this host cannot keep what would be promised: available memory: 3 < 4"
    assert why([step(1), step(2, refused=long)]) == "2: available memory: 3 < 4"
    row = density_row(("standard", "none", "x"), steps, 1)
    assert row[3:5] == ("2", "2.00")
    assert len(row) == len(memfigures.DENSITY_HEAD)
    assert density_row(("standard", "none", "x"), [step(1, least=0.5)], 2)[3:5] == ("0", "0.00")


@pytest.mark.parametrize("name", MIXES)
def test_every_mix_fits_into_a_guest_with_its_kernel(name: str) -> None:
    mix = MIXES[name]
    assert mix.hot + mix.cold + mix.same + mix.zero + mix.cache <= SIZE - 100


def test_phases_are_the_same_for_the_same_seed() -> None:
    phases = random_phases(3, 600, (48, 144))
    assert phases == random_phases(3, 600, (48, 144)) != random_phases(4, 600, (48, 144))
    assert all(20 <= after[0] - before[0] <= 60 for before, after in itertools.pairwise(phases))
    assert "mem.phases=" in command_line(Guest(3, MIXES["standard"], phases))
    assert "mem.phases=" not in command_line(Guest(3, MIXES["standard"]))


def test_options_are_in_the_order_of_measurement() -> None:
    options = read_options(["--policies", "kvmctl,none", "--limit", "2GiB"])
    assert options.policies == ("none", "kvmctl")
    assert options.limit == 2 * GIB


def test_ksmtuned_rests_while_everything_committed_leaves_enough() -> None:
    assert not ksmtuned(HostView(16 * GIB, 12 * GIB), 4 * GIB, 0).run


def test_ksmtuned_hurries_below_its_threshold_and_slows_down_above() -> None:
    small = HostView(4 * GIB, GIB)
    assert ksmtuned(small, 8 * GIB, 0) == Scan(True, 300, 40)
    assert ksmtuned(small, 8 * GIB, 1200).pages == peers.SCAN_MOST
    assert ksmtuned(HostView(16 * GIB, 8 * GIB), 16 * GIB, 300).pages == 250
    assert ksmtuned(HostView(16 * GIB, 8 * GIB), 16 * GIB, 70).pages == peers.SCAN_LEAST


def guests(*balloons: int, unused: int = 100) -> list[GuestView]:
    return [GuestView(f"g{i}", 512 * MIB, size * MIB, unused * MIB) for i, size in enumerate(balloons)]


def test_mom_takes_a_twentieth_from_all_of_a_short_host_whatever_they_need() -> None:
    found = mom(HostView(100 * MIB, 10 * MIB), guests(512, 100), {"g0": 500.0 * MIB, "g1": 100.0 * MIB})
    assert found == {"g0": int(512 * MIB * 0.95), "g1": 95 * MIB}


def test_mom_gives_back_a_twentieth_of_a_host_that_is_not_short() -> None:
    assert mom(HostView(100, 50), guests(500, 512), {"g0": 1.0, "g1": 1.0}) == {"g0": 512 * MIB}
    assert mom(HostView(100, 50), guests(200), {"g0": 1.0}) == {"g0": 210 * MIB}


def test_mom_leaves_a_guest_alone_that_it_knows_nothing_of() -> None:
    assert mom(HostView(100, 10), guests(512), {}) == {}


def test_proxmox_moves_towards_four_fifths_by_a_hundred_mib_at_most() -> None:
    host = HostView(2000 * MIB, 100 * MIB)
    assert proxmox(host, guests(512, 512), 256 * MIB) == {"g0": 412 * MIB, "g1": 412 * MIB}
    assert proxmox(HostView(2000 * MIB, 395 * MIB), guests(512, 512), 256 * MIB) == {}
    assert proxmox(HostView(2000 * MIB, 1900 * MIB), guests(300), 256 * MIB) == {"g0": 400 * MIB}


def test_proxmox_takes_from_the_pressed_when_nobody_else_is_left() -> None:
    host = HostView(2000 * MIB, 100 * MIB)
    mixed = [*guests(512, unused=200), GuestView("tight", 512 * MIB, 512 * MIB, 5 * MIB)]
    assert set(proxmox(host, mixed, 256 * MIB)) == {"g0"}
    assert set(proxmox(host, [mixed[1]], 256 * MIB)) == {"tight"}


def test_proxmox_gives_to_the_pressed_first() -> None:
    host = HostView(2000 * MIB, 1000 * MIB)
    mixed = [*guests(300, unused=200), GuestView("tight", 512 * MIB, 300 * MIB, 5 * MIB)]
    assert proxmox(host, mixed, 256 * MIB) == {"tight": 400 * MIB}


def test_runs_of_single_policies_make_one_table_and_one_picture() -> None:
    documents = [
        {
            "density": [
                {"key": {"mix": "standard", "swap": swap, "policy": name}, "found": [asdict(one) for one in steps]}
            ]
        }
        for swap, name, steps in (
            ("zram", "kvmctl", [step(1), step(2), step(3)]),
            ("none", "kvmctl", [step(1), step(2)]),
            ("none", "none", [step(1), step(2, least=0.5)]),
        )
    ]
    found = memreport.densities(json.loads(json.dumps(documents)))
    assert list(found) == [("standard", *rest) for rest in (("none", "none"), ("none", "kvmctl"), ("zram", "kvmctl"))]
    without, zram = memreport.tables(found)
    assert "| 2.00" in without
    assert "| 3.00" in zram, "a multiple of what there is without policy and swap"
    picture = ElementTree.fromstring(memreport.svg(found, "standard", 3 * GIB, 512 * MIB))
    said = [text.text for text in picture.iter() if text.tag.endswith("text")]
    assert "3 guests, 50% of the memory" in said
