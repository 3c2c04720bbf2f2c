"""Guests that somebody else made on libvirt's test driver, and a shell of their user."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

_HOST = (
    "<cpu><mhz>2000</mhz><model>any</model><active>4</active><nodes>1</nodes><sockets>1</sockets><cores>4</cores>"
    "<threads>1</threads></cpu><memory>8388608</memory>"
)


def _domain(name: str, description: str) -> str:
    words = {"\n": "&#10;", "\t": "&#9;"}
    return (
        f"<domain type='test'><name>{escape(name, words)}</name><description>{escape(description)}</description>"
        "<memory>65536</memory><vcpu>1</vcpu><os><type>hvm</type></os></domain>"
    )


@pytest.fixture
def foreign(tmp_path: Path) -> Callable[..., str]:
    """The URI of a hypervisor whose running guests bear any names, and a description."""

    def make(*names: str, description: str = "") -> str:
        path = tmp_path / "hypervisor.xml"
        path.write_text(f"<node>{_HOST}{''.join(_domain(name, description) for name in names)}</node>")
        return f"test://{path}"

    return make
