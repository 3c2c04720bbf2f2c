"""Where kvmctl keeps what it has to know again, for who has no time to load anything for it."""

import os


def state() -> str:
    """The folder of what kvmctl changed: KVMCTL_STATE_DIR, else /var/lib/kvmctl for root."""
    if wanted := os.environ.get("KVMCTL_STATE_DIR"):
        return wanted
    if os.geteuid() == 0:
        return "/var/lib/kvmctl"
    return os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "kvmctl")  # noqa: PTH111, PTH118


def is_noted(*kinds: str) -> bool:
    """Whether the journal may list something of these kinds; it is read as text, and not understood."""
    try:
        with open(f"{state()}/journal.json", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            text = file.read()
    except OSError:
        return False  # who may not read it has begun nothing
    return any(f'"{kind}"' in text for kind in kinds)
