from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from kvmctl.cli.top_screen import glyphs, plain
from kvmctl.cli.top_table import ASCII, BLOCKS, bar, screen, shortened, size
from kvmctl.cli.top_view import View
from kvmctl.model.top import TopFrame, TopGuest, TopHost

pytestmark = pytest.mark.unit

MIB = 1 << 20
WEB = TopGuest(
    "web1", "uuid-1", "running", 2, shares=2000, limit=2.0, reservation=0.5, entitlement=1.0, bound="shares",
    weight=2000, used=0.5, waited=0.5, steal=25.0, max=1024 * MIB, balloon=512 * MIB, resident=384 * MIB,
    shared=128 * MIB, swapped=64 * MIB, cpu_pressure=26.4, memory_pressure=0.0,
)  # fmt: skip
UNKNOWN = TopGuest("elsewhere", "uuid-2", "paused", 1)
HOST = TopHost(
    cores=4, capacity=3.5, reserved=0.5, used=0.5, steal=20.0, busy=50.0, stolen=0.0, memory_state="soft",
    memory_total=8192 * MIB, memory_available=4096 * MIB, guests_max=12288 * MIB, overcommit=1.5, swap_total=2048 * MIB,
    swap_used=1024 * MIB, swap_in=4096.0, swap_out=0.0, ksm_saved=700 * MIB, cpu_pressure=12.3,
    memory_pressure=0.0, io_pressure=0.4,
)  # fmt: skip
FRAME = TopFrame("qemu:///system", 1_700_000_000.0, 2.0, HOST, (WEB, UNKNOWN))


def text(frame: TopFrame = FRAME, view: View | None = None, width: int = 80, encoding: str = "utf-8") -> list[str]:
    return plain(frame, view or View(), width, encoding).splitlines()


def row(lines: list[str], name: str) -> str:
    return next(line for line in lines if line.startswith(name))


def many(count: int) -> TopFrame:
    return replace(FRAME, guests=tuple(replace(WEB, name=f"guest-{number:03}") for number in range(count)))


def test_a_frame_at_80_columns_has_everything() -> None:
    lines = text()
    assert lines[0].startswith("qemu:///system: 2 guests ")
    assert lines[1] == f"CPU  {'█' * 3}{'▒' * 7}{'·' * 10} 50.0% busy, guests 0.50 of 3.50, 0.50 reserved"
    assert "4G of 8G (soft), guests 12G (1.50), KSM saves 700M" in lines[2]
    assert "1G of 2G, in 4K/s, out 0/s" in lines[3]
    assert lines[4] == "PSI (10 s) cpu 12.3% memory 0.0% io 0.4%  steal of guests 20.0%"
    assert lines[5].split() == [
        "NAME", "CPU", "USED", "ENTL", "ST%", "MEMORY", "RES", "SHR", "SWP", "BALN", "MAX", "PSI", "c/m",
    ]  # fmt: skip
    assert row(lines, "web1").split()[1:5] == ["██▒┃··", "0.50", "1.00", "25"]
    assert row(lines, "web1").split()[-6:] == ["384M", "128M", "64M", "512M", "1G", "26/0"]


def test_the_unknown_is_no_zero() -> None:
    found = row(text(), "elsewhere")
    assert found.split()[:5] == ["elsewhere", "paused", "-", "-", "-"]
    assert found.split()[-6:] == ["-", "-", "-", "-", "-", "-/-"]
    assert "0" not in found


@pytest.mark.parametrize("width", [40, 45, 50, 60, 70, 79, 80, 81, 100, 105, 120, 200, 400])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_line_is_longer_than_the_terminal(width: int, encoding: str) -> None:
    long = replace(WEB, name="日本" * 40, used=127.5, entitlement=128.0, steal=100.0, max=999 << 40, weight=262144)
    lines = text(replace(FRAME, uri="qemu://" + "x" * 300, guests=(WEB, UNKNOWN, long)), width=width, encoding=encoding)
    assert max(map(cell_len, lines)) <= width
    assert len(lines) == 5 + 1 + 3 + 1, "no line is broken"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.builds(
            TopGuest,
            name=st.text(min_size=1),
            uuid=st.uuids().map(str),
            state=st.sampled_from(["running", "paused", "suspended", "stopping"]),
            vcpus=st.integers(0, 512),
            used=st.none() | st.floats(0, 1000),
            waited=st.none() | st.floats(0, 1000),
            entitlement=st.none() | st.floats(0, 1000),
            steal=st.none() | st.floats(0, 100),
            max=st.none() | st.integers(0, 1 << 50),
            balloon=st.none() | st.integers(0, 1 << 50),
            resident=st.none() | st.integers(0, 1 << 50),
            shared=st.none() | st.integers(0, 1 << 50),
            swapped=st.none() | st.integers(0, 1 << 50),
            cpu_pressure=st.none() | st.floats(0, 100),
        ),
        max_size=5,
    ),
    st.integers(40, 200),
)
def test_any_guests_give_one_line_each(guests: list[TopGuest], width: int) -> None:
    lines = plain(replace(FRAME, guests=tuple(guests)), View(), width, "utf-8").split("\n")[:-1]
    assert len(lines) == 7 + max(1, len(guests))
    assert all(char.isprintable() for line in lines for char in line)
    assert max(map(cell_len, lines)) <= width


def test_a_wide_terminal_shows_whole_names_longer_bars_and_more_figures() -> None:
    frame = replace(FRAME, guests=(replace(WEB, name="a-name-of-30-letters-and-digits"),))
    narrow, wide = text(frame), text(frame, width=160)
    assert row(narrow, "a-name").split()[0] == "a-name…-digits"
    assert row(wide, "a-name").split()[0] == "a-name-of-30-letters-and-digits"
    assert row(wide, "a-name").count("▓") > row(narrow, "a-name").count("▓")
    assert row(wide, "NAME").split()[-3:] == ["SHARES", "WEIGHT", "BOUND"]
    assert row(wide, "a-name").split()[-3:] == ["2000", "2000", "shares"]


def test_plain_text_has_neither_colour_nor_other_escape_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" not in plain(FRAME, View(), 80, "utf-8")


def test_a_terminal_without_blocks_gets_ascii() -> None:
    assert glyphs("utf-8") == BLOCKS
    assert glyphs("ascii") == glyphs("latin-1") == glyphs("nonsense") == ASCII
    assert "\n".join(text(many(3), width=200, encoding="ascii")).isascii()


def test_sort_and_filter_apply_to_the_rows() -> None:
    lines = text(many(12), View(sort="name", filter="-00"))
    assert [line.split()[0] for line in lines if line.startswith("guest-")] == [f"guest-{n:03}" for n in range(10)]
    assert "no running guest is named 'nobody'" in text(many(2), View(filter="nobody"))


@pytest.mark.parametrize("height", [8, 10, 24, 50])
def test_a_screen_is_as_high_as_its_terminal(height: int) -> None:
    view = View(sort="name")
    shown = drawn(many(30), view, height)
    assert len(shown) == max(height, 9)
    assert "of 30" in shown[-1]
    assert len([line for line in shown if line.startswith("guest-")]) == min(30, view.rows)
    assert len(drawn(many(30), view, height, "it is gone")) == max(height, 10)
    assert len(drawn(many(2), View(), height)) == max(height, 9), "the keys stay at the bottom"


def drawn(frame: TopFrame, view: View, height: int, said: str = "") -> list[str]:
    console = Console(width=80, height=height, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(screen(frame, view, 80, height, BLOCKS, said))
    lines = captured.get().splitlines()
    assert max(map(cell_len, lines)) <= 80
    return lines


def test_what_is_wrong_is_a_line_beside_the_last_frame() -> None:
    lines = drawn(FRAME, View(), 24, "cannot read the guests: \x1b[2Jgone; trying again")
    assert "cannot read the guests: \\x1b[2Jgone; trying again" in lines
    assert row(lines, "web1")


def test_a_filter_that_is_typed_is_shown() -> None:
    view = View(typing=True, filter="we")
    assert drawn(FRAME, view, 24)[-1] == "filter: we_   Enter keeps it, Esc drops it"


def test_the_layers_of_memory_fill_the_bar() -> None:
    lines = text(replace(FRAME, guests=(replace(WEB, name="g"),)), width=80)
    # A line of 80 columns gives the bar 11: an eighth of 1 GiB is 1.4 of them, and half of it is ballooned away.
    assert " ███▓▒·----- " in row(lines, "g")


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        ([(5.0, "a", ""), (2.5, "b", "")], "aaaaabbb.."),
        ([(None, "a", ""), (10, "b", "")], "bbbbbbbbbb"),
        ([(20, "a", ""), (5, "b", "")], "aaaaaaaaaa"),
        ([(-5, "a", "")], ".........."),
        ([], ".........."),
    ],
)
def test_a_bar_has_its_width_whatever_it_shows(parts: list[tuple[float | None, str, str]], shown: str) -> None:
    assert bar(parts, 10, 10, ".").plain == shown
    assert bar(parts, None, 10, ".").plain == ".........."
    assert bar(parts, 0, 10, ".").plain == ".........."


@pytest.mark.parametrize(
    ("name", "width", "shown"),
    [
        ("kvmctl-test-top-web1", 14, "kvmctl…op-web1"),
        ("kvmctl-test-top-web1", 4, "k…b1"),
        ("web1", 4, "web1"),
        ("日本日本日本日本", 8, "日 …日本"),
        ("日本日本", 4, "…本"),
    ],
)
def test_a_name_that_is_cut_keeps_its_end(name: str, width: int, shown: str) -> None:
    assert shortened(name, width, BLOCKS) == shown.replace(" ", "")
    assert cell_len(shortened(name, width, BLOCKS)) <= width
    assert shortened("x" * 99, width, ASCII).isascii()


@given(st.text(min_size=1), st.integers(4, 40))
def test_any_name_fits(name: str, width: int) -> None:
    assert cell_len(shortened(name, width, BLOCKS)) <= width


@given(st.integers(0, 900 << 40))
def test_a_size_takes_four_columns(amount: int) -> None:
    assert len(size(amount)) <= 4


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(None, "-"), (0, "0"), (7, "7B"), (999, "999B"), (1000, "1K"), (1 << 20, "1M"), (1536 << 20, "1.5G"),
     (512 << 20, "512M"), (1023 << 20, "1G"), (10 << 30, "10G")],
)  # fmt: skip
def test_sizes(amount: int | None, shown: str) -> None:
    assert size(amount) == shown
