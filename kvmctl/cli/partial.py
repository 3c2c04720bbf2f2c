"""Commands that have something to show even where libvirt does not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmctl.cli.app import App
from kvmctl.model.errors import UnreachableError

if TYPE_CHECKING:
    from kvmctl.hypervisor.connection import Hypervisor


def hypervisor_or_error(app: App) -> tuple[Hypervisor | None, UnreachableError | None]:
    """The hypervisor, or why there is none. Raises that where the user means another machine."""
    from kvmctl.hypervisor.uri import is_local, meant

    try:
        return app.hypervisor(), None
    except UnreachableError as error:
        if not is_local(meant(app.uri)):
            raise
        return None, error
