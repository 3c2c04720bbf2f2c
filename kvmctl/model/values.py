"""Single values as people write them in a file or on the command line.

Every function takes the text and returns the value, or raises ValueError with a sentence that says what
was written and what would be right. What passes here can be stored in XML and used as an argument.
"""

import re
from collections.abc import Callable

from kvmctl.model import names, units
from kvmctl.model.cpuset import format_cpuset, parse_cpuset
from kvmctl.model.errors import UsageError
from kvmctl.model.pci import parse_address
from kvmctl.model.spec import MAX_SHARES, UNLIMITED
from kvmctl.model.wording import nearest, quoted

MAX_CPUS = 4096
"""vCPUs of one guest, and cores of a limit: as many as QEMU's largest machine type takes."""
LEAST_LIMIT = 0.01
"""Cores. The kernel takes no CPU quota below 1 ms, and a period is 100 ms."""
LEAST_RESERVE = 0.01
"""Cores. What competes with all guests gets about this much of one core at the ends of the kernel's weight range."""
LEAST_MEMORY = 16 * units.MIB
MAX_TEXT = 8192
"""Bytes of a description or a kernel command line."""

_BOOLEANS = {
    spelling: value
    for word, value in {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.items()
    for spelling in (word, word.title(), word.upper())
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_CONTROL_IN_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_LABEL = re.compile(r"[a-z0-9][a-z0-9._/-]{0,62}", re.ASCII)
_HOST_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
_KEY = re.compile(r"(?:ssh|ecdsa|sk-ssh|sk-ecdsa)-[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,3}(?: .*)?", re.ASCII)


def boolean(text: str) -> bool:
    """Read true or false, with the spellings that YAML 1.1 has for them."""
    if text not in _BOOLEANS:
        raise ValueError(f"{quoted(text)} is not true or false")
    return _BOOLEANS[text]


def whole(what: str, least: int, most: int) -> Callable[[str], int]:
    """A reader of whole numbers from `least` to `most`; `what` says in messages what is counted."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or not least <= int(text) <= most:
            raise ValueError(f"{quoted(text)} is not a number of {what}: write a whole number from {least} to {most}")
        return int(text)

    return read


def choice(*known: str) -> Callable[[str], str]:
    """A reader of one word of `known`."""

    def read(text: str) -> str:
        if text not in known:
            raise ValueError(f"{quoted(text)} is not possible here: {nearest(text, known)}")
        return text

    return read


def shares(text: str) -> int | str:
    """Read a relative weight: a whole number, or a level that counts per vCPU or per MiB."""
    if text in ("low", "normal", "high"):
        return text
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or not 1 <= int(text) <= MAX_SHARES:
        raise ValueError(
            f"{quoted(text)} is not a number of shares: write a whole number from 1 to {MAX_SHARES}, "
            "or low, normal or high"
        )
    return int(text)


def limit(text: str, base_mhz: float | None) -> float:
    """Read a ceiling in cores, to a thousandth of one; `unlimited` is infinity."""
    if text == "unlimited":
        return UNLIMITED
    cores = _cores(text, base_mhz)
    if cores < LEAST_LIMIT:
        raise ValueError(
            f"{quoted(text)} is too small a limit: the least is {LEAST_LIMIT} cores, because the kernel takes no quota "
            "below 1 ms in a period of 100 ms"
        )
    return cores


def reservation(text: str, base_mhz: float | None) -> float:
    """Read a guaranteed floor in cores, to a thousandth of one."""
    return _cores(text, base_mhz)


def host_reserve(text: str, base_mhz: float | None) -> float:
    """Read what a host keeps for itself, in cores, to a thousandth of one."""
    cores = _cores(text, base_mhz)
    if cores < LEAST_RESERVE:
        raise ValueError(
            f"{quoted(text)} is too little for a host, which always has work of its own: the least is "
            f"{LEAST_RESERVE} cores"
        )
    return cores


def host_memory(text: str) -> int:
    """Read an amount of a host's memory, in bytes."""
    size = units.parse_size(text)
    if size < LEAST_MEMORY:
        raise ValueError(f"{quoted(text)} is too little for a host: the least is {units.format_size(LEAST_MEMORY)}")
    return size


def percent(text: str, least: int, most: int) -> float:
    """Read a part such as `150%`, from `least` to `most` per cent; 1.5 is returned for it."""
    match = re.fullmatch(r"([0-9]{1,5})%", text, re.ASCII)
    if not match or not least <= int(match[1]) <= most:
        raise ValueError(f"{quoted(text)} is no part: write a whole number of per cent from {least}% to {most}%")
    return int(match[1]) / 100


def _cores(text: str, base_mhz: float | None) -> float:
    exact = units.parse_cores(text, base_mhz)
    if exact > MAX_CPUS:
        raise ValueError(f"{quoted(text)} is more CPU than any guest or host has: the most is {MAX_CPUS} cores")
    cores = round(exact, 3)
    if exact and not cores:
        raise ValueError(f"{quoted(text)} is too little CPU: the least amount is 0.001 cores")
    return cores


def cpus(text: str) -> str:
    """Read a set of host CPUs into its canonical form; `none`, or nothing at all, is the empty string."""
    return "" if text in ("", "none") else format_cpuset(parse_cpuset(text))


def mebibytes(text: str) -> int:
    """Read a size and round it up to whole MiB: QEMU gives memory, and partitions are laid out, in these."""
    return -(-units.parse_size(text) // units.MIB) * units.MIB


def memory(text: str) -> int:
    """Read the memory of a guest, in bytes."""
    size = mebibytes(text)
    if size < LEAST_MEMORY:
        raise ValueError(
            f"{quoted(text)} is too little memory for a guest: the least is {LEAST_MEMORY // units.MIB}MiB"
        )
    return size


def disk_size(text: str) -> int:
    """Read the size of a volume, in bytes."""
    size = mebibytes(text)
    if not size:
        raise ValueError(f"{quoted(text)} is no size for a disk: the least is 1MiB")
    return size


MOST_IOPS = 1_000_000_000
"""Operations per second; QEMU takes no more."""
MOST_RATE = 1_000_000_000_000
"""Bytes per second: 8 Tbit/s. QEMU takes 10^15, the kernel's traffic control what fits in 32 bits of kB."""
_UNLIMITED = ("unlimited", "none", "0")


def iops(text: str) -> int:
    """Read operations per second; `unlimited` is 0."""
    return 0 if text in _UNLIMITED else whole("operations per second", 1, MOST_IOPS)(text)


def io_weight(text: str) -> int:
    """Read a relative weight for disk I/O; `default` is 0, the kernel's own."""
    return 0 if text == "default" else whole("parts", 10, 1000)(text)


def disk_rate(text: str) -> int:
    """Read bytes per second, written as a size with or without `/s`; `unlimited` is 0."""
    return 0 if text in _UNLIMITED else _rate(units.parse_rate(text), text)


def bit_rate(text: str) -> int:
    """Read the speed of a nic in bytes per second, rounded up to whole kB as the kernel counts; `unlimited` is 0."""
    return 0 if text in _UNLIMITED else _rate(-(-units.parse_bits(text) // 1000) * 1000, text)


def _rate(rate: int, text: str) -> int:
    if not rate:
        raise ValueError(f"{quoted(text)} would stop all traffic: write unlimited for no ceiling")
    if rate > MOST_RATE:
        raise ValueError(f"{quoted(text)} is more than any device does: write unlimited for no ceiling")
    return rate


def burst_size(text: str) -> int:
    """Read the amount of a nic's burst in bytes, rounded up to whole KiB; `unlimited` is 0, which is none."""
    if text in _UNLIMITED:
        return 0
    size = -(-units.parse_size(text) // units.KIB) * units.KIB
    if size >= 4 * units.GIB:
        raise ValueError(f"{quoted(text)} is more than the kernel takes for a burst: write less than 4GiB")
    return size


def hugepages(text: str) -> int:
    """Read a page size in bytes; `true` is the processor's usual huge page, `false` is 0: ordinary pages."""
    if text in _BOOLEANS:
        return 2 * units.MIB if _BOOLEANS[text] else 0
    if text not in ("2MiB", "1GiB"):
        raise ValueError(f"{quoted(text)} is not a size of huge pages: write true, false, 2MiB or 1GiB")
    return units.parse_size(text)


def prose(text: str) -> str:
    """Read printable text of several lines, without the characters that XML cannot hold."""
    _refuse_control(_CONTROL_IN_LINES, text)
    if len(text.encode()) > MAX_TEXT:
        raise ValueError(f"{quoted(text)} has {len(text.encode())} bytes: at most {MAX_TEXT} are allowed")
    return text


def line(what: str, most: int = 255) -> Callable[[str], str]:
    """A reader of one printable line of 1 to `most` bytes; `what` says in messages what it is."""

    def read(text: str) -> str:
        _refuse_control(_CONTROL, text)
        if not 1 <= len(text.encode()) <= most:
            raise ValueError(f"{quoted(text)} is not usable as {what}: it has to have 1 to {most} bytes")
        return text

    return read


def _refuse_control(pattern: re.Pattern[str], text: str) -> None:
    found = pattern.search(text)
    if found:
        raise ValueError(f"{quoted(text)} holds the control character U+{ord(found[0]):04X}")


def absolute(text: str) -> str:
    """Read the absolute path of a file or folder on the host."""
    if not text.startswith("/"):
        raise ValueError(f"{quoted(text)} is not an absolute path: write it from / on")
    return line("a path", 4095)(text)


def file_name(text: str) -> str:
    """Read the name of a volume, pool or network: one printable line that cannot leave its folder."""
    if "/" in text or text in (".", ".."):
        raise ValueError(f"{quoted(text)} is not a name: it cannot hold a / or be . or ..")
    return line("a name")(text)


def base_image(text: str) -> str:
    """Read what a new volume overlays: a volume's name, or an absolute path."""
    return absolute(text) if text.startswith("/") else file_name(text)


def word(what: str) -> Callable[[str], str]:
    """A reader of a name that QEMU or libvirt knows something by; `what` says in messages what it is."""

    def read(text: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", text, re.ASCII):
            raise ValueError(f"{quoted(text)} is not {what}: letters, digits and _ . - are allowed, up to 64 of them")
        return text

    return read


def target(text: str) -> str:
    """Read the name that a disk has in its guest's definition."""
    if not re.fullmatch(r"(?:vd|sd|hd|fd)[a-z]{1,2}", text, re.ASCII):
        raise ValueError(f"{quoted(text)} is not a disk's target: write it as in vda, sda or hda")
    return text


def bridge(text: str) -> str:
    """Read the name of a network interface on the host, as Linux allows them."""
    if not re.fullmatch(r"[^\s/:\x00-\x1f]{1,15}", text) or text in (".", ".."):
        raise ValueError(f"{quoted(text)} is not the name of a bridge: 1 to 15 characters without spaces, / or :")
    return line("the name of a bridge", 15)(text)


def mac(text: str) -> str:
    """Read the MAC address of a network interface into lower case."""
    address = text.lower()
    if not _MAC.fullmatch(address):
        raise ValueError(f"{quoted(text)} is not a MAC address: write it as in 52:54:00:12:34:56")
    if int(address[:2], 16) & 1 or address == "00:00:00:00:00:00":
        raise ValueError(f"{quoted(text)} is not the address of one interface: take one that begins with 52:54:00")
    return address


def pci_address(text: str) -> str:
    """Read a PCI address such as 01:00.0 into the kernel's spelling."""
    try:
        return parse_address(text)
    except UsageError as error:
        raise ValueError(f"{error.message}: {error.hint}") from None


def mdev(text: str) -> str:
    """Read the UUID of a mediated device into lower case."""
    uuid = text.lower()
    if not _UUID.fullmatch(uuid):
        raise ValueError(f"{quoted(text)} is not a UUID: write it as in 4b20d080-1b54-4048-85b3-a6a62d165c01")
    return uuid


def vlan(text: str) -> int:
    """Read the number of a VLAN; `none` is 0."""
    return 0 if text == "none" else whole("VLANs (or none)", 1, 4094)(text)


def ip_address(text: str) -> str:
    """Read an IPv4 or IPv6 address, without a zone, into its canonical form."""
    import ipaddress  # loading it takes longer than anything else here

    try:
        if "%" not in text:
            return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    raise ValueError(f"{quoted(text)} is not an IP address: write it as in 127.0.0.1, 0.0.0.0 or ::1")


def vnc_port(text: str) -> int:
    """Read a TCP port for VNC; `auto` is 0: QEMU chooses."""
    if text in ("auto", "0"):
        return 0
    if not re.fullmatch(r"[0-9]{4,5}", text, re.ASCII) or not 5900 <= int(text) <= 65535:
        raise ValueError(f"{quoted(text)} is not a VNC port: write auto, or a number from 5900 to 65535")
    return int(text)


def boot_order(text: str) -> tuple[str, ...]:
    """Read what the guest tries to start from, in turn: some of disk, cdrom, network, with commas between."""
    order = tuple(choice("disk", "cdrom", "network")(part.strip(" ")) for part in text.split(","))
    if len(set(order)) < len(order):
        raise ValueError(f"{quoted(text)} names one thing twice")
    return order


nic_model = choice(
    "virtio", "e1000e", "rtl8139", "e1000", "igb", "ne2k_pci", "pcnet", "usb-net", "vmxnet3",
    "virtio-transitional", "virtio-non-transitional",
)  # fmt: skip
"""A reader of the network cards that QEMU has on a PC."""


def label_key(text: str) -> str:
    """Read the key of a label."""
    if not _LABEL.fullmatch(text):
        raise ValueError(
            f"{quoted(text)} is not the key of a label: a-z, 0-9 and . _ / - are allowed, the first a letter or digit, "
            "up to 63 characters"
        )
    return text


def project(text: str) -> str:
    """Read the name that the guests of a file have in common."""
    try:
        return names.check_name(text)
    except ValueError as error:
        raise ValueError(f"a project is named like a guest, but {error}") from None


def host_name(text: str) -> str:
    """Read a host name as RFC 1123 has it, with or without a domain."""
    if len(text) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in text.split(".")):
        raise ValueError(f"{quoted(text)} is not a host name: letters, digits and - are allowed, with dots between")
    return text


def user_name(text: str) -> str:
    """Read the name of a user in the guest, as useradd takes it."""
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", text, re.ASCII):
        raise ValueError(f"{quoted(text)} is not a user's name: a-z, 0-9, _ and - are allowed, up to 32 characters")
    return text


def ssh_key(text: str) -> str:
    """Read a public key, or the absolute path of the file that holds one."""
    if text.startswith("/"):
        return absolute(text)
    if not _KEY.fullmatch(text):
        raise ValueError(f"{quoted(text)} is not a public key: write it as in `ssh-ed25519 AAAA…`, or an absolute path")
    return line("a public key", MAX_TEXT)(text)
