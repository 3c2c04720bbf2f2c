"""show, spec and xml: one guest, for people, as a guest file, as libvirt has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.completion import complete_guests
from kvmctl.cli.output import emit_document, emit_names, one_line
from kvmctl.model.units import human_size

_name = click.argument("name", metavar="NAME", shell_complete=complete_guests)


@click.command()
@_name
@pass_app
def show(app: App, name: str) -> None:
    """Show one guest: its state, promises, devices, and what waits for its next start.

    \b
    Example:
      kvmctl show web1
      kvmctl show web1 -o json
    """
    from kvmctl.control.inspect import inspect

    facts = inspect(app.hypervisor(), name)
    if app.output == "name":
        emit_names([facts["name"]])
    elif app.output == "table":
        for line in _lines(facts):
            click.echo(line)
    else:
        emit_document(app, facts)


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    for key in ("name", "uuid", "state", "autostart", "persistent"):
        yield _line(0, key, facts[key])
    memory = facts["memory_now"]
    yield _line(0, "memory now", f"{human_size(memory['balloon'])} of {human_size(memory['max'])}")
    yield _line(0, "resident", human_size(memory["resident"]))
    yield from _tree(0, {key: value for key, value in facts["spec"].items() if key not in facts})
    for mode in ("emulated", "paravirtual", "passthrough"):
        names = [_device(one) for one in facts["devices"] if one["mode"] == mode]
        if names:
            yield _line(0, mode, ", ".join(names))
    for change in facts["pending_restart"]:
        yield f"pending restart: {change['field']}: {change['running']} now, {change['stored']} from the next start"
    for text in facts["beyond_the_guest_file"]:
        yield f"not in the guest file: {one_line(text)}"


def _device(one: Mapping[str, Any]) -> str:
    return " ".join(str(one[key]) for key in ("device", "name") if one[key]) + (
        f" ({one['model']})" if one["model"] else ""
    )


def _tree(depth: int, value: Mapping[str, Any]) -> Iterator[str]:
    for key, item in value.items():
        if item in ({}, []):
            continue
        if isinstance(item, Mapping):
            yield _line(depth, key, "")
            yield from _tree(depth + 1, item)
        elif isinstance(item, list) and item and isinstance(item[0], Mapping):
            yield _line(depth, key, "")
            for entry in item:
                yield (
                    "  " * (depth + 1)
                    + "- "
                    + ", ".join(f"{k} {one_line(str(v))}" for k, v in entry.items() if v is not False)
                )
        else:
            yield _line(depth, key, ", ".join(map(str, item)) if isinstance(item, list) else item)


def _line(depth: int, key: str, value: object) -> str:
    shown = {True: "yes", False: "no", None: "-"}.get(value, value) if isinstance(value, bool | None) else value
    return f"{'  ' * depth}{key + ':':<{18 - 2 * depth}}{one_line(str(shown))}".rstrip()


@click.command()
@_name
@pass_app
def spec(app: App, name: str) -> None:
    """Print a guest as a guest file that applies with no change.

    What the file cannot express stands above the guest as comments; applying the file leaves it alone.

    \b
    Example:
      kvmctl spec web1 > web1.yaml
    """
    from kvmctl.control.inspect import described

    found, unexpressed = described(app.hypervisor(), name)
    if app.output == "name":
        emit_names([name])
        return
    if app.output == "json":
        from kvmctl.model.data import as_data

        emit_document(app, {"project": found.project, "guests": [as_data(found)], "unexpressed": list(unexpressed)})
        return
    from kvmctl.model.guestfile import dump

    comments = {name: [f"not expressed here, and kept as it is: {text}" for text in unexpressed]}
    click.echo(dump([found], project=found.project, comments=comments), nl=False)


@click.command()
@_name
@click.option("--live", is_flag=True, help="What it runs with now, instead of what it starts from next.")
@pass_app
def xml(app: App, name: str, live: bool) -> None:
    """Print a guest's domain XML, without passwords.

    \b
    Example:
      kvmctl xml web1
    """
    from kvmctl.hypervisor import domains

    domain = domains.find(app.hypervisor(), name)
    text = domains.live_definition(domain) if live else domains.definition(domain)
    if app.output == "name":
        emit_names([name])
    elif app.output == "table":
        # XML has a spelling for what a terminal would act on.
        click.echo("".join(c if c.isprintable() or c in "\n\t" else f"&#x{ord(c):x};" for c in text), nl=False)
    else:
        emit_document(app, {"name": name, "xml": text})
