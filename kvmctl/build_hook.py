"""What a wheel holds besides the package: the XML templates, and a man page for every command.

Used by hatch while it builds, and not part of the wheel itself.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

import click
from click_man.man import ManPage
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BuildHook(BuildHookInterface):  # type: ignore[misc]
    """An editable install needs neither: the templates are found beside the package in the checkout."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to the wheel that is about to be built."""
        if version == "editable":
            return
        root = Path(self.root)
        build_data["force_include"][str(root / "templates")] = "kvmctl/templates"
        sys.path.insert(0, self.root)
        cli: click.Command = importlib.import_module("kvmctl.cli.main").cli
        self._folder = tempfile.TemporaryDirectory(prefix="kvmctl-man-")
        for name, text in man_pages(cli, "kvmctl", self.metadata.version):
            path = Path(self._folder.name) / f"{name}.1"
            path.write_text(text, encoding="utf-8")
            build_data["shared_data"][str(path)] = f"share/man/man1/{path.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was made for the build."""
        if version != "editable":
            self._folder.cleanup()


def man_pages(
    command: click.Command, name: str, version: str, parent: click.Context | None = None
) -> Iterator[tuple[str, str]]:
    """The name and the text of the man page of `command` and of every command in it."""
    with click.Context(command, info_name=name, parent=parent) as context:
        page = ManPage(context.command_path)
        page.version = version
        page.short_help = command.get_short_help_str(limit=200)
        page.synopsis = " ".join(command.collect_usage_pieces(context))
        page.description = "\n\n".join(filter(None, (roff(command.help or ""), roff(command.epilog or ""))))
        page.options = [record for option in command.params if (record := option.get_help_record(context))]
        inner = subcommands(command, context)
        page.commands = [(word, inside.get_short_help_str(limit=200)) for word, inside in inner.items()]
        yield context.command_path.replace(" ", "-"), str(page)
        for word, inside in inner.items():
            yield from man_pages(inside, word, version, context)


def subcommands(command: click.Command, context: click.Context) -> dict[str, click.Command]:
    """The commands of a group, which click-man itself would miss where they are loaded only when used."""
    if not isinstance(command, click.Group):
        return {}
    found = {name: command.get_command(context, name) for name in command.list_commands(context)}
    return {name: inside for name, inside in found.items() if inside and not inside.hidden}


def roff(text: str) -> str:
    """Help as click takes it, as man takes it: what follows a line of backspace keeps its lines."""
    paragraphs = []
    for paragraph in cleandoc(text).split("\n\n"):
        lines = [line.replace("\\", "\\e").replace("-", "\\-") for line in paragraph.split("\n") if line != "\b"]
        # A line that begins with one of these would be an instruction.
        lines = [f"\\&{line}" if line.startswith((".", "'")) else line for line in lines]
        paragraphs.append("\n".join([".nf", *lines, ".fi"] if "\b" in paragraph else lines))
    return "\n\n".join(paragraphs)
