"""The arithmetic of the CPU bench, against figures worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from tests.bench import firmware
from tests.bench.figures import Figures, as_data, figures, guest_lines, head, row, summary
from tests.bench.measure import Window
from tests.bench.scenarios import SCENARIOS, BenchGuest, entitled, expected, guest_file, scenario
from tests.guestfiles import read

pytestmark = pytest.mark.unit


def used(guests: Sequence[BenchGuest], *cores: float) -> dict[str, float]:
    return {guest.name: amount for guest, amount in zip(guests, cores, strict=True)}


def window(used: Mapping[str, float], process: float = 0.0) -> Window:
    return Window(
        seconds=25.0,
        used=used,
        threads={name: (cores, cores) for name, cores in used.items()},
        process=process,
        host=math.fsum(used.values()) + process + 0.01,
        steal=0.0,
        weights=dict.fromkeys(used, (1000, 1010)),
        parent_weights=(1024, 1024),
    )


def measured(name: str, *cores: float, process: float = 0.0, tick: float | None = None) -> Figures:
    guests = scenario(name, 2)
    return figures((name, "quiet", "raw"), guests, window(used(guests, *cores), process), tick)


@pytest.mark.parametrize(
    ("name", "cores"),
    [
        ("equal", (0.5, 0.5, 0.5, 0.5)),
        ("three", (2 / 3, 2 / 3, 2 / 3)),
        ("8:4:2:1:1", (1.0, 0.5, 0.25, 0.125, 0.125)),
        ("reservation", (0.8, 0.4, 0.4, 0.4)),
        ("limits", (0.25, 0.4, 0.675, 0.675)),
        ("mix", (2 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_what_the_guests_of_a_scenario_are_entitled_to(name: str, cores: tuple[float, ...]) -> None:
    assert tuple(entitled(scenario(name, 2), 2.0).values()) == pytest.approx(cores)


@pytest.mark.parametrize("cores", [1, 2, 4, 7, 64])
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_larger_host_has_more_guests_and_the_same_entitlements(name: str, cores: int) -> None:
    guests, pairs = scenario(name, cores), max(1, cores // 2)
    assert len(guests) == len({guest.name for guest in guests}) == pairs * len(SCENARIOS[name])
    small = tuple(entitled(scenario(name, 2), 2.0).values())
    assert tuple(entitled(guests, 2.0 * pairs).values()) == pytest.approx(small * pairs)


def test_a_sleeper_ought_to_get_what_it_took_and_the_others_divide_the_rest() -> None:
    guests = scenario("mix", 2)
    due = expected(guests, used(guests, 0.8, 0.4, 0.4, 0.1, 0.2))
    assert tuple(due.values()) == pytest.approx((0.8, 0.4, 0.4, 0.1, 0.2))


def test_a_reservation_is_due_even_of_less_than_the_host() -> None:
    guests = scenario("reservation", 2)
    due = expected(guests, used(guests, 0.35, 0.35, 0.35, 0.35))
    assert tuple(due.values()) == pytest.approx((0.8, 0.2, 0.2, 0.2))


def test_the_error_is_one_of_proportions() -> None:
    """Half of the host is somebody else's: everybody's part is right, or one's is 44 % instead of 50 %."""
    assert measured("8:4:2:1:1", 0.5, 0.25, 0.125, 0.0625, 0.0625).error == pytest.approx(0)
    found = measured("8:4:2:1:1", 0.44, 0.28, 0.14, 0.07, 0.07)
    assert [guest.error for guest in found.guests] == pytest.approx([0.12] * 5)


def test_shortfall_and_overshoot_count_against_the_promise() -> None:
    short = measured("reservation", 0.72, 0.4, 0.4, 0.4)
    assert short.shortfall == pytest.approx(0.1)
    assert short.overshoot is None
    assert measured("reservation", 0.9, 0.4, 0.4, 0.4).shortfall == 0
    over = measured("limits", 0.255, 0.4, 0.67, 0.67)
    assert over.overshoot == pytest.approx(0.02)
    assert over.shortfall is None


def test_a_sleeper_that_waits_too_long_is_late() -> None:
    """A third of the time that it is awake is its due: of a fifth of all time, or of less if it wanted less."""
    guests = scenario("mix", 2)
    plain = window(used(guests, 0.8, 0.4, 0.4, 0.05, 0.35))

    def late(ran: float, waited: float) -> float | None:
        threads = dict(plain.threads) | {guests[3].name: (ran, waited)}
        return figures(("mix", "quiet", "raw"), guests, replace(plain, threads=threads), None).late

    assert late(0.05, 0.2) == pytest.approx(0.25)
    assert late(0.05, 0.1) == 0
    assert late(0.03, 0.15) == pytest.approx(0.5)


def test_a_line_has_the_worst_round_and_is_as_narrow_as_its_table() -> None:
    rounds = [measured("equal", 0.5, 0.5, 0.5, 0.5, tick=0.01), measured("equal", 0.4, 0.4, 0.4, 0.5, tick=0.02)]
    raw = [measured("equal", 0.5, 0.5, 0.5, 0.5)]
    line = summary(rounds, raw)
    assert line == ("equal", "quiet", "raw", "17.6 %", "-", "-", "-", "1.850", "1.850", "92.5 %", "2.0 %")
    assert {len(text) for text in (row(line), *head().splitlines())} == {len(row(line))}
    assert len(row(line)) < 120
    assert max(map(len, guest_lines(rounds[0]))) < 120
    assert as_data(rounds[1])["key"] == {"scenario": "equal", "host": "quiet", "weights": "raw"}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_guest_file_promises_what_the_scenario_says(name: str) -> None:
    guests = scenario(name, 2)
    found = read(guest_file(guests, lambda guest: {"labels": {"of": guest.name}})).guests
    for guest, spec in zip(guests, found, strict=True):
        assert (spec.name, spec.cpu.count, spec.cpu.shares) == (guest.name, guest.vcpus, guest.shares)
        assert (spec.cpu.reservation, spec.cpu.limit or math.inf) == (guest.reservation, guest.limit)
        assert spec.labels == (("of", guest.name),)


@pytest.mark.parametrize(("vcpus", "nap"), [(1, None), (2, None), (1, (200, 800))])
def test_a_boot_sector_is_one(vcpus: int, nap: tuple[int, int] | None) -> None:
    found = firmware.image(vcpus, nap)
    assert found[510:512] == b"\x55\xaa"
    assert len(found) == 1 << 20
    assert not any(found[512:])


def test_the_boot_sector_of_two_vcpus_points_at_its_own_tables() -> None:
    found = firmware.image(2, None)
    gdtr = int.from_bytes(found[13:15], "little") - 0x7C00
    assert found[10:13] == bytes.fromhex("0f0116")  # lgdt
    size, table = int.from_bytes(found[gdtr : gdtr + 2], "little"), int.from_bytes(found[gdtr + 2 : gdtr + 6], "little")
    assert (size + 1, table - 0x7C00 + size + 1) == (24, gdtr)
    jump = found.index(b"\xea")
    assert int.from_bytes(found[jump + 1 : jump + 3], "little") == 0x7C00 + jump + 5


def test_a_boot_sector_naps_by_the_clock_of_the_firmware() -> None:
    """4 and 15 ticks, of which there are 18.2 in a second."""
    code = firmware.image(1, (200, 800))
    assert code[code.index(b"\x3d") + 1 :][:2] == b"\x04\x00"
    assert code[code.rindex(b"\x3d") + 1 :][:2] == b"\x0f\x00"
