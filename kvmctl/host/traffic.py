"""What the kernel's traffic control limits a network interface to, and whether it can, as `tc` tells."""

from __future__ import annotations

import re
import subprocess

_SECONDS = 10.0
_RATE = re.compile(r"\brate (\d+)([KMGT]?)bit")
_CEIL = re.compile(r"\bceil (\d+)([KMGT]?)bit")
_SCALE = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


_TRIED = {
    "in": (
        "qdisc add dev lo root handle 1: htb default 1",
        "class add dev lo parent 1: classid 1:1 htb rate 1mbit",
        "qdisc add dev lo parent 1:1 handle 2: sfq perturb 10",
        "filter add dev lo parent 1:0 protocol all prio 1 handle 1 fw flowid 1",
    ),
    "out": (
        "qdisc add dev lo ingress",
        "filter add dev lo parent ffff: protocol all u32 match u32 0 0 police rate 1mbit burst 10k drop flowid :1",
    ),
}
"""What libvirt 9 asks of the kernel for a ceiling of what comes to a guest, and of what it sends."""
MODULES = {"in": "sch_htb sch_sfq cls_fw", "out": "sch_ingress cls_u32 act_police"}


def missing(way: str) -> str:
    """Why this kernel cannot limit what comes `in` to a guest or what goes `out` of it, in its own words, found by
    trying it in an empty network namespace; empty where it can, or where this user may not try."""
    lines = "".join(f"{line}\n" for line in _TRIED[way])
    try:
        done = subprocess.run(
            ["unshare", "--net", "tc", "-batch", "-"],
            input=lines,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    said = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    return said[0].removeprefix("Error: ").rstrip(".") if done.returncode and said else ""


def sent(interface: str) -> int | None:
    """Bytes per second that may go out by the interface, which on a guest's tap is what comes to the guest: the rate of
    its HTB class. 0 is no limit, None where `tc` does not say."""
    return _found(_RATE, _tc("class", "show", "dev", interface))


def sent_peak(interface: str) -> int | None:
    """Bytes per second that may go out by the interface at most, when others leave room."""
    return _found(_CEIL, _tc("class", "show", "dev", interface))


def received(interface: str) -> int | None:
    """Bytes per second that may come in by the interface before packets are dropped, likewise: what a guest sends."""
    return _found(_RATE, _tc("filter", "show", "dev", interface, "parent", "ffff:"))


def _tc(*words: str) -> str | None:
    try:
        done = subprocess.run(["tc", *words], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # Without an ingress queue there is no filter, which tc calls an error too.
    return None if "Cannot find device" in done.stderr else done.stdout


def _found(pattern: re.Pattern[str], text: str | None) -> int | None:
    """The first rate, or 0; tc writes no more digits than it can without a fraction, so none are lost."""
    if text is None:
        return None
    match = pattern.search(text)
    return int(match[1]) * _SCALE[match[2]] // 8 if match else 0
