"""What every command is given: the global options and the connection, opened when first needed."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kvmctl.hypervisor.connection import Hypervisor


class App:
    """The global options of one invocation."""

    def __init__(self) -> None:
        self.uri: str | None = None
        self.output = "table"
        self.quiet = False
        self.verbose = 0
        self.debug = False
        self.yes = False
        self._hypervisor: Hypervisor | None = None

    def hypervisor(self) -> Hypervisor:
        """The connection, opened once. Raises UnreachableError."""
        if self._hypervisor is None:
            from kvmctl.hypervisor.connection import open_hypervisor

            self._hypervisor = open_hypervisor(self.uri)
            if self.verbose and not self.quiet:
                click.echo(f"connected to {self._hypervisor.uri}", err=True)
            click.get_current_context().find_root().call_on_close(self._hypervisor.close)
            self._thaw()
        return self._hypervisor

    def _thaw(self) -> None:
        """A guest that a killed run has left frozen hangs in all that it writes: the next run of any command helps."""
        from kvmctl.cli.output import warn
        from kvmctl.control.freeze import thaw_left
        from kvmctl.model.errors import KvmctlError

        assert self._hypervisor is not None
        with suppress(KvmctlError):  # who may not read the journal has begun nothing
            for text in thaw_left(self._hypervisor):
                warn(text)

    def reconnect(self) -> None:
        """Let `hypervisor` open another connection: the one there was is of no use any more."""
        self._hypervisor = None


pass_app = click.make_pass_decorator(App)
