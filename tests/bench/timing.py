"""Whole commands timed side by side: interleaved rounds, medians, ratios to one of them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Command = Sequence[str]


def once(command: Command, env: Mapping[str, str] | None = None) -> float:
    """Seconds that a command takes; fails where it does."""
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, env=quiet_env() | dict(env or {}), check=False)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr.decode()}")
    return seconds


def quiet_env() -> dict[str, str]:
    """This environment, with bytecode caches on, as a user has them."""
    return {
        key: value for key, value in os.environ.items() if key not in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    }


def medians(subjects: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median seconds of each, measured in turn so that a busy moment hits all alike; one round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, run in subjects.items():
            taken = run()
            if number:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(title: str, found: Mapping[str, float], base: str) -> str:
    """Medians in milliseconds with their ratio to `base`."""
    lines = [f"{title:<44} {'median':>9}  ratio"]
    lines += [f"{name:<44} {seconds * 1000:7.1f}ms  {seconds / found[base]:5.2f}" for name, seconds in found.items()]
    return "\n".join(lines)


def write_json(path: str | None, document: Any) -> None:
    """Write the figures where the caller wants them."""
    if path:
        Path(path).write_text(json.dumps(document, indent=2) + "\n")
