import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmctl.host.accelerator import Verdict, remember, remembered

pytestmark = pytest.mark.unit

EMULATED = Verdict("tcg", "Linux hung under KVM", proved=True)


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state" / "accelerator.json"


@pytest.mark.parametrize("verdict", [EMULATED, Verdict("kvm", "booted in 0.7 s", proved=True)])
def test_a_proved_verdict_is_remembered(verdict: Verdict) -> None:
    remember(verdict)
    assert remembered() == verdict


def test_nothing_is_remembered_at_first(memory: Path) -> None:
    assert remembered() is None
    assert not memory.exists()


def test_what_is_not_proved_is_not_remembered(memory: Path) -> None:
    remember(Verdict("kvm", "it opens", proved=False))
    assert not memory.exists()


@pytest.mark.parametrize("what", ["kernel", "qemu", "cpu", "kvm"])
def test_a_verdict_ends_with_what_it_was_proved_for(memory: Path, what: str) -> None:
    remember(EMULATED)
    record = json.loads(memory.read_text())
    record["host"][what] = "another"
    memory.write_text(json.dumps(record))
    assert remembered() is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=60), st.sampled_from([b"null", b"[]", b"{}", b'{"host": 1}', b'"kvm"', b"1"])))
def test_a_damaged_memory_is_no_memory(memory: Path, content: bytes) -> None:
    memory.parent.mkdir(exist_ok=True)
    memory.write_bytes(content)
    assert remembered() is None


def test_the_memory_is_private(memory: Path) -> None:
    remember(EMULATED)
    assert memory.stat().st_mode & 0o777 == 0o600
    assert memory.parent.stat().st_mode & 0o777 == 0o700
