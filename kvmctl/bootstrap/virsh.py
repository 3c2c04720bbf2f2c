"""libvirt's own command, for what has to be done before kvmctl can run."""

from kvmctl.bootstrap.progress import run
from kvmctl.model.errors import KvmctlError

URI = "qemu:///system"
_SECONDS = 120.0


def virsh(*arguments: str, timeout: float = _SECONDS) -> str:
    """What `virsh` prints. Raises KvmctlError with its message, or after `timeout` seconds."""
    return run(["virsh", "--quiet", "--connect", URI, *arguments], timeout=timeout)


def names(*arguments: str) -> set[str]:
    """The names that a listing prints, one a line."""
    return {line.strip() for line in virsh(*arguments).splitlines() if line.strip()}


def succeeds(*arguments: str) -> bool:
    """Whether `virsh` does it: for questions that it answers with a failure."""
    try:
        virsh(*arguments)
    except KvmctlError:
        return False
    return True


def reason(error: KvmctlError) -> str:
    """The sentence in which libvirt says why."""
    lines = [line.strip() for line in error.message.splitlines() if line.strip().startswith("error:")]
    return (lines[-1] if lines else error.message.splitlines()[0]).removeprefix("error:").strip()
