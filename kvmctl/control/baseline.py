"""The CPU that all of several hosts can run, and giving it to guests."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from kvmctl.control.guarded import LOCK_WAIT
from kvmctl.control.hosts import ask_all
from kvmctl.host.lock import lock
from kvmctl.hypervisor import capabilities, domains, moving
from kvmctl.hypervisor.connection import Hypervisor, open_hypervisor
from kvmctl.model.errors import KvmctlError, RefusedError, UnreachableError
from kvmctl.model.hostsfile import NamedHost
from kvmctl.xml import baseline as described
from kvmctl.xml import tree
from kvmctl.xml.capabilities import accelerators, parse_platform
from kvmctl.xml.moving import host_cpu


@dataclass(frozen=True, slots=True)
class Baseline:
    """A CPU. `features` are those that it has beyond its model, `without` those of the model that it lacks."""

    model: str
    features: tuple[str, ...]
    without: tuple[str, ...]
    virt_type: str
    arch: str
    xml: str


@dataclass(frozen=True, slots=True)
class _Offer:
    """What one host has."""

    arch: str
    types: tuple[str, ...]
    cpus: dict[str, str]
    """The processor as guests of each type can have it."""


def baseline(hosts: Sequence[NamedHost], kind: str | None = None) -> Baseline:
    """The CPU that guests of all these hosts can have, checked on each of them; of domain type `kind`, or by KVM
    where all have it.

    Raises UnreachableError where one does not answer, RefusedError where they have nothing in common.
    """
    answers = ask_all(hosts, _offer)
    dead = [f"{answer.host.name}: {answer.error.message}" for answer in answers if answer.error]
    if dead:
        raise UnreachableError(
            "\n  ".join(["a baseline needs an answer of every host", *dead]), "leave out those that are gone"
        )
    offers: list[_Offer] = [answer.value for answer in answers]
    architectures = sorted({offer.arch for offer in offers})
    if len(architectures) > 1:
        raise RefusedError(f"the hosts are of different architectures: {', '.join(architectures)}", "choose of one")
    wanted = offers[0].types if kind is None else (kind,)
    common = [each for each in wanted if all(each in offer.cpus for offer in offers)]
    if not common:
        raise RefusedError("no kind of guest has a CPU that all hosts can tell of", "kvmctl host doctor on each")
    kind, arch = common[0], architectures[0]
    with open_hypervisor(hosts[0].uri) as first:
        text = moving.cpu_baseline(first, [offer.cpus[kind] for offer in offers], arch, kind)
    found = described.read(text)
    _check(hosts, text, arch, kind)
    return Baseline(found.model, found.required, found.disabled, kind, arch, text)


def _offer(hypervisor: Hypervisor) -> _Offer:
    text = capabilities.capabilities(hypervisor)
    platform = parse_platform(text, None)
    types = tuple({"tcg": "qemu"}.get(name, name) for name in accelerators(text))
    cpus = {}
    for kind in types:
        domain = capabilities.domain_capabilities(hypervisor, kind, platform.arch, None)
        cpu = None if domain is None else described.host_model(domain)
        if cpu is None and kind == "kvm":
            cpu = host_cpu(text)
        if cpu is not None:
            cpus[kind] = cpu
    return _Offer(platform.arch, types, cpus)


def _check(hosts: Sequence[NamedHost], text: str, arch: str, kind: str) -> None:
    """Ask every host whether it can really run that CPU."""

    def ask(hypervisor: Hypervisor) -> str | None:
        machine = parse_platform(capabilities.capabilities(hypervisor), None).default_machine or ""
        return moving.cpu_difference(hypervisor, text, arch, machine, kind)

    wrong = [f"{one.host.name}: {one.value or one.error}" for one in ask_all(hosts, ask) if one.value or one.error]
    if wrong:
        raise KvmctlError("\n  ".join(["not every host can run the CPU that was computed", *wrong]), "report this")


def kind_of(hypervisor: Hypervisor, names: Sequence[str]) -> str | None:
    """The domain type of these guests; None where there are none. Raises NotFoundError, RefusedError."""
    kinds = {tree.read(domains.definition(domains.find(hypervisor, name))).get("type", "") for name in names}
    if len(kinds) > 1:
        raise RefusedError(f"the guests are of different kinds: {', '.join(sorted(kinds))}", "give each kind its own")
    return kinds.pop() if kinds else None


def give_all(hypervisor: Hypervisor, names: Sequence[str], found: Baseline, dry_run: bool) -> list[str]:
    """Make that the CPU of guests, from their next start on; those whose CPU is another than before.

    Raises NotFoundError, RefusedError before anything is changed.
    """
    with nullcontext() if dry_run else lock(hypervisor.uri, LOCK_WAIT):
        changes = []
        for name in names:
            domain = domains.find(hypervisor, name)
            before = domains.definition(domain, secure=True)
            after = described.with_cpu(before, found.xml)
            if after != before and not domains.is_persistent(domain):
                raise RefusedError(f"guest {name} is transient: it has no definition to change", "define it first")
            if after != before:
                changes.append((name, after))
        for name, after in changes if not dry_run else ():
            domains.define(hypervisor, name, after)
    return [name for name, _after in changes]
