"""The rooms of the house, and which way their arrows point."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.style

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "model": set[str](),
    "policy": {"model"},
    "xml": {"model"},
    "hypervisor": {"model"},
    "host": {"model"},
    "control": {"policy", "xml", "hypervisor", "host", "model"},
    "cli": {"control", "policy", "xml", "hypervisor", "host", "model"},
    "bootstrap": {"host", "model"},
}
PURE = {"model", "policy", "xml"}
NOT_PURE = {"click", "libvirt", "os", "psutil", "random", "socket", "subprocess", "time"}
HEAVY = {"jinja2", "libvirt", "lxml", "prometheus_client", "psutil", "pycdlib", "yaml"}
STANDARD_LIBRARY_ONLY = ("kvmctl.bootstrap", "kvmctl.host.accelerator")
"""What runs before anything is installed."""

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "kvmctl").rglob("*.py")
    if path.name != "build_hook.py"
}


def imports(module: str) -> Iterator[str]:
    """Every module that `module` imports, at its top or inside a function, by its full name."""
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module}: imports are written out in full"
            assert node.level == 0, f"{module}: imports are written out in full"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in FILES else node.module for name in inner)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_every_room_is_known() -> None:
    folders = {path.name for path in (ROOT / "kvmctl").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(MAY_IMPORT)


@pytest.mark.parametrize("module", [name for name in FILES if room(name) in MAY_IMPORT])
def test_arrows_point_one_way(module: str) -> None:
    allowed = MAY_IMPORT[room(module)] | {room(module), ""}
    wrong = [name for name in imports(module) if name.partition(".")[0] == "kvmctl" and room(name) not in allowed]
    assert not wrong, f"{room(module)} may import {sorted(allowed)}"


@pytest.mark.parametrize("module", [name for name in FILES if room(name) in PURE])
def test_pure_rooms_touch_nothing(module: str) -> None:
    assert not {name.partition(".")[0] for name in imports(module)} & NOT_PURE


def test_only_the_hypervisor_room_imports_libvirt() -> None:
    users = {module for module in FILES if any(name.partition(".")[0] == "libvirt" for name in imports(module))}
    assert users
    assert {room(module) for module in users} == {"hypervisor"}


def test_the_bootstrap_needs_the_standard_library_only() -> None:
    waiting = [module for module in FILES if module.startswith(STANDARD_LIBRARY_ONLY)]
    seen: dict[str, str] = dict.fromkeys(waiting, "")
    foreign = []
    while waiting:
        module = waiting.pop()
        for name in imports(module):
            if name in FILES and name not in seen:
                seen[name] = module
                waiting.append(name)
            elif name.partition(".")[0] not in {*sys.stdlib_module_names, "kvmctl"}:
                foreign.append(f"{module} imports {name}, and is imported by {seen[module] or 'nothing'}")
    assert not foreign


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["completion", "bash"]])
def test_what_needs_no_hypervisor_starts_light(args: list[str]) -> None:
    report = "import atexit, sys; atexit.register(lambda: print('loaded', *sys.modules, file=sys.stderr))"
    code = f"{report}; from kvmctl.cli.main import run; run({args!r})"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    loaded = done.stderr.partition("loaded ")[2].split()
    assert "click" in loaded
    assert not HEAVY & set(loaded)
