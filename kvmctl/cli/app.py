"""What every command is given: the global options and the connection, opened when first needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kvmctl.hypervisor.connection import Hypervisor


class App:
    """The global options of one invocation."""

    def __init__(self) -> None:
        self.connect: tuple[str, ...] = ()
        """What the `-c` say that count: those after the command, else those before it."""
        self.output = "table"
        self.quiet = False
        self.verbose = 0
        self.debug = False
        self.yes = False
        self._hypervisor: Hypervisor | None = None

    @property
    def uri(self) -> str | None:
        """The hypervisor that was named, by URI or as hosts.yaml calls it. Raises UsageError where several were."""
        if len(self.connect) > 1:
            from kvmctl.model.errors import UsageError

            raise UsageError(
                f"this acts on one host, and -c names {len(self.connect)}", "kvmctl list and host show take several"
            )
        if self.connect and self.connect[0] and ":" not in self.connect[0]:
            from kvmctl.control.hosts import by_name

            return by_name(self.connect[0]).uri
        return self.connect[0] if self.connect else None

    def hypervisor(self) -> Hypervisor:
        """The connection, opened once. Raises UnreachableError."""
        if self._hypervisor is None:
            from kvmctl.hypervisor.connection import open_hypervisor

            self._hypervisor = open_hypervisor(self.uri)
            if self.verbose and not self.quiet:
                click.echo(f"connected to {self._hypervisor.uri}", err=True)
            click.get_current_context().find_root().call_on_close(self._hypervisor.close)
            self._tell()
        return self._hypervisor

    def _tell(self) -> None:
        """Whatever the command, what a killed run has left is put right or told: a guest that it has left frozen hangs
        in all that it writes, and one that it has left saved is off."""
        from kvmctl.host.where import is_noted

        if not is_noted("freeze", "export"):
            return
        from kvmctl.cli.output import warn
        from kvmctl.control.left import told
        from kvmctl.model.errors import KvmctlError

        assert self._hypervisor is not None
        try:
            for sentence in told(self._hypervisor):
                warn(sentence)
        except KvmctlError as error:
            warn(error.message)

    def reconnect(self) -> None:
        """Let `hypervisor` open another connection: the one there was is of no use any more."""
        self._hypervisor = None


pass_app = click.make_pass_decorator(App)
