"""An option that is a span of time."""

from __future__ import annotations

import re

import click

from kvmctl.model.wording import quoted

_MAX_SECONDS = 3600.0


def seconds(_ctx: click.Context, _param: click.Parameter, text: str) -> float:
    """Read `1s` or `500ms`; a bare number is seconds."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s)?", text, re.ASCII)
    found = float(match[1]) / (1000 if match[2] == "ms" else 1) if match else -1.0
    if not 0 <= found <= _MAX_SECONDS:
        raise click.BadParameter(f"{quoted(text)} is not a duration: write 1s or 500ms, at most an hour")
    return found
