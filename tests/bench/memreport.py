"""The figures of one or more runs of the memory bench, as tables and as a picture.

    python -m tests.bench.memreport FILE... [--svg FILE]

Runs of single policies are put together: where there are several of the same, the last counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from tests.bench.memfigures import DENSITY_HEAD, WELL, Step, density_row, most, table
from tests.bench.mempolicies import POLICIES

Key = tuple[str, str, str]
"""The mix, the kind of swap, the policy."""
Densities = Mapping[Key, Sequence[Step]]

WIDTH, BAR, LEFT, PLOT = 760, 15, 190, 200
_COLORS = {"kvmctl": "#0a7d4f", "none": "#8a8f98"}
_OTHER = "#c3c8d0"
_STYLE = "font-family='sans-serif' font-size='12' fill='#24292f'"


def densities(documents: Iterable[Mapping[str, Any]]) -> Densities:
    """What the documents say of densities, by the order of mixes, swap and policies."""
    found: dict[Key, list[Step]] = {}
    for document in documents:
        for entry in document["density"]:
            key = entry["key"]
            steps = [Step(**(step | {"dead": tuple(step["dead"])})) for step in entry["found"]]
            found[key["mix"], key["swap"], key["policy"]] = steps
    mixes = list(dict.fromkeys(mix for mix, _swap, _policy in found))
    order = sorted(found, key=lambda key: (mixes.index(key[0]), key[1], POLICIES.index(key[2])))
    return {key: found[key] for key in order}


def tables(found: Densities) -> Iterator[str]:
    """One for each mix and kind of swap. What a density is a multiple of is always `none` without swap."""
    for mix, swap in dict.fromkeys((mix, swap) for mix, swap, _policy in found):
        best = most(found.get((mix, "none", "none"), ()))
        rows = [
            density_row(key, steps, best.guests if best else None)
            for key, steps in found.items()
            if key[:2] == (mix, swap)
        ]
        yield table(DENSITY_HEAD, rows)


def svg(found: Densities, mix: str, budget: int, size: int) -> str:
    """How many guests each policy kept well, and how kvmctl came to that; `budget` and a guest's `size` in bytes."""
    parts: list[str] = []
    y = 24
    for swap, title in (("none", "without swap"), ("zram", "with zram")):
        bars = {key[2]: steps for key, steps in found.items() if key[:2] == (mix, swap)}
        if bars:
            parts.append(_text(10, y, f"Guests that all keep {WELL:.0%} of their rate, {title}", bold=True))
            y = _bars(parts, bars, y + 12, size / budget) + 22
    for swap in ("zram", "none"):
        steps = found.get((mix, swap, "kvmctl"))
        if steps:
            name = "zram" if swap == "zram" else "no swap"
            parts.append(_text(10, y, f"kvmctl with {name}: guests, and the rate of the worst, over time", bold=True))
            y = _lines(parts, steps, y + 14) + 30
            break
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {y}' width='{WIDTH}' height='{y}'>"
    return "\n".join([head, f"<rect width='{WIDTH}' height='{y}' fill='#ffffff'/>", *parts, "</svg>", ""])


def _bars(parts: list[str], bars: Mapping[str, Sequence[Step]], y: int, part: float) -> int:
    counts = {policy: step.guests if (step := most(steps)) else 0 for policy, steps in bars.items()}
    unit = (WIDTH - LEFT - 150) / max(1, *counts.values())
    for policy, count in counts.items():
        color = _COLORS.get(policy, _OTHER)
        parts.append(_text(LEFT - 10, y + BAR - 3, policy, anchor="end"))
        parts.append(f"<rect x='{LEFT}' y='{y}' width='{count * unit:.0f}' height='{BAR}' fill='{color}'/>")
        said = f"{count} guests, {count * part:.0%} of the memory"
        parts.append(_text(LEFT + round(count * unit) + 8, y + BAR - 3, said))
        y += BAR + 6
    return y


def _lines(parts: list[str], steps: Sequence[Step], y: int) -> int:
    right, bottom = WIDTH - 60, y + PLOT
    total, top = sum(step.seconds for step in steps) or 1.0, max(step.guests for step in steps)
    guests, rates, now = [], [], 0.0
    for step in steps:
        before, now = now, now + step.seconds
        x0, x1 = (LEFT / 3 + when / total * (right - LEFT / 3) for when in (before, now))
        level = bottom - step.guests / top * PLOT
        guests += [f"{x0:.1f},{level:.1f}", f"{x1:.1f},{level:.1f}"]
        if not step.refused:
            rates.append(f"{x1:.1f},{bottom - min(1.0, step.least) * PLOT:.1f}")
    x = round(LEFT / 3)
    parts.append(f"<path d='M{x},{y} V{bottom} H{right}' fill='none' stroke='#8a8f98'/>")
    line = "<polyline points='{}' fill='none' stroke='{}' stroke-width='2'{}/>"
    parts.append(line.format(" ".join(guests), _COLORS["kvmctl"], ""))
    parts.append(line.format(" ".join(rates), "#b35900", " stroke-dasharray='5 3'"))
    parts += [
        _text(x - 8, y + 6, str(top), anchor="end"),
        _text(x - 8, bottom, "0", anchor="end"),
        _text(right + 6, y + 6, "100 %"),
        _text(x, bottom + 18, "0 s"),
        _text(right, bottom + 18, f"{total:.0f} s", anchor="end"),
        _text(x + 16, bottom + 18 - PLOT, "— guests   - - rate of the worst guest"),
    ]
    return bottom + 18


def _text(x: int, y: int, text: str, anchor: str = "start", *, bold: bool = False) -> str:
    weight = " font-weight='bold'" if bold else ""
    return f"<text x='{x}' y='{y}' text-anchor='{anchor}' {_STYLE}{weight}>{escape(text)}</text>"


def main() -> None:
    """Print the tables, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--svg", type=Path, metavar="FILE")
    options = parser.parse_args()
    documents = [json.loads(file.read_text()) for file in options.files]
    found = densities(documents)
    for text in tables(found):
        print(text, end="\n\n")
    if options.svg:
        host = documents[-1]["host"]
        options.svg.write_text(svg(found, next(iter(found))[0], host["limit"], host["guest_mib"] << 20))


if __name__ == "__main__":
    main()
