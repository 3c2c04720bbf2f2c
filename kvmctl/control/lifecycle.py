"""Starting, stopping, pausing: what is so already is a success, and is said."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kvmctl.control.begin import begin
from kvmctl.control.parallel import each
from kvmctl.control.select import Guest
from kvmctl.control.wait import until
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.events import wait_for_reboot
from kvmctl.model.change import Result
from kvmctl.model.errors import ConflictError, KvmctlError, TimedOutError
from kvmctl.model.wording import argument

ASK_AGAIN = 10.0
"""Seconds: a guest that is still booting ignores the power button."""


@dataclass(frozen=True, slots=True)
class Deed:
    """What became of one guest; `error` where it failed."""

    guest: str
    result: Result
    text: str
    error: KvmctlError | None = None


def for_each(guests: Sequence[Guest], act: Callable[[Guest], Deed]) -> list[Deed]:
    """Do `act` for every guest at once."""
    results = each(act, guests)
    return [
        result if isinstance(result, Deed) else Deed(sample.name, "not applied", result.message, result)
        for (sample, _domain), result in zip(guests, results, strict=True)
    ]


def start(guest: Guest, paused: bool = False) -> Deed:
    """Start a guest that is off. Admission is the caller's business."""
    sample, domain = guest
    if domains.state(domain) in ("running", "paused", "suspended"):
        return Deed(sample.name, "unchanged", f"is {domains.state(domain)} already")
    was_saved = domains.has_saved_state(domain)
    try:
        begin(domain, paused)
    except KvmctlError as error:
        raise _pinned_nowhere(domain) or error from error
    wanted = "paused" if paused else "running"
    found = domains.state(domain)
    if was_saved and found == "paused" != wanted:
        return Deed(sample.name, "changed", "started, and paused as it was when it was saved")
    if found != wanted:
        raise KvmctlError(
            f"guest {sample.name} was started, but is {found} now",
            f"its log is in the host's QEMU logs: {sample.name}.log",
        )
    return Deed(sample.name, "changed", "started" + (", paused" if paused else ""))


def _pinned_nowhere(domain: Any) -> KvmctlError | None:
    """That the guest is pinned to CPUs which its host does not have, in better words than libvirt's."""
    from kvmctl.control.preflight import pins
    from kvmctl.xml.parse import parse

    with suppress(KvmctlError):
        return next(pins(Hypervisor(domain.connect()), parse(domains.definition(domain)).spec), None)
    return None


def stop(guest: Guest, timeout: float, force: bool) -> Deed:
    """Ask the guest to power off and wait for it; with `force`, take its power away if it has not by then.

    Raises TimedOutError, ConflictError for a paused guest, which cannot answer.
    """
    sample, domain = guest
    found = domains.state(domain)
    if found in ("stopped", "crashed"):
        return Deed(sample.name, "unchanged", f"is {found} already")
    if found == "paused" and not force:
        raise ConflictError(f"guest {sample.name} is paused and cannot answer", "resume it first, or use --force")
    if found != "paused" and _asked(domain, timeout):
        return Deed(sample.name, "changed", "stopped")
    if not force:
        raise TimedOutError(
            f"guest {sample.name} has not powered off within {timeout:g} s",
            "wait longer with --timeout, or use --force",
        )
    domains.power_off(domain)
    found = until(lambda: domains.state(domain), lambda state: state == "stopped", 10)
    if found != "stopped":
        raise TimedOutError(
            f"guest {sample.name} was powered off, but is {found} still", "kvmctl host doctor examines the host"
        )
    return Deed(sample.name, "changed", "powered off")


def _asked(domain: Any, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        with suppress(ConflictError):  # it may go off between the two calls
            domains.ask_to_stop(domain)
        if until(lambda: _off(domain), bool, min(ASK_AGAIN, left)):
            return True
    return _off(domain)


def _off(domain: Any) -> bool:
    return domains.state(domain) in ("stopped", "crashed")


def pause(guest: Guest) -> Deed:
    """Stop a guest's vCPUs where they stand. Raises ConflictError for a guest that is off."""
    sample, domain = guest
    found = domains.state(domain)
    if found == "paused":
        return Deed(sample.name, "unchanged", "is paused already")
    if found != "running":
        raise ConflictError(f"guest {sample.name} is {found}, so it cannot be paused", _start(sample.name))
    domains.pause(domain)
    return _verified(guest, "paused", "paused")


def resume(guest: Guest) -> Deed:
    """Let a paused guest go on. Raises ConflictError for a guest that is off."""
    sample, domain = guest
    found = domains.state(domain)
    if found == "running":
        return Deed(sample.name, "unchanged", "is running already")
    if found != "paused":
        raise ConflictError(f"guest {sample.name} is {found}, so it cannot be resumed", _start(sample.name))
    domains.resume(domain)
    return _verified(guest, "running", "resumed")


def _verified(guest: Guest, wanted: str, said: str) -> Deed:
    sample, domain = guest
    found = until(lambda: domains.state(domain), lambda state: state == wanted, 10)
    if found != wanted:
        raise TimedOutError(
            f"guest {sample.name} should be {wanted}, but is {found}", "kvmctl host doctor examines the host"
        )
    return Deed(sample.name, "changed", said)


def reboot(hypervisor: Hypervisor, guest: Guest, timeout: float, force: bool) -> Deed:
    """Ask the guest to reboot and wait until it has; with `force`, press its reset button.

    Raises ConflictError for a guest that does not run, TimedOutError.
    """
    sample, domain = guest
    found = domains.state(domain)
    if found != "running":
        raise ConflictError(f"guest {sample.name} is {found}, so it cannot reboot", _start(sample.name))
    ask = domains.reset if force else domains.ask_to_reboot
    if not wait_for_reboot(hypervisor, domain, lambda: ask(domain), timeout):
        raise TimedOutError(
            f"guest {sample.name} was asked to reboot and has not within {timeout:g} s",
            "wait longer with --timeout, or use --force",
        )
    return Deed(sample.name, "changed", "reset" if force else "rebooted")


def _start(name: str) -> str:
    return f"start it: kvmctl start {argument(name)}"


def set_autostart(guest: Guest, on: bool) -> Deed:
    """Start the guest with the host, or not. Raises ConflictError for a transient guest."""
    sample, domain = guest
    text = "starts with the host" if on else "does not start with the host"
    if not domains.is_persistent(domain):
        raise ConflictError(
            f"guest {sample.name} is transient, so it cannot start with the host", "define it first: virsh define"
        )
    if domains.autostart(domain) == on:
        return Deed(sample.name, "unchanged", f"{text} already")
    domains.set_autostart(domain, on)
    return Deed(sample.name, "changed" if domains.autostart(domain) == on else "not applied", text)
