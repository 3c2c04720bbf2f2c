"""What a user gets from `pip install`: the wheel in a clean environment, with the checkout out of the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.wheel

ROOT = Path(__file__).parents[2]
NOT_SOURCE = shutil.ignore_patterns(
    ".*_cache", ".git", ".hypothesis", ".venv", "__pycache__", "build", "dist", "*.egg-info"
)
GUESTS = """\
guests:
  - name: web1
    cpu: {count: 2, shares: 2000, limit: 150%, reservation: 0.5}
    memory: {size: 64MiB}
    boot: {order: [network]}
    nics: [{user: true}]
    state: stopped
"""


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "KVMCTL"))}
    own = {"KVMCTL_STATE_DIR": str(cwd / "state"), "KVMCTL_RUN_DIR": str(cwd / "run"), "SOURCE_DATE_EPOCH": "0"}
    done = subprocess.run(command, cwd=cwd, env=kept | own, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source, cwd=folder)
    shutil.rmtree(source)
    (built,) = folder.glob("kvmctl-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path) -> Path:
    """A virtual environment with nothing but the wheel and what it asks for."""
    place = wheel.parent / "environment"
    run(sys.executable, "-m", "venv", place, cwd=wheel.parent)
    run(place / "bin/pip", "install", "--quiet", "--no-compile", wheel, cwd=wheel.parent)
    return place


def test_the_wheel_holds_the_templates_but_not_how_it_is_built(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    templates = {f"kvmctl/{path.relative_to(ROOT)}" for path in (ROOT / "templates").rglob("*") if path.is_file()}
    assert templates
    assert templates <= names
    assert "kvmctl/build_hook.py" not in names
    assert not [name for name in names if name.startswith(("tests/", "vagrant/"))]


def test_the_wheel_holds_all_that_is_in_the_package(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "kvmctl").rglob("*")
        if path.is_file() and path.suffix != ".pyc" and path.name != "build_hook.py"
    }
    assert package - names == set()


def test_the_installed_command_runs_from_its_own_files(environment: Path, tmp_path: Path) -> None:
    where = run(environment / "bin/python", "-c", "import kvmctl; print(kvmctl.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)
    version = run(environment / "bin/python", "-c", "import kvmctl; print(kvmctl.__version__)", cwd=tmp_path)
    assert version.strip() in run(environment / "bin/kvmctl", "--version", cwd=tmp_path)
    assert "apply" in run(environment / "bin/kvmctl", "--help", cwd=tmp_path)


def test_a_guest_is_rendered_from_the_installed_templates(environment: Path, tmp_path: Path) -> None:
    file = tmp_path / "guests.yaml"
    file.write_text(GUESTS)
    command: list[str | Path] = [environment / "bin/kvmctl", "-c", "test:///default", "apply", "-f", file]
    assert "web1" in run(*command, "--dry-run", cwd=tmp_path, code=10)
    assert "web1" in run(*command, cwd=tmp_path)


def test_every_command_has_a_man_page(environment: Path, tmp_path: Path) -> None:
    pages = {path.stem: path.read_text() for path in (environment / "share/man/man1").glob("kvmctl*.1")}
    commands = run(environment / "bin/python", "-c", LIST_COMMANDS, cwd=tmp_path).split()
    assert "kvmctl-apply" in commands
    assert "kvmctl-ksm-show" in commands
    assert set(pages) == set(commands)
    for name, text in pages.items():
        assert text.startswith(f'.TH "{name.replace("-", " ").upper()}" "1" "1970-01-01"'), name
        assert ".SH DESCRIPTION" in text
        assert "Example" in text, f"{name} shows no example"
        assert "\b" not in text
    assert "\\fBapply\\fP" in pages["kvmctl"]


LIST_COMMANDS = """
import click
from kvmctl.cli.main import cli

def walk(command, path, context):
    print(path)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if not inner.hidden:
                walk(inner, f"{path}-{name}", context)

walk(cli, "kvmctl", click.Context(cli))
"""
