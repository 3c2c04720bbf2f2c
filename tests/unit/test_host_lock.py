import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.host.lock import HOST, holder, lock, lock_all, lock_file
from kvmctl.model.errors import LockedError, UnreachableError

pytestmark = pytest.mark.unit
URI = "qemu:///system"
_HOLD = """
import sys
from kvmctl.host.lock import HOST, holder, lock, lock_all, lock_file
with lock(sys.argv[-1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMCTL_RUN_DIR", str(tmp_path / "run"))


@pytest.fixture
def other() -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends."""
    command = [sys.executable, "-c", _HOLD, "apply", "-f", "guests.yaml", URI]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_holder_is_named_with_its_command(other: subprocess.Popen[str]) -> None:
    with pytest.raises(LockedError) as caught, lock(URI):
        pass
    assert caught.value.exit_code == 9
    assert f"process {other.pid} (kvmctl apply -f guests.yaml {URI}) is changing {URI}" in caught.value.message
    assert holder(URI) == f"process {other.pid} (kvmctl apply -f guests.yaml {URI})"


def test_another_hypervisor_is_not_locked(other: subprocess.Popen[str]) -> None:
    with lock("qemu:///session"):
        assert lock_file("qemu:///session") != lock_file(URI)


def test_a_killed_holder_holds_no_longer(other: subprocess.Popen[str]) -> None:
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert holder(URI) is None
    with lock(URI):
        assert holder(URI) is not None
    assert holder(URI) is None


def test_waiting_gets_the_lock_when_it_is_let_go(other: subprocess.Popen[str]) -> None:
    assert other.stdin is not None
    other.stdin.close()
    with lock(URI, wait=30):
        pass


def test_a_wait_that_ends_says_how_long_it_was(other: subprocess.Popen[str]) -> None:
    began = time.monotonic()
    with pytest.raises(LockedError, match=r"waited 0\.2 s"), lock(URI, wait=0.2):
        pass
    assert time.monotonic() - began >= 0.2


@given(first=st.text(max_size=400), second=st.text(max_size=400))
def test_distinct_uris_have_distinct_files_in_the_run_folder(first: str, second: str) -> None:
    one, two = lock_file(first), lock_file(second)
    assert (one == two) == (first == second)
    assert one.parent == two.parent
    assert len(one.name.encode()) <= 255


def test_the_folder_is_private(tmp_path: Path) -> None:
    with lock(URI):
        pass
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    assert lock_file(URI).stat().st_mode & 0o777 == 0o600


def test_a_lock_that_may_not_be_taken_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        monkeypatch.setenv("KVMCTL_RUN_DIR", folder)
        os.seteuid(65534)
        try:
            with pytest.raises(UnreachableError, match=r"cannot open the lock file .*: Permission denied") as raised:
                lock(URI).__enter__()
        finally:
            os.seteuid(0)
        assert raised.value.hint == "run this as root"


def test_all_locks_are_those_of_hypervisors_and_the_machines_and_no_others(tmp_path: Path) -> None:
    long = f"qemu:///system?socket=/{'x' * 300}"
    for name in (URI, long, "the micro guest"):
        with lock(name):
            pass
    with lock("the micro guest"), lock_all():
        for name in (URI, long, HOST):
            with pytest.raises(LockedError), lock(name):
                pass
    with lock(URI), lock(long), lock(HOST):
        pass


def test_one_that_is_held_keeps_all_from_being_taken(other: subprocess.Popen[str]) -> None:
    with pytest.raises(LockedError, match=f"is changing {URI}"), lock_all():
        pass
    with lock(HOST):
        pass
