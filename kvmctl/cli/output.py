"""stdout carries results only: a table, JSON, YAML or names. Everything else goes to stderr."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import click

from kvmctl.cli.app import App

Row = Mapping[str, Any]
WIDEST = 40
"""Columns of a terminal that one column of a table takes at most."""


class Column(NamedTuple):
    """One column of a table: the row's key, its title, and how a value is written; numbers stand right."""

    key: str
    title: str
    show: Callable[[Any], str] = str
    right: bool = False


def emit(app: App, rows: Sequence[Row], columns: Sequence[Column]) -> None:
    """Print rows in the wished format. JSON and YAML hold every key of a row, in the row's order."""
    if app.output == "name":
        emit_names(row["name"] for row in rows)
    elif app.output == "table":
        click.echo(table(rows, columns), nl=False)
    else:
        emit_document(app, [dict(row) for row in rows])


def emit_names(names: Iterable[str]) -> None:
    """Print one name a line: exactly, for scripts; on a terminal without what would move its cursor."""
    show = one_line if sys.stdout.isatty() else str
    click.echo("".join(f"{show(name)}\n" for name in names), nl=False)


def emit_document(app: App, document: object) -> None:
    """Print one JSON or YAML document (YAML also where a table was asked for and there is none)."""
    click.echo(as_json(document) if app.output == "json" else as_yaml(document), nl=False)


def as_json(document: object) -> str:
    """One JSON document. JSON has no infinity, so an absent bound is null."""
    import json

    text = json.dumps(_plain(document), indent=2, ensure_ascii=False)
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text) + "\n"


def as_yaml(document: object) -> str:
    """One YAML document, keys in their order."""
    import yaml

    text: str = yaml.safe_dump(_plain(document), sort_keys=False, allow_unicode=True)
    return text


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return None if math.isinf(value) or math.isnan(value) else round(value, 6)
    return value


def table(rows: Iterable[Row], columns: Sequence[Column]) -> str:
    """A plain table with titles, as text."""
    return "".join(f"{line}\n" for line in table_lines(rows, columns))


def table_lines(rows: Iterable[Row], columns: Sequence[Column]) -> list[str]:
    """The lines of a table: the titles, then one a row; two spaces between columns, None as `-`.

    A cell of more than `WIDEST` columns pushes the rest of its own line aside, and not the other lines.
    """
    cells = [[column.title for column in columns]]
    cells += [["-" if (value := row.get(c.key)) is None else one_line(c.show(value)) for c in columns] for row in rows]
    widths = [min(WIDEST, max(_width(line[index]) for line in cells)) for index in range(len(columns))]
    return [_line(line, widths, columns) for line in cells]


def _line(line: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    padded = []
    for cell, width, column in zip(line, widths, columns, strict=True):
        space = " " * (width - _width(cell))
        padded.append(space + cell if column.right else cell + space)
    return "  ".join(padded).rstrip()


def _width(text: str) -> int:
    """The columns of a terminal that `text` takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def printable(text: str) -> str:
    """Text without anything that would move the cursor: foreign names and descriptions may hold it."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def one_line(text: str) -> str:
    """`printable`, and what would begin a new line as well."""
    return printable(text).replace("\n", "\\n")


def note(app: App, text: str) -> None:
    """Tell the user something that is no result; not under `-q`."""
    if not app.quiet:
        click.echo(printable(text), err=True)


def detail(app: App, text: str) -> None:
    """Tell the user who asked with `-v` what is done on the way."""
    if app.verbose:
        note(app, text)


def warn(text: str) -> None:
    """Tell the user something that must be seen, even under `-q`."""
    click.echo(f"{styled('warning:', fg='yellow', err=True)} {printable(text)}", err=True)


def moves_cursor() -> bool:
    """Whether a terminal, where there is one, is more than a typewriter."""
    return os.environ.get("TERM") != "dumb"


def styled(text: str, err: bool = False, **style: Any) -> str:
    """Colour on a terminal that wants it, plain text elsewhere and with NO_COLOR."""
    stream = sys.stderr if err else sys.stdout
    if os.environ.get("NO_COLOR") or not moves_cursor() or not stream.isatty():
        return text
    return click.style(text, **style)


def confirm(app: App, question: str, refusal: str) -> None:
    """Ask on a terminal; without one, raise RefusedError unless `--yes` was given."""
    from kvmctl.model.errors import RefusedError

    if app.yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise RefusedError(refusal, "add --yes to do it without being asked")
    if not click.confirm(question, err=True):
        raise RefusedError("nothing was done")
