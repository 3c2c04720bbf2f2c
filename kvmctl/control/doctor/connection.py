"""The doctor's checks of the way to the hypervisor: daemons, sockets, permissions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from kvmctl.control.doctor.check import Check
from kvmctl.host import daemons
from kvmctl.hypervisor import capabilities, host
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.uri import is_local
from kvmctl.model.errors import KvmctlError

SLOW_SECONDS = 2.0
_RUN = Path("/run/libvirt")
_MODULAR = {"qemu": "virtqemud", "xen": "virtxend", "lxc": "virtlxcd"}


@dataclass(frozen=True, slots=True)
class Opened:
    """How connecting went: the hypervisor or the error, and the seconds that it and the first calls took."""

    uri: str
    hypervisor: Hypervisor | None
    error: KvmctlError | None
    seconds: float
    capabilities: str = ""

    @property
    def local(self) -> bool:
        """Whether the URI names a hypervisor of this machine."""
        return self.hypervisor.local if self.hypervisor else is_local(self.uri)


def connect(uri: str, connect_to: Callable[[], Hypervisor]) -> Opened:
    """Connect and make the first calls, which are the slow ones."""
    began = time.monotonic()
    try:
        hypervisor = connect_to()
        text = capabilities.capabilities(hypervisor)
    except KvmctlError as error:
        return Opened(uri, None, error, time.monotonic() - began)
    return Opened(hypervisor.uri, hypervisor, None, time.monotonic() - began, text)


def checks(opened: Opened) -> Iterator[Check]:
    """Connection, first call, versions; on this machine also sockets, daemons and rights."""
    if opened.hypervisor:
        yield Check("connection", "ok", f"{opened.uri} answers")
        yield _first_call(opened.seconds)
        found = host.versions(opened.hypervisor)
        yield Check("versions", "ok", f"libvirt {found.daemon} (library {found.library}), {found.hypervisor}")
    else:
        yield _refused(opened)
    if opened.local:
        yield _session(opened.uri)
        yield from _daemons(opened)


def _first_call(seconds: float) -> Check:
    took = f"the first calls took {seconds:.2f} s"
    if seconds < SLOW_SECONDS:
        return Check("first call", "ok", took)
    cause = "a fresh libvirt asks every QEMU program what it can do, and remembers the answers"
    return Check("first call", "warn", took, cause, "try again; if it stays slow, look at libvirt's own log")


def _refused(opened: Opened) -> Check:
    assert opened.error is not None
    if not opened.local:
        other = urlsplit(opened.uri).hostname or opened.uri
        hint = f"see whether the other host answers: virsh -c {opened.uri} version"
        return Check("connection", "fail", f"no connection to {other}", opened.error.message, hint)
    sock = _answering_socket(opened.uri)
    return Check(
        "connection", "fail", f"no connection to {opened.uri}", opened.error.message, _remedy(opened.uri, sock)
    )


def _remedy(uri: str, sock: daemons.Socket) -> str:
    if ":" not in uri:
        return "name it in hosts.yaml, or write a URI as in -c qemu+ssh://HOST/system"
    if sock.state == "forbidden":
        group = sock.access.rpartition(":")[2]
        member = f"let {daemons.user()} use it: usermod -aG {group} {daemons.user()}, then log in again"
        return "run this as root" if group in ("", "root") else member
    if "socket" in parse_qs(urlsplit(uri).query):
        return f"the URI names this socket: leave out socket={sock.path}, or start what listens there"
    if sock.state == "listening":
        return _refusal()
    candidates = ("libvirtd", _MODULAR.get(urlsplit(uri).scheme, "libvirtd"))
    there = next((name for name in candidates if daemons.installed(name)), None)
    return daemons.start_command(there) if there else "install libvirt: apt-get install libvirt-daemon-system"


def _refusal() -> str:
    if os.geteuid() != 0:
        return f"run this as root, or let polkit permit it: usermod -aG libvirt {daemons.user()}, then log in again"
    log = "journalctl -u libvirtd -n 50" if daemons.has_systemd() else "ls /var/log/libvirt"
    return f"the daemon listens but refuses; its log may say why: {log}"


def sockets(uri: str) -> list[Path]:
    """The sockets through which libvirt may reach a hypervisor of this machine, the likeliest first."""
    parts = urlsplit(uri)
    if named := parse_qs(parts.query).get("socket"):
        return [Path(named[0])]
    folder = _RUN
    if parts.path == "/session" and os.geteuid() != 0:
        folder = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "libvirt"
    modular = _MODULAR.get(parts.scheme)
    return ([folder / f"{modular}-sock"] if modular else []) + [folder / "libvirt-sock"]


def _answering_socket(uri: str) -> daemons.Socket:
    """The first socket that somebody listens on; else the one that says most."""
    order = ("listening", "forbidden", "dead", "absent")
    return min((daemons.probe_socket(path) for path in sockets(uri)), key=lambda sock: order.index(sock.state))


def _session(uri: str) -> Check:
    if urlsplit(uri).path != "/session" or os.geteuid() == 0:
        # Root's session is served by the system's daemon.
        return Check("scope", "ok", f"{uri} is the whole system's hypervisor")
    return Check(
        "scope",
        "warn",
        f"{uri} is this user's own hypervisor",
        "its guests have no CPU weights or quotas, no networks of libvirt, and nobody else sees them",
        "kvmctl -c qemu:///system host doctor",
    )


def _daemons(opened: Opened) -> Iterator[Check]:
    sock = _answering_socket(opened.uri)
    yield _socket(sock, opened)
    monolithic, modular = "libvirtd", _MODULAR.get(urlsplit(opened.uri).scheme, "")
    found = daemons.running(("libvirtd", "virtlogd", *(_MODULAR.values())))
    if monolithic in found and modular in found:
        both = f"{monolithic} and {modular} both run"
        cause = "each keeps its own state, and guests of one are unknown to the other"
        yield Check(
            "daemons", "fail", both, cause, "keep one: systemctl disable --now libvirtd.service libvirtd.socket"
        )
    elif monolithic in found:
        yield Check("daemons", "ok", f"{monolithic} runs, the monolithic daemon")
    elif modular in found:
        yield _modular(modular)
    elif opened.hypervisor:
        yield Check("daemons", "ok", "none runs now: the socket starts it on demand, or it is on its own")
    else:
        yield Check("daemons", "fail", "no libvirt daemon runs", "", _remedy(opened.uri, sock))
    yield _log_daemon(found)


def _modular(daemon: str) -> Check:
    """Modular libvirt has a daemon of its own for pools and one for networks."""
    sockets = {name: daemons.probe_socket(_RUN / f"{name}-sock") for name in ("virtstoraged", "virtnetworkd")}
    absent = [name for name, sock in sockets.items() if sock.state == "absent"]
    if not absent:
        return Check("daemons", "ok", f"{daemon} runs, the modular daemon, with those for pools and networks")
    cause = f"without {' and '.join(absent)} there are no pools or networks"
    hint = " && ".join(f"systemctl enable --now {name}.socket" for name in absent)
    return Check("daemons", "warn", f"{daemon} runs, the modular daemon, but not all that belong to it", cause, hint)


def _socket(sock: daemons.Socket, opened: Opened) -> Check:
    found = f"{sock.path} is {sock.state}" + (f" ({sock.access})" if sock.access else "")
    if sock.state == "listening" or opened.hypervisor:
        return Check("socket", "ok", found)
    causes = {
        "dead": "a daemon that ended left it behind",
        "forbidden": f"{daemons.user()} may not connect to it",
        "absent": "no daemon has made it",
    }
    return Check("socket", "fail", found, causes.get(sock.state, ""), _remedy(opened.uri, sock))


def _log_daemon(found: dict[str, int]) -> Check:
    sock = daemons.probe_socket(_RUN / "virtlogd-sock")
    if "virtlogd" in found or sock.state == "listening":
        return Check("virtlogd", "ok", "virtlogd keeps the guests' logs")
    if sock.state == "forbidden":
        return Check("virtlogd", "unknown", "virtlogd does not run under this name", "its socket is root's")
    cause = 'guests cannot be started without it, unless qemu.conf says stdio_handler = "file"'
    return Check("virtlogd", "warn", "virtlogd does not run", cause, daemons.start_command("virtlogd"))
