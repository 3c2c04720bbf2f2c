import ast
from fnmatch import fnmatch
from pathlib import Path

import pytest

pytestmark = pytest.mark.style

ROOT = Path(__file__).parents[2]
MAX_FILE = 420
MAX_FUNCTION = 60
LONGER: set[str] = set()
"""Functions that may be longer, as `path:name`. A function that passes 60 lines wants to be two."""
TOP = {
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "kvmctl",
    "pyproject.toml",
    "templates",
    "tests",
    "vagrant",
}

SOURCES = [path for folder in ("kvmctl", "tests", "vagrant") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE
    long = {
        f"{path.relative_to(ROOT)}:{node.name}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION
    }
    assert long <= LONGER


def test_the_top_level_holds_only_what_belongs_there() -> None:
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()]
    found = {path.name for path in ROOT.iterdir() if not any(fnmatch(path.name, pattern) for pattern in ignored)}
    assert found - TOP - {".git"} == set()
