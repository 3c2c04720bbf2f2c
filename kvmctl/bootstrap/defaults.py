"""libvirt's `default` storage pool and network, which guests take their disks and nics from."""

from pathlib import Path

from kvmctl.bootstrap import state
from kvmctl.bootstrap.progress import say
from kvmctl.bootstrap.virsh import names, reason, virsh
from kvmctl.model.errors import KvmctlError

NAME = "default"
_IMAGES = "/var/lib/libvirt/images"
_NETWORK_XML = Path("/usr/share/libvirt/networks/default.xml")


def ensure_pool() -> None:
    """Have the pool active, making it where libvirt has none. Raises KvmctlError."""
    if NAME in names("pool-list", "--name"):
        return
    if NAME in names("pool-list", "--all", "--name"):
        if not state.load().pool:
            state.record(pool="started")
    else:
        state.record(pool="defined")
        virsh("pool-define-as", NAME, "dir", "--target", _IMAGES)
        virsh("pool-build", NAME)
        # Whoever starts libvirt next will expect it, as with the one other tools make.
        virsh("pool-autostart", NAME)
    virsh("pool-start", NAME)
    say(f"started the storage pool `{NAME}`")


def ensure_network() -> bool:
    """Have the network active if this host can; otherwise say why not and return False."""
    if NAME in names("net-list", "--name"):
        return True
    before = state.load().network
    try:
        _start_network(before)
    except KvmctlError as error:
        if state.load().network == "started":
            state.record(network=before)
        say(f"the network `{NAME}` cannot be started here ({reason(error)}): guests use user-mode networking")
        return False
    say(f"started the network `{NAME}`")
    return True


def _start_network(before: str) -> None:
    if NAME in names("net-list", "--all", "--name"):
        state.record(network=before or "started")
    else:
        state.record(network="defined")
        virsh("net-define", str(_NETWORK_XML))
    virsh("net-start", NAME)


def remove() -> None:
    """Stop, and undefine, what was started, and defined, here."""
    made = state.load()
    if made.network:
        if NAME in names("net-list", "--name"):
            virsh("net-destroy", NAME)
        if made.network == "defined" and NAME in names("net-list", "--all", "--name"):
            virsh("net-undefine", NAME)
        say(f"stopped the network `{NAME}`")
    if made.pool:
        if NAME in names("pool-list", "--name"):
            virsh("pool-destroy", NAME)
        if made.pool == "defined" and NAME in names("pool-list", "--all", "--name"):
            virsh("pool-undefine", NAME)
        say(f"stopped the storage pool `{NAME}`; what is in {_IMAGES} stays there")
    state.record(network="", pool="")
