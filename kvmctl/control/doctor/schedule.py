"""The doctor's check of the entry by which cron or systemd runs `kvmctl rebalance` every minute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kvmctl.control.doctor.check import Check
from kvmctl.host import daemons, schedule

NAME = "rebalance"


def checks(root: Path = Path("/")) -> Iterator[Check]:
    """Whether an entry is installed under `root`, whether it can run, and whether what runs it does."""
    found = schedule.installed(root)
    ours = [entry for entry in found if entry.ours]
    for entry in found:
        if not entry.ours:
            text = f"{entry.path} is there, and kvmctl did not write it"
            hint = f"look at it: cat {entry.path}"
            yield Check(f"{NAME} {entry.kind}", "unknown", text, "what it runs is not known", hint)
    if not ours:
        cause = "weights are set only when kvmctl is run: a guest that others start has libvirt's default"
        yield Check(NAME, "warn", "nothing runs kvmctl rebalance every minute", cause, "kvmctl rebalance install")
    elif len(ours) > 1:
        cause = "they keep each other from running: one of them finds the lock held"
        hint = f"kvmctl rebalance install --{'systemd' if daemons.has_systemd() else 'cron'} keeps one of them"
        yield Check(NAME, "warn", "cron and systemd both run kvmctl rebalance every minute", cause, hint)
    else:
        yield _entry(ours[0])


def _entry(entry: schedule.Installed) -> Check:
    again = f"kvmctl rebalance install --{entry.kind}"
    if entry.fault:
        return Check(NAME, "fail", f"installed for {entry.kind}, and not run: {entry.path}", entry.fault, again)
    if entry.kind == "systemd" and not schedule.timer_runs():
        hint = "systemctl enable --now kvmctl-rebalance.timer"
        return Check(NAME, "fail", "installed for systemd, and not run", "its timer is not enabled or not active", hint)
    if entry.kind == "cron" and not schedule.cron_runs():
        return Check(NAME, "fail", "installed for cron, and not run", "no cron daemon runs", schedule.start_cron())
    return Check(NAME, "ok", f"{entry.kind} runs kvmctl rebalance every minute ({entry.path})")
