import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmctl.bootstrap import __main__, clean, daemons, demo, progress, state
from kvmctl.bootstrap.packages import lacking
from kvmctl.bootstrap.state import Daemon, State
from kvmctl.model.errors import KvmctlError, TimedOutError

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(tmp_path / "state"))
    return state.directory()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_nothing_is_recorded_at_first() -> None:
    assert state.load() == State()


def test_what_is_recorded_is_read_back_and_private(folder: Path) -> None:
    wanted = State((Daemon("libvirtd", 7, "boot 1"),), "defined", "started", "0:600", {"a": ""}, ("a.qcow2",), ("gcc",))
    state.update(lambda _: wanted)
    assert state.load() == wanted
    assert (folder / "state.json").stat().st_mode & 0o777 == 0o600


def test_a_field_is_recorded_and_the_others_stay() -> None:
    state.record(pool="defined")
    assert state.record(network="started") == State(pool="defined", network="started") == state.load()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(min_size=1, max_size=40), st.sampled_from([b"[]", b"{}", b'{"daemons": 1}', b"null"])))
def test_a_damaged_record_is_said(folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_bytes(content)
    with pytest.raises(KvmctlError, match="damaged"):
        state.load()


def test_only_daemons_of_ours_are_stopped(sleeper: subprocess.Popen[bytes]) -> None:
    state.record(daemons=(Daemon("libvirtd", sleeper.pid, "another boot 1"),))
    daemons.stop()
    assert sleeper.poll() is None
    assert state.load().daemons == ()


def test_a_daemon_of_ours_is_stopped(sleeper: subprocess.Popen[bytes]) -> None:
    state.record(daemons=(Daemon("libvirtd", sleeper.pid, daemons.started(sleeper.pid)),))
    daemons.stop()
    assert sleeper.wait(10) == -15


def test_a_process_that_ended_has_no_start() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert daemons.started(process.pid) == ""
    state.record(daemons=(Daemon("libvirtd", process.pid, ""),))
    assert daemons.running() == []


def test_a_program_s_output_is_returned() -> None:
    assert progress.run(["sh", "-c", "echo out; echo err >&2"]) == "out\nerr\n"


def test_a_program_that_fails_shows_the_end_of_its_output() -> None:
    with pytest.raises(KvmctlError, match=r"(?s)ended with status 3.*line 40$") as caught:
        progress.run(["sh", "-c", "for i in $(seq 40); do echo line $i; done; exit 3"])
    assert "line 1\n" not in caught.value.message


def test_a_program_that_hangs_is_ended() -> None:
    with pytest.raises(TimedOutError, match="no answer"):
        progress.run(["sleep", "60"], timeout=0.2)


def test_a_program_that_is_missing_is_named() -> None:
    with pytest.raises(KvmctlError, match="no-such-program is not installed"):
        progress.run(["no-such-program"])


def test_what_dpkg_does_not_know_is_lacking() -> None:
    assert lacking(["dpkg", "no-such-package"]) == ["no-such-package"]


def test_only_what_killed_tests_left_is_left_over() -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    assert clean.is_left_over(f"kvmctl-test-guest-{ended.pid}-1")
    assert clean.is_left_over("kvmctl-test-guest")
    assert not clean.is_left_over(f"kvmctl-test-guest-{os.getpid()}-1")
    assert not clean.is_left_over(f"web-{ended.pid}-1")


def test_a_guests_report_is_read() -> None:
    line = "micro up=12.52 count=1221 cpus=2 mem_total_kb=9 mem_available_kb=7 mem_free_kb=5 steal=0 disks=- nics=-"
    text = f"micro-ready: Enter\r\n{line}\r\nmicro up=13.5 count=12"
    assert demo.reports(text) == [demo.Report(12.52, 1221, 7)]


def test_without_root_it_says_so_and_stops(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert __main__.main(["demo"]) == 6
    assert "as root" in capsys.readouterr().err


def test_it_needs_nothing_but_the_standard_library() -> None:
    check = "import kvmctl.bootstrap.__main__, sys; print(*{m.partition('.')[0] for m in sys.modules})"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {check}"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    imported = {name for name in done.stdout.split() if not name.startswith("_")}
    assert imported <= sys.stdlib_module_names | {"kvmctl"}
