"""An argument that is a path."""

from __future__ import annotations

import click


def not_empty(_ctx: click.Context, _param: click.Parameter, text: str) -> str:
    """Refuse an empty one, which a variable that is not set leaves: it would mean the current folder."""
    if not text:
        raise click.BadParameter("a path cannot be empty")
    return text
