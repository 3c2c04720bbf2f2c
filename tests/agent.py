"""The words of QEMU's guest agent that freezing a guest takes, spoken by a shell in a micro guest."""

from __future__ import annotations

import base64
import re
from typing import Any

import libvirt

from kvmctl.hypervisor import domains
from tests.support import Console, Guest, until

_AGENT = r"""
p=$(ls /dev/vport*p* | head -n 1)
exec 3<>$p
while :; do
  while read -r line <&3; do
    case "$line" in
      *guest-sync*) echo "{\"return\":$(echo "$line" | sed 's/.*"id": *\([0-9]*\).*/\1/')}" >&3 ;;
      *guest-fsfreeze-freeze*)
        echo freeze >>/run/agent
        while [ -e /run/hold ]; do usleep 50000; done
        echo '{"return":1}' >&3 ;;
      *guest-fsfreeze-thaw*) echo thaw >>/run/agent; echo '{"return":1}' >&3 ;;
      *) echo '{"return":{}}' >&3 ;;
    esac
  done
  usleep 50000  # as long as libvirt has not come, it reads an end
done
"""
"""What it was told is in /run/agent. While there is a /run/hold, it has frozen and does not say so yet."""


def begin(guest: Guest, line: Console) -> None:
    """Have the agent run in the guest, and wait until libvirt hears it."""
    packed = base64.b64encode(_AGENT.encode()).decode()
    for start in range(0, len(packed), 200):
        line.run(f"printf %s {packed[start : start + 200]} >>/run/packed")
    line.run("base64 -d /run/packed >/run/agent.sh; (sh /run/agent.sh >/dev/null 2>&1 &) ; true")
    until(lambda: domains.live_definition(guest.domain), lambda text: "state='connected'" in text, 30, "the agent")
    until(lambda: _answers(guest.domain), bool, 30, "the agent's answer")
    line.run(": >/run/agent")


def _answers(domain: Any) -> bool:
    """Whether the agent has been heard; to ask it to let go of what is not held changes nothing."""
    try:
        domain.fsThaw()
    except libvirt.libvirtError:
        return False
    return True


def told(line: Console) -> list[str]:
    """What the agent has been told since, in order."""
    return re.findall(r"^(freeze|thaw)\s*$", line.run("cat /run/agent"), re.MULTILINE)
