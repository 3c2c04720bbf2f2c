"""A frame of `kvmctl top` as lines of a terminal: bars for the layers of memory and for CPU, numbers beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.cells import cell_len, set_cell_size
from rich.console import Group, OverflowMethod, RenderableType
from rich.table import Table
from rich.text import Text

from kvmctl.cli.output import one_line
from kvmctl.cli.top_view import View
from kvmctl.model.top import TopFrame, TopGuest, TopHost

NARROW = 80
"""Columns for which the table is made; what is more goes to names, bars, and then to more figures."""
LINES_AROUND = 8
"""Lines of a screen that are not guests: five of the host, titles, legend and keys."""
MOST_NAME = 40
_ALARM = 10.0
"""Per cent of steal or pressure from which it is shown in red."""


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters that bars are made of, which differ without colour too, and how a text is cut that is too long."""

    full: str = "█"
    shared: str = "▓"
    light: str = "▒"
    room: str = "·"
    gone: str = "-"
    mark: str = "┃"
    cut: OverflowMethod = "ellipsis"


BLOCKS = Glyphs()
ASCII = Glyphs("#", "=", "~", ".", "-", "|", "crop")
"""For a terminal whose encoding has no blocks."""

Part = tuple[float | None, str, str]
"""An amount, the character that stands for it, and its style."""


@dataclass(frozen=True, slots=True)
class _Column:
    """`least` is the terminal's width from which the column is shown."""

    key: str
    title: str
    width: int
    least: int = 0
    right: bool = True


_COLUMNS = (
    _Column("name", "NAME", 14, right=False),
    _Column("cpu_bar", "CPU", 6, 60, right=False),
    _Column("used", "USED", 4),
    _Column("entitlement", "ENTL", 4),
    _Column("steal", "ST%", 3, 45),
    _Column("memory_bar", "MEMORY", 11, 60, right=False),
    _Column("resident", "RES", 4),
    _Column("shared", "SHR", 4, 50),
    _Column("swapped", "SWP", 4, 50),
    _Column("balloon", "BALN", 4, 70),
    _Column("max", "MAX", 4, 70),
    _Column("pressure", "PSI c/m", 7, NARROW),
    _Column("shares", "SHARES", 6, 105),
    _Column("weight", "WEIGHT", 6, 105),
    _Column("bound", "BOUND", 11, 120, right=False),
)
_SORTED = {"cpu": "used", "memory": "resident", "name": "name", "steal": "steal"}


def screen(
    frame: TopFrame | None, view: View, width: int, height: int | None, glyphs: Glyphs = BLOCKS, said: str = ""
) -> RenderableType:
    """The whole screen; `said` is a sentence about what is wrong. With no `height`: all guests, and no keys."""
    lines: list[RenderableType] = []
    if frame is not None:
        lines += _header(frame, width, glyphs)
    if said:
        lines.append(_line(Text(one_line(said), "bold red"), glyphs))
    if frame is None:
        return Group(*lines, _line(Text("q quit", "dim"), glyphs))
    view.rows = max(1, (height - LINES_AROUND - bool(said)) if height else len(frame.guests))
    shown = view.shown(frame.guests)
    lines.append(_guests(shown, view, width, glyphs))
    if not shown:
        nobody = "no running guest" + (f" is named {view.filter!r}" if view.filter else "")
        lines.append(_line(Text(nobody, "dim"), glyphs))
    if height:
        lines += [Text("")] * (view.rows - max(1, len(shown)))
    lines.append(_legend(glyphs))
    if height:
        lines.append(_line(_footer(view, len(view.arranged(frame.guests))), glyphs))
    return Group(*lines)


def _line(text: Text, glyphs: Glyphs) -> Text:
    text.no_wrap, text.overflow = True, glyphs.cut
    return text


def _header(frame: TopFrame, width: int, glyphs: Glyphs) -> Iterator[RenderableType]:
    title = Table.grid(padding=(0, 1, 0, 0), expand=True)
    title.add_column(no_wrap=True, overflow=glyphs.cut, ratio=1)
    title.add_column(no_wrap=True, justify="right")
    count = len(frame.guests)
    clock = datetime.fromtimestamp(frame.time).astimezone().strftime("%H:%M:%S")
    title.add_row(Text(one_line(f"{frame.uri}: {count} guest{'' if count == 1 else 's'}"), "bold"), Text(clock, "bold"))
    yield title
    host = Table.grid(padding=(0, 1, 0, 0), expand=True)
    host.add_column(width=4)
    host.add_column(width=_host_bar(width))
    host.add_column(no_wrap=True, overflow=glyphs.cut, ratio=1)
    for name, parts, scale, text in _host_lines(frame.host):
        drawn = bar([(amount, getattr(glyphs, glyph), style) for amount, glyph, style in parts],
                    scale, _host_bar(width), glyphs.room)  # fmt: skip
        host.add_row(Text(name, "bold"), drawn, Text(text))
    yield host
    some = (("cpu", frame.host.cpu_pressure), ("memory", frame.host.memory_pressure), ("io", frame.host.io_pressure))
    pressures = [Text("PSI ", "bold"), Text("(10 s)")]
    pressures += [Text(f" {name} {_percent(value)}", _alarm(value)) for name, value in some]
    stolen = f", of host {_percent(frame.host.stolen)}" if frame.host.stolen else ""
    yield _line(Text.assemble(*pressures, f"  steal of guests {_percent(frame.host.steal)}{stolen}"), glyphs)


def _host_bar(width: int) -> int:
    return max(6, width // 4)


def _host_lines(host: TopHost) -> Iterator[tuple[str, list[Part], float | None, str]]:
    """Name, bar, what the whole bar is, and text."""
    busy = None if host.busy is None else host.busy / 100 * host.cores
    others = None if busy is None else max(0.0, busy - (host.used or 0.0))
    yield (
        "CPU",
        [(host.used, "full", "green"), (others, "light", "blue")],
        host.cores,
        f"{_percent(host.busy)} busy, guests {_cores(host.used)} of {_cores(host.capacity)}, "
        f"{_cores(host.reserved)} reserved",
    )
    total, available = host.memory_total, host.memory_available
    used = None if total is None or available is None else total - available
    state = f" ({host.memory_state})" if host.memory_state else ""
    times = "-" if host.overcommit is None else f"{host.overcommit:.2f}"
    yield (
        "Mem",
        [(used, "full", "green")],
        total,
        f"{size(used)} of {size(total)}{state}, guests {size(host.guests_max)} ({times}), "
        f"KSM saves {size(host.ksm_saved)}",
    )
    flow = f", in {_flow(host.swap_in)}, out {_flow(host.swap_out)}"
    none = host.swap_total == 0
    yield (
        "Swap",
        [(host.swap_used, "light", "yellow")],
        host.swap_total,
        "none" if none else f"{size(host.swap_used)} of {size(host.swap_total)}{flow}",
    )


def _flow(rate: float | None) -> str:
    return "-" if rate is None else f"{size(round(rate))}/s"


def _guests(shown: Sequence[TopGuest], view: View, width: int, glyphs: Glyphs) -> Table:
    columns = [column for column in _COLUMNS if width >= column.least]
    widths = _widths(columns, width, max((cell_len(one_line(guest.name)) for guest in shown), default=0))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            Text(column.title, "bold reverse" if column.key == _SORTED[view.sort] else "bold"),
            justify="right" if column.right else "left",
            width=widths[column.key],
            no_wrap=True,
            overflow=glyphs.cut,
        )
    for guest in shown:
        cells = _cells(guest, widths, glyphs)
        table.add_row(*(cells[column.key] for column in columns), style="" if guest.state == "running" else "dim")
    return table


def _widths(columns: Sequence[_Column], width: int, longest: int) -> dict[str, int]:
    """Columns of the terminal for each of the table's. What is left goes to the names as far as they need it, then to
    the bars, two thirds of it to memory's; what lacks is taken from the names."""
    widths = {column.key: column.width for column in columns}
    spare = width - sum(widths.values()) - (len(columns) - 1)
    more = max(4 - widths["name"], min(spare, min(longest, MOST_NAME) - widths["name"]))
    if spare >= 0:
        more = max(0, more)
    widths["name"] += more
    spare -= more
    if spare > 0 and "memory_bar" in widths:
        widths["cpu_bar"] += spare // 3
        widths["memory_bar"] += spare - spare // 3
    return widths


def _cells(guest: TopGuest, widths: dict[str, int], glyphs: Glyphs) -> dict[str, Text]:
    psi = f"{_whole(guest.cpu_pressure)}/{_whole(guest.memory_pressure)}"
    worst = max(guest.cpu_pressure or 0.0, guest.memory_pressure or 0.0)
    return {
        "name": Text(shortened(one_line(guest.name), widths["name"], glyphs)),
        "cpu_bar": _cpu_bar(guest, widths.get("cpu_bar", 0), glyphs),
        "used": Text(_cores(guest.used)),
        "entitlement": Text(_cores(guest.entitlement)),
        "steal": Text(_whole(guest.steal), _alarm(guest.steal)),
        "memory_bar": _memory_bar(guest, widths.get("memory_bar", 0), glyphs),
        "resident": Text(size(guest.resident)),
        "shared": Text(size(guest.shared)),
        "swapped": Text(size(guest.swapped), "yellow" if guest.swapped else ""),
        "balloon": Text(size(guest.balloon)),
        "max": Text(size(guest.max)),
        "pressure": Text(psi, _alarm(worst)),
        "shares": Text("-" if guest.shares is None else str(guest.shares)),
        "weight": Text("-" if guest.weight is None else str(guest.weight)),
        "bound": Text(guest.bound or "-"),
    }


def _cpu_bar(guest: TopGuest, width: int, glyphs: Glyphs) -> Text:
    """The whole bar is all that its vCPUs can do; the mark is what it is entitled to."""
    if guest.state != "running":
        return Text(guest.state, "dim")
    parts: list[Part] = [(guest.used, glyphs.full, "green"), (guest.waited, glyphs.light, "red")]
    drawn = bar(parts, guest.vcpus, width, glyphs.room)
    if guest.entitlement is None or guest.used is None or not guest.vcpus or not width:
        return drawn
    place = min(width - 1, int(guest.entitlement / guest.vcpus * width))
    return Text.assemble(drawn[:place], (glyphs.mark, "bold"), drawn[place + 1 :])


def _memory_bar(guest: TopGuest, width: int, glyphs: Glyphs) -> Text:
    """The whole bar is what the guest may grow to. A process has more than its guest's memory, so it may end early."""
    resident, shared, swapped = guest.resident, guest.shared or 0, guest.swapped or 0
    if resident is None or guest.max is None:
        return bar([], None, width, glyphs.room)
    balloon = guest.max if guest.balloon is None else guest.balloon
    parts: list[Part] = [
        (max(0, resident - shared), glyphs.full, "green"),
        (min(shared, resident), glyphs.shared, "cyan"),
        (swapped, glyphs.light, "yellow"),
        (max(0, balloon - resident - swapped), glyphs.room, "dim"),
        (guest.max - balloon, glyphs.gone, "magenta"),
    ]
    return bar(parts, guest.max, width, " ")


def bar(parts: Sequence[Part], scale: float | None, width: int, rest: str) -> Text:
    """A bar of `width` columns that stands for `scale`; `rest` fills what no part takes. Unknown is empty."""
    text, end, total = Text(), 0, 0.0
    for amount, glyph, style in parts:
        if not amount or not scale or amount < 0:
            continue
        total += amount
        place = min(width, math.floor(total / scale * width + 0.5))
        text.append(glyph * (place - end), style)
        end = max(end, place)
    text.append(rest * (width - end), "dim")
    return text


def _legend(glyphs: Glyphs) -> Text:
    cpu = ((glyphs.full, "green", "used"), (glyphs.light, "red", "waited"), (glyphs.mark, "bold", "entitled"))
    memory = (
        (glyphs.full, "green", "own"),
        (glyphs.shared, "cyan", "shared"),
        (glyphs.light, "yellow", "swapped"),
        (glyphs.room, "dim", "room"),
        (glyphs.gone, "magenta", "ballooned"),
    )
    text = Text()
    for title, entries in (("CPU ", cpu), ("MEMORY ", memory)):
        text.append(title, "dim")
        for glyph, style, name in entries:
            text.append(glyph, style)
            text.append(f"{name} ", "dim")
        text.append("  ")
    text.rstrip()
    return _line(text, glyphs)


def _footer(view: View, count: int) -> Text:
    if view.typing:
        return Text.assemble(("filter: ", "bold"), one_line(view.filter), "_   Enter keeps it, Esc drops it")
    last = min(count, view.offset + view.rows)
    place = f"{view.offset + 1}-{last} of {count}" if count else "0 of 0"
    chosen = f"   filter: {one_line(view.filter)}" if view.filter else ""
    keys = "c cpu  m memory  n name  s steal  / filter  q quit"
    return Text(f"{keys}   {place}{chosen}", "dim")


def shortened(name: str, width: int, glyphs: Glyphs) -> str:
    """A name that fits: what is left out is its middle, since names of guests begin alike."""
    if cell_len(name) <= width:
        return name
    head = (width - 1) // 2
    tail = next(part for part in (name[-count:] for count in range(width, 0, -1)) if cell_len(part) < width - head)
    return set_cell_size(name, head).rstrip() + ("~" if glyphs.cut == "crop" else "…") + tail


def size(amount: int | None) -> str:
    """Bytes in at most four columns: `512M`, `1.5G`."""
    if not amount:
        return "-" if amount is None else "0"
    value = float(amount)
    for unit in ("B", "K", "M", "G", "T"):
        if value < 9.95 and unit != "B":
            return f"{value:.1f}".removesuffix(".0") + unit
        if round(value) < 1000:
            return f"{value:.0f}{unit}"
        value /= 1024
    return f"{value:.0f}P"


def _cores(cores: float | None) -> str:
    """Cores in at most four columns: `0.25`, `12.5`, `128`."""
    if cores is None:
        return "-"
    if math.isinf(cores):
        return "inf"
    return f"{cores:.2f}" if cores < 9.995 else f"{cores:.1f}" if cores < 99.95 else f"{cores:.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}%"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _alarm(value: float | None) -> str:
    return "bold red" if value is not None and value >= _ALARM else ""
