"""The hosts that have names here, and asking all of them at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kvmctl.control import hostpolicy
from kvmctl.host.files import read_written
from kvmctl.hypervisor.connection import Hypervisor, open_hypervisor, serve_events
from kvmctl.model.errors import KvmctlError, NotFoundError, TimedOutError, UsageError
from kvmctl.model.hostpolicy import HostPolicy
from kvmctl.model.hostsfile import NamedHost
from kvmctl.model.wording import argument, nearest

FILE = Path("/etc/kvmctl/hosts.yaml")
DEADLINE = 10.0
"""Seconds after which a host that has not answered is a line that says so."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one host answered, or why it did not."""

    host: NamedHost
    value: Any = None
    error: KvmctlError | None = None


def file() -> Path:
    """Where hosts are named: KVMCTL_HOSTS_FILE, else /etc/kvmctl/hosts.yaml."""
    return Path(os.environ.get("KVMCTL_HOSTS_FILE") or FILE)


def named() -> tuple[NamedHost, ...]:
    """The hosts that have a name; none where there is no such file. Raises UsageError for a file that is wrong."""
    path = file()
    data = read_written(path, "the hosts' names in")
    if data is None:
        return ()
    from kvmctl.model.hostsfile import load

    return load(str(path), data)


def all_hosts() -> tuple[NamedHost, ...]:
    """The hosts that have a name, at least one. Raises UsageError."""
    if found := named():
        return found
    raise UsageError(f"{file()} names no hosts", "write: hosts: [{name: node1, uri: qemu+ssh://node1/system}, …]")


def resolve(text: str) -> NamedHost:
    """A host by its name, or by a URI. Raises NotFoundError, UsageError."""
    if ":" in text:
        return by_name(text)
    hosts = named()
    found = next((host for host in hosts if host.name == text), None)
    if found is None:
        known = nearest(text, [host.name for host in hosts]) if hosts else f"{file()} names none"
        raise NotFoundError(
            f"no host is named {text!r}: {known}", f"give its URI, or add it to {argument(str(file()))}"
        )
    return found


def by_name(text: str) -> NamedHost:
    """A host by its name here, or by a URI, or by what libvirt itself takes for one."""
    return next((host for host in named() if text in (host.name, host.uri)), NamedHost(text, text))


def policy_of(host: NamedHost, hypervisor: Hypervisor) -> tuple[HostPolicy, bool]:
    """The policy that holds on a host, and whether its owner wrote it. Raises UsageError for a file that is wrong."""
    if host.policy:
        return hostpolicy.read(Path(host.policy)), True
    if hypervisor.local:
        found = hostpolicy.find()
        return found.policy, True
    return HostPolicy(), False


def ask_all(hosts: Sequence[NamedHost], ask: Callable[[Hypervisor], Value], deadline: float = DEADLINE) -> list[Answer]:
    """What every host answers, in their order. They are asked at once; one that is dead costs its own line and at
    most `deadline` seconds."""
    answers: dict[int, Answer] = {}
    threads = []
    # Once, before several connect at the same time.
    serve_events()
    for number, host in enumerate(hosts):

        def asking(number: int = number, host: NamedHost = host) -> None:
            try:
                with open_hypervisor(host.uri) as hypervisor:
                    answers[number] = Answer(host, ask(hypervisor))
            except KvmctlError as error:
                answers[number] = Answer(host, error=error)

        # A call to a host that hangs cannot be interrupted, so its thread is left behind.
        threads.append(threading.Thread(target=asking, daemon=True))
        threads[-1].start()
    end = time.monotonic() + deadline
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    late = TimedOutError(f"no answer within {deadline:g} s", "kvmctl -c URI host doctor examines the way there")
    found = dict(answers)
    return [found.get(number, Answer(host, error=late)) for number, host in enumerate(hosts)]
