"""How the threads of one guest divide what the guest gets."""

from __future__ import annotations

from dataclasses import dataclass

from kvmctl.policy.parent import DEFAULT_WEIGHT, WEIGHT_RANGE

HELPERS_PART = 10
"""Emulator and I/O threads together weigh a vCPU's part divided by this."""


@dataclass(frozen=True, slots=True)
class ThreadWeights:
    """`helper` is what the emulator and each I/O thread should weigh, `vcpu` what each vCPU should."""

    helper: int
    vcpu: int
    raised: bool = False
    """Whether `vcpu` is more than a vCPU may weigh by itself, so that each of them has to be looked at."""


def thread_weights(version: int, vcpu: int, helpers: int) -> ThreadWeights:
    """The weights with which `helpers` groups of threads, all busy, take at most a tenth of a vCPU's part together.

    `vcpu` is what a vCPU weighs; it is raised only where the least weight times `helpers` would be more than a tenth
    of it (from eleven helpers on in cgroup v2, where a vCPU weighs 100). So a vCPU that wants its CPU gets 10/11 of
    it at least, and helpers get whatever no vCPU wants.

    A limit knows no weights: where it binds and another CPU is idle, helpers there use up what the vCPU might have.
    """
    least = WEIGHT_RANGE[version][0]
    helper, needed = vcpu // (HELPERS_PART * helpers), least * HELPERS_PART * helpers
    return ThreadWeights(max(least, helper), max(vcpu, needed), raised=needed > DEFAULT_WEIGHT[version])
