import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from kvmctl.control import hostpolicy
from kvmctl.model.document import MAX_BYTES
from kvmctl.model.errors import FileError, UsageError
from kvmctl.model.fields import Context
from kvmctl.model.hostfile import FIELDS, load
from kvmctl.model.hostpolicy import CpuPolicy, HostPolicy, MemoryPolicy, capacity, cpu_reserve
from kvmctl.model.units import GIB
from tests.strategies import cores

pytestmark = pytest.mark.unit

HOST = Context(base_mhz=2000.0)
DEFAULT = HostPolicy(CpuPolicy(None, "manage", "manage", "weights", "correct"))


def read(text: str | bytes) -> HostPolicy:
    return load("host.yaml", text.encode() if isinstance(text, str) else text, HOST)


def problems(text: str | bytes) -> list[str]:
    with pytest.raises(FileError) as caught:
        read(text)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return [str(problem) for problem in caught.value.problems]


NOTHING = [
    "",
    "\ufeff",
    "\n\n",
    "# nothing\n",
    "---\n",
    "---\n...\n",
    "~",
    "null",
    "{}",
    "cpu: {}",
    "# cpu:\n#  reserve: 1\n",
]


@pytest.mark.parametrize("text", NOTHING)
def test_a_file_that_says_nothing_is_the_defaults(text: str) -> None:
    assert read(text) == DEFAULT == HostPolicy()


def test_every_key() -> None:
    text = "cpu: {reserve: 0.1, parent: leave, threads: leave, correct: weights, foreign: respect}"
    assert read(text) == HostPolicy(CpuPolicy(0.1, "leave", "leave", "weights", "respect"))
    text = "cpu:\n  reserve: 0.25\n  parent: manage\n  threads: manage\n  correct: off\n  foreign: correct\n"
    assert read(text) == HostPolicy(CpuPolicy(0.25, "manage", "manage", "off", "correct"))


def test_the_keys_are_those_of_the_policy() -> None:
    names = {"ksm-cpu": "ksm_cores"}
    for group, kind in (("cpu.", CpuPolicy), ("memory.", MemoryPolicy)):
        keys = [key.removeprefix(group) for key in FIELDS if key.startswith(group)]
        assert [names.get(key, key) for key in keys] == list(kind.__dataclass_fields__)


def test_every_key_of_memory() -> None:
    text = (
        "memory: {reserve: 2GiB, limit: 24GiB, overcommit: 200%, cover: 50%, sharing: leave, balloon: leave, "
        "swap: leave, ksm-cpu: 20%}"
    )
    expected = MemoryPolicy(2 * GIB, 24 * GIB, 2.0, 0.5, "leave", "leave", "leave", 0.2)
    assert read(text) == HostPolicy(memory=expected)


@pytest.mark.parametrize("text", ["1.5", "150", "99%", "10001%", "-150%", "1e3%", "٣٠٠%", "[150%]"])
def test_a_ceiling_that_is_none(text: str) -> None:
    assert problems(f"memory: {{overcommit: {text}}}")


@pytest.mark.parametrize("text", ["15MiB", "2", "1.5GiB", "-1GiB", "0MiB"])
def test_a_reserve_of_memory_that_is_none(text: str) -> None:
    assert problems(f"memory: {{reserve: {text}}}")


@pytest.mark.parametrize(
    ("text", "reserve"),
    [
        ("1", 1.0),
        ("0.5", 0.5),
        ("10%", 0.1),
        ("150%", 1.5),
        ("500MHz", 0.25),
        ("1GHz", 0.5),
        ("0.01", 0.01),
        ("'2'", 2),
    ],
)
def test_a_reserve_has_the_units_of_guest_files(text: str, reserve: float) -> None:
    assert read(f"cpu: {{reserve: {text}}}").cpu.reserve == reserve


def test_megahertz_need_a_known_clock() -> None:
    with pytest.raises(FileError, match="base clock is unknown"):
        load("host.yaml", b"cpu: {reserve: 500MHz}", Context())


@given(cores, st.sampled_from(["leave", "manage"]), st.sampled_from(["weights", "off"]))
def test_what_is_written_is_read(reserve: float, word: str, correct: str) -> None:
    text = yaml.safe_dump({"cpu": {"reserve": reserve, "parent": word, "threads": word, "correct": correct}})
    assert read(text) == HostPolicy(CpuPolicy(reserve, word, word, correct))  # type: ignore[arg-type]


BAD = [
    (b"\xff\xfec\0p\0", "host.yaml:1:1: byte 0xFF is not UTF-8"),
    (b"\x7fELF\x02\x01\x01\0\0", "host.yaml:1:1: the control character U+007F cannot stand in YAML"),
    (b"cpu: {}\n\0", "host.yaml:2:1: the control character U+0000"),
    (b"#" * (MAX_BYTES + 1), "host.yaml: the file is larger than 1MiB"),
    (b"#" * 50_000_000, "host.yaml: the file is larger than 1MiB"),
    (b"cpu: {", "this is not YAML"),
    (b"cpu:\n\treserve: 1", "host.yaml:2:1: this is not YAML: a tab"),
    (b"cpu: {}\n---\ncpu: {}", "host.yaml:2:1: a second document begins here: the file has to be one"),
    (b"cpu: *c", "host.yaml:1:6: the alias *c"),
    (b"[" * 100_000, "this is nested more than 20 deep"),
    (b"text", "host.yaml:1:1: a host's policy has to be a mapping such as `cpu: {reserve: 0.5}`, not a single value"),
    (b"- cpu", "host.yaml:1:1: a host's policy has to be a mapping such as `cpu: {reserve: 0.5}`, not a list"),
    (b"cpu:", "host.yaml:1:5: cpu has to be a mapping such as `cpu: {reserve: 0.5}`, not nothing"),
    (b"cpu: 2", "host.yaml:1:6: cpu has to be a mapping such as `cpu: {reserve: 0.5}`, not a single value"),
    (b"cpu: [reserve]", "host.yaml:1:6: cpu has to be a mapping"),
    (b"cpu: {}\ncpu: {}", "host.yaml:2:1: the key 'cpu' stood in line 1 already"),
    (b"cpus: {}", "host.yaml:1:1: unknown key 'cpus': did you mean cpu?"),
    (b"guests: []", "host.yaml:1:1: unknown key 'guests': known are cpu"),
    (b"reserve: 1", "host.yaml:1:1: unknown key 'reserve': did you mean cpu.reserve?"),
    (b"cpu:\n  reserv: 1", "host.yaml:2:3: unknown key 'cpu.reserv': did you mean reserve?"),
    (b"cpu: {x: 1}", "host.yaml:1:7: unknown key 'cpu.x': known are reserve, parent, threads, correct, foreign"),
    (b"cpu: {[1]: 2}", "host.yaml:1:7: a key has to be a plain word"),
    (b"cpu: {<<: 3}", "host.yaml:1:11: `<<` merges mappings"),
    (b"cpu: {reserve: !!float 1}", "host.yaml:1:16: the tag 'tag:yaml.org,2002:float' is not allowed"),
    (b"!!null", "host.yaml:1:1: the tag"),
    (b"cpu: {reserve: [1]}", "host.yaml:1:16: cpu.reserve has to be a single value, not a list"),
    (b"cpu: {reserve: {a: 1}}", "host.yaml:1:16: cpu.reserve has to be a single value, not a mapping"),
    (b"cpu: {reserve: }", "host.yaml:1:16: cpu.reserve has no value: write one, or leave the key out"),
    (b"cpu: {reserve: ''}", "host.yaml:1:16: cpu.reserve: '' is not an amount of CPU"),
    (b"cpu: {reserve: 0}", "cpu.reserve: '0' is too little for a host, which always has work of its own"),
    (b"cpu: {reserve: 0.004}", "cpu.reserve: '0.004' is too little for a host"),
    (b"cpu: {reserve: 0.0001}", "cpu.reserve: '0.0001' is too little CPU"),
    (b"cpu: {reserve: 0%}", "cpu.reserve: '0%' is too little for a host"),
    (b"cpu: {reserve: -1}", "cpu.reserve: '-1' is not an amount of CPU"),
    (b"cpu: {reserve: .inf}", "cpu.reserve: '.inf' is not an amount of CPU"),
    (b"cpu: {reserve: nan}", "cpu.reserve: 'nan' is not an amount of CPU"),
    (b"cpu: {reserve: 1e3}", "cpu.reserve: '1e3' is not an amount of CPU"),
    (b"cpu: {reserve: unlimited}", "cpu.reserve: 'unlimited' is not an amount of CPU"),
    (b"cpu: {reserve: 5000}", "cpu.reserve: '5000' is more CPU than any guest or host has: the most is 4096 cores"),
    ("cpu: {reserve: １}".encode(), "cpu.reserve: '１' is not an amount of CPU"),
    ("cpu: {reserve: 10％}".encode(), "cpu.reserve: '10％' is not an amount of CPU"),
    (b"cpu: {parent: true}", "cpu.parent: 'true' is not possible here: known are manage, leave"),
    (b"cpu: {threads: Leave}", "cpu.threads: 'Leave' is not possible here: did you mean leave?"),
    (b"cpu: {correct: weight}", "cpu.correct: 'weight' is not possible here: did you mean weights?"),
    (b"cpu: {correct: false}", "cpu.correct: 'false' is not possible here"),
    (b"cpu: {foreign: ignore}", "cpu.foreign: 'ignore' is not possible here: known are correct, respect"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "said"), BAD, ids=range(len(BAD)))
def test_nonsense_is_one_fault_with_its_place(data: bytes, said: str) -> None:
    (problem,) = problems(data)
    assert said in problem
    assert len(problem) < 600


def test_an_alias_bomb_is_refused_before_it_is_written_out() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    (problem,) = problems("\n".join(rows))
    assert "more than 100000 values" in problem


def test_every_fault_comes_out_at_once_in_order() -> None:
    text = "storage: {}\ncpu:\n  reserve: 0\n  parnt: leave\n  correct: [off]\nforeign: respect\n"
    assert [problem.split(": ")[0] for problem in problems(text)] == [
        f"host.yaml:{place}" for place in ("1:1", "3:12", "4:3", "5:12", "6:1")
    ]


def test_a_file_full_of_faults_lists_the_first_hundred() -> None:
    found = problems("\n".join(f"key{n}: 1" for n in range(5000)))
    assert len(found) == 101
    assert "more than the 100 faults" in found[-1]


def refuses_or_reads(data: bytes) -> None:
    try:
        policy = load("host.yaml", data, HOST)
    except FileError:
        return
    assert 0 < capacity(policy, 1) < 1
    assert 32 <= capacity(policy, 64) < 64


@given(st.binary(max_size=200))
@example(b"cpu: {reserve: 0.0}")
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    refuses_or_reads(data)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    refuses_or_reads(text.encode("utf-8", "surrogatepass"))


pieces = st.sampled_from(
    [
        *"{}[],:&*-?!|>'\"#%@`\n\t ",
        "cpu",
        "cpu: ",
        "reserve: ",
        "parent: ",
        "leave",
        "off",
        "1",
        "10%",
        "<<: ",
        "&a ",
        "*a",
    ]
)


@given(st.lists(pieces, max_size=40).map("".join))
def test_any_punctuation_is_read_or_refused(text: str) -> None:
    refuses_or_reads(text.encode())


keys = st.sampled_from(["cpu", "memory", "reserve", "parent", "threads", "correct", "foreign", "", "<<", "1"])
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["leave", "off"])
)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


@given(documents)
def test_any_document_is_read_or_refused(document: object) -> None:
    refuses_or_reads(yaml.safe_dump(document).encode())


@pytest.mark.parametrize(
    ("cpus", "stated", "reserve"),
    [(1, None, 0.25), (2, None, 0.25), (5, None, 0.25), (16, None, 0.32), (64, None, 1.28), (2, 0.5, 0.5),
     (2, 1.0, 1.0), (2, 8.0, 1.0), (1, 0.75, 0.5), (64, 0.01, 0.01)],
)  # fmt: skip
def test_what_the_host_keeps(cpus: int, stated: float | None, reserve: float) -> None:
    policy = HostPolicy(CpuPolicy(reserve=stated))
    assert cpu_reserve(policy, cpus) == pytest.approx(reserve)
    assert capacity(policy, cpus) == pytest.approx(cpus - reserve)


@given(st.integers(1, 4096), st.none() | cores)
def test_guests_get_at_least_half_and_never_all(cpus: int, stated: float | None) -> None:
    policy = HostPolicy(CpuPolicy(reserve=stated))
    assert 0.5 * cpus <= capacity(policy, cpus) < cpus
    assert capacity(policy, cpus) + cpu_reserve(policy, cpus) == pytest.approx(cpus)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's policy file is looked for."""
    path = tmp_path / "host.yaml"
    monkeypatch.setenv("KVMCTL_HOST_FILE", str(path))
    return path


def test_the_file_is_the_one_in_etc_unless_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", None):
        if value is None:
            monkeypatch.delenv("KVMCTL_HOST_FILE", raising=False)
        else:
            monkeypatch.setenv("KVMCTL_HOST_FILE", value)
        assert hostpolicy.find().path == Path("/etc/kvmctl/host.yaml")


def test_a_host_without_the_file_has_the_defaults(path: Path) -> None:
    assert hostpolicy.find() == hostpolicy.Found(DEFAULT, path, exists=False)
    assert hostpolicy.host_policy() == DEFAULT


def test_a_folder_that_is_none_holds_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("")
    monkeypatch.setenv("KVMCTL_HOST_FILE", str(path / "host.yaml"))
    assert not hostpolicy.find().exists


def test_the_file_is_read(path: Path) -> None:
    path.write_text("cpu: {reserve: 0.5}")
    assert hostpolicy.find() == hostpolicy.Found(HostPolicy(CpuPolicy(reserve=0.5)), path, exists=True)
    path.write_text("")
    assert hostpolicy.find() == hostpolicy.Found(DEFAULT, path, exists=True)


def test_a_fault_names_the_file_and_the_place(path: Path) -> None:
    path.write_text("cpu: {reserve: 0}")
    with pytest.raises(FileError) as caught:
        hostpolicy.host_policy()
    assert caught.value.message.startswith(f"{path}:1:16: cpu.reserve: ")


def test_a_huge_file_is_not_read_whole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # more than any memory; takes no room
    with pytest.raises(FileError, match="larger than 1MiB"):
        hostpolicy.host_policy()


def test_what_is_no_file_is_a_usage_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(path)
    for named in (path, path.parent):
        monkeypatch.setenv("KVMCTL_HOST_FILE", str(named))
        with pytest.raises(UsageError, match=f"cannot read the host's policy {named}: it is not a file") as caught:
            hostpolicy.host_policy()
        assert caught.value.hint == f"look at it: ls -ld {named}"


@pytest.mark.parametrize("make", ["loop", "long name"])
def test_a_path_that_cannot_be_opened_is_a_usage_error(path: Path, make: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if make == "loop":
        path.symlink_to(path)
    else:
        monkeypatch.setenv("KVMCTL_HOST_FILE", f"/{'x' * 300}")
    with pytest.raises(UsageError, match="cannot read the host's policy"):
        hostpolicy.host_policy()


def output_of(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


_FORBIDDEN = """
import os, pwd, sys
from kvmctl.control.hostpolicy import host_policy
from kvmctl.model.errors import UsageError
os.setuid(pwd.getpwnam("nobody").pw_uid)
try:
    host_policy()
except UsageError as error:
    print(error.message)
"""


def test_a_file_that_may_not_be_read_is_no_host_without_one(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    path.write_text("cpu: {reserve: 0.5}")
    path.chmod(0o600)
    assert output_of(_FORBIDDEN) == f"cannot read the host's policy {path}: Permission denied\n"


@pytest.mark.parametrize("exists", [False, True])
def test_only_a_file_that_exists_is_worth_loading_yaml(path: Path, exists: bool) -> None:
    if exists:
        path.write_text("")
    code = "import sys; from kvmctl.control.hostpolicy import host_policy; host_policy(); print('yaml' in sys.modules)"
    assert output_of(code) == f"{exists}\n"
