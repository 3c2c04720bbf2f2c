"""Which host CPUs a guest can be pinned to."""

from collections.abc import Collection

from kvmctl.model.cpuset import HostCpus, format_cpuset


def unusable(cpus: Collection[int], host: HostCpus) -> str:
    """Why nothing can be pinned to these host CPUs, to complete `cpu.pin …`; empty where it can.

    CPUs that are off-line beside others that are not do no harm: they may come back.
    """
    missing = frozenset(cpus) - host.present
    if missing:
        return f"names {_named(missing)}, which this host does not have: it has {format_cpuset(host.present)}"
    if not host.online.intersection(cpus):
        verb = "is" if len(set(cpus)) == 1 else "are"
        return f"names {_named(cpus)}, which {verb} off-line: on-line here {_are(host.online)}"
    return ""


def _named(cpus: Collection[int]) -> str:
    return f"CPU{'' if len(set(cpus)) == 1 else 's'} {format_cpuset(cpus)}"


def _are(cpus: Collection[int]) -> str:
    return f"{'is' if len(cpus) == 1 else 'are'} {format_cpuset(cpus)}"
