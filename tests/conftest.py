"""What the tiers share: a hypervisor, guests that are removed again, the command line as a user runs it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from hypothesis import settings

from kvmctl.bootstrap.testing import PART
from tests.support import PREFIX, Console, Guest, Screen

if TYPE_CHECKING:
    from kvmctl.bootstrap.microguest import MicroGuest
    from kvmctl.hypervisor.connection import Hypervisor

TIERS = ("style", "unit", "wheel", "golden", "testdriver", "paused", "booted", "twohosts", "nested", "vagrant")
NEEDS_HYPERVISOR = {"golden", "paused", "booted"}


# How long an example takes says nothing here but what else the machine does; in CI hypothesis knows that by itself.
settings.register_profile("unhurried", deadline=None)
if not os.environ.get("CI"):
    settings.load_profile("unhurried")

ON_REQUEST = "vagrant"
"""The tier that runs only where it is asked for by name: it needs what nothing else does."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Cheap tiers first; every test belongs to one."""
    if ON_REQUEST not in config.option.markexpr:
        items[:] = [item for item in items if not item.get_closest_marker(ON_REQUEST)]
    if part := os.environ.get(PART):
        number, count = map(int, part.split("/"))
        nested = [item for item in items if item.get_closest_marker("nested")]
        others = set(nested) - set(nested[number::count])
        items[:] = [item for item in items if item not in others]
    for item in items:
        if not _tier(item):
            raise pytest.UsageError(f"{item.nodeid} has no tier: mark it with one of {', '.join(TIERS)}")
    items.sort(key=lambda item: TIERS.index(_tier(item)))


def _tier(item: pytest.Item) -> str:
    return next((tier for tier in TIERS if item.get_closest_marker(tier)), "")


def cannot(reason: str) -> NoReturn:
    """A tier that cannot run is a failure in CI and a skip elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(f"this tier cannot run: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def hypervisor() -> Iterator[Hypervisor]:
    """qemu:///system of this machine."""
    from kvmctl.hypervisor.connection import open_hypervisor
    from kvmctl.model.errors import UnreachableError

    try:
        opened = open_hypervisor("qemu:///system")
    except UnreachableError as error:
        cannot(error.message)
    with opened:
        yield opened


@pytest.fixture(scope="session")
def micro() -> MicroGuest:
    """Kernel and initramfs of the micro guest."""
    from kvmctl.bootstrap import microguest

    return microguest.ensure()


@pytest.fixture(scope="session")
def accelerator(micro: MicroGuest) -> str:
    """`kvm` where the micro guest boots under it, else `tcg`."""
    from kvmctl.host import accelerator

    return accelerator.resolve(micro.kernel).name


_numbers = itertools.count(1)


@pytest.fixture
def make_name(hypervisor: Hypervisor) -> Iterator[Callable[..., str]]:
    """Names for guests, which are gone again after the test, with their images in the test pool."""
    given: list[str] = []

    def make(what: str = "guest") -> str:
        given.append(f"{PREFIX}{what}-{os.getpid()}-{next(_numbers)}")
        return given[-1]

    yield make
    for name in given:
        Guest(hypervisor, name).remove()


@pytest.fixture
def pool(hypervisor: Hypervisor) -> Iterator[tuple[str, Path]]:
    """An empty storage pool and its folder, which QEMU can enter."""
    name = f"{PREFIX}pool-{os.getpid()}-{next(_numbers)}"
    folder = Path("/var/lib/libvirt") / name
    folder.mkdir(mode=0o711)
    text = f"<pool type='dir'><name>{name}</name><target><path>{folder}</path></target></pool>"
    made = hypervisor.connection.storagePoolCreateXML(text)
    try:
        yield name, folder
    finally:
        made.destroy()
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


@dataclass(frozen=True)
class Ran:
    """How one command line ended."""

    args: tuple[str, ...]
    code: int
    out: str
    err: str

    def json(self) -> Any:
        """stdout as the one JSON document it is."""
        return json.loads(self.out)


Kvmctl = Callable[..., Ran]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state directory of the command line under test."""
    return tmp_path / "state"


@pytest.fixture
def kvmctl(state: Path, tmp_path: Path) -> Kvmctl:
    """The command line in a process of its own; fails unless it ends with the expected code."""

    def run(*args: object, code: int | None = 0, stdin: str | bytes = "", env: dict[str, str] | None = None) -> Ran:
        words = tuple(map(str, args))
        done = subprocess.run(
            [sys.executable, "-m", "kvmctl", *words],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            timeout=300,
            env=environment(state, tmp_path / "run") | (env or {}),
            check=False,
        )
        ran = Ran(words, done.returncode, done.stdout.decode(), done.stderr.decode())
        assert "--debug" in words or "Traceback" not in ran.err, ran.err
        assert code is None or ran.code == code, f"{words}: exit {ran.code}, not {code}\n{ran.out}\n{ran.err}"
        return ran

    return run


def environment(state: Path, run: Path) -> dict[str, str]:
    """An environment in which kvmctl keeps its state and locks to itself, and has no policy but its own."""
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG")}
    root = str(Path(__file__).parent.parent)
    own = {"KVMCTL_STATE_DIR": str(state), "KVMCTL_RUN_DIR": str(run), "KVMCTL_HOST_FILE": str(state / "host.yaml")}
    return kept | own | {"PYTHONPATH": root}


@pytest.fixture
def console() -> Iterator[Callable[[Guest], Console]]:
    """Serial consoles of booted micro guests, closed after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda guest: stack.enter_context(Console(guest))


@pytest.fixture
def screen(state: Path, tmp_path: Path) -> Iterator[Screen]:
    """A terminal to run the command line on."""
    opened = Screen(environment(state, tmp_path / "run"))
    yield opened
    opened.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that QEMU's user can enter."""
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}folder-", dir="/var/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)
