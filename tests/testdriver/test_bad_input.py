"""Bad input gets one clear error with a next step, the right exit code, and nothing is lost."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmctl.control import delete, lifecycle, select
from kvmctl.hypervisor.connection import open_hypervisor
from kvmctl.model.errors import NotFoundError
from tests.conftest import Kvmctl, Ran

pytestmark = pytest.mark.testdriver
TEST = ("-c", "test:///default")
Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write one guest file."""

    def make(content: str | bytes) -> Path:
        path = tmp_path / "guests.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def clear(ran: Ran) -> Ran:
    """The error is one, has a next step, and says nothing twice."""
    lines = ran.err.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1, ran.err
    assert lines[-1].startswith("  "), f"no next step: {ran.err}"
    assert len(set(lines)) == len(lines), ran.err
    assert "internal" not in ran.err
    assert ran.out == ""
    return ran


def refused(kvmctl: Kvmctl, write: Write, guest: str, *words: str) -> str:
    """Apply a file with one guest; its error, after a look whether the hypervisor is as before."""
    ran = clear(kvmctl(*TEST, "apply", "-f", write(f"guests: [{{name: g, {guest}}}]"), code=2))
    assert re.match(r"error: /.*/guests\.yaml:1:\d+: ", ran.err), ran.err
    for word in words:
        assert word in ran.err
    return ran.err


# Values


@pytest.mark.parametrize(
    "size",
    ["1.5G", "4Gi", "-1", "0", "4Ｇ", "1e3M", "99999999999G", "1", "''", "~", "[1GiB]", "{a: b}", "0x1M"],
)
@pytest.mark.parametrize("key", ["size", "reservation"])
def test_sizes(kvmctl: Kvmctl, write: Write, size: str, key: str) -> None:
    refused(kvmctl, write, f"memory: {{{key}: {size}}}", f"guest g: memory.{key}")


@pytest.mark.parametrize("shares", ["0", "-1", "1.5", "1000001", "much", "'1 000'"])
def test_shares(kvmctl: Kvmctl, write: Write, shares: str) -> None:
    refused(kvmctl, write, f"cpu: {{shares: {shares}}}", "cpu.shares", "low, normal or high")


@pytest.mark.parametrize("shares", ["1", "12000", "300000"])
def test_shares_are_relative(kvmctl: Kvmctl, write: Write, shares: str) -> None:
    kvmctl(*TEST, "apply", "-f", write(f"guests: [{{name: g, cpu: {{shares: {shares}}}}}]"))


@pytest.mark.parametrize("limit", ["0", "0.009", "0.5%", "-1", "1e3", "99999", "nan", "inf"])
def test_limits(kvmctl: Kvmctl, write: Write, limit: str) -> None:
    refused(kvmctl, write, f"cpu: {{limit: {limit}}}", "cpu.limit")


@pytest.mark.parametrize(
    ("guest", "words"),
    [
        ("cpu: {count: 2, reservation: 3}", ("reservation of 3 cores", "2 vCPUs")),
        ("cpu: {count: 2, limit: 1, reservation: 1.5}", ("1.5 cores", "above the limit of 1")),
        ("cpu: {count: 2, max: 1}", ("cpu.max",)),
        ("memory: {size: 2GiB, max: 1GiB}", ("memory.max", "1GiB", "2GiB")),
        ("memory: {size: 1GiB, reservation: 2GiB}", ("memory.reservation",)),
        ("cpu: {cuont: 2}", ("'cpu.cuont'", "count")),
        ("memroy: {size: 1GiB}", ("memroy", "memory")),
        ("description: \"\\e[31m\"", ("U+001B",)),
        ("labels: {'</a>': x}", ("</a>",)),
        ("nics: [{network: n, mac: '52:54:00:00:00:01'}, {network: n, mac: '52:54:00:00:00:01'}]", ("nics.1.mac",)),
        ("disks: [{path: relative}]", ("'relative'", "absolute")),
        ("disks: [{volume: ../../etc/passwd, size: 1GiB}]", ("../../etc/passwd",)),
    ],
)  # fmt: skip
def test_contradictions_and_unknown_keys(kvmctl: Kvmctl, write: Write, guest: str, words: tuple[str, ...]) -> None:
    refused(kvmctl, write, guest, *words)


@pytest.mark.parametrize(
    "name", ["a/b", "..", "-rf", "' '", "1", "'a<b>&\"c'''", "\"a\\nb\"", "x" * 300, "''", "~", "ünï", "'*'"]
)  # fmt: skip
def test_names_of_new_guests(kvmctl: Kvmctl, write: Write, name: str) -> None:
    ran = clear(kvmctl(*TEST, "apply", "-f", write(f"guests: [{{name: {name}}}]"), code=2))
    assert ":1:17: guest 1: name" in ran.err


def test_every_fault_is_told_at_once(kvmctl: Kvmctl, write: Write) -> None:
    text = "guests:\n- {name: a, cpu: {count: x}, memory: {size: 1}}\n- {name: a, cup: {}}\n"
    ran = clear(kvmctl(*TEST, "apply", "-f", write(text), code=2))
    assert [line.split("guests.yaml:")[1][:4] for line in ran.err.splitlines()[:-1]] == ["2:26", "2:45", "3:10", "3:13"]


MARKUP = "x</description><devices/> & ]]> <!-- \u2028"


def test_markup_is_only_text(kvmctl: Kvmctl, write: Write) -> None:
    kvmctl(*TEST, "set", "test", f"description={MARKUP}")
    guest = f"guests:\n- name: h\n  description: '{MARKUP}'\n  labels: {{role: '\"><x/>'}}\n"
    ran = kvmctl(*TEST, "apply", "-f", write(guest), "-o", "json")
    assert [row["result"] for row in ran.json()] == ["changed", "changed"]


# Files


_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
_FILES = {
    "empty": (b"", "is empty"),
    "blank": (b"\n \n# nothing\n", "is empty"),
    "binary": (bytes(range(255, -1, -1)) * 20, "0xFF"),
    "not UTF-8": (b"guests: [{name: \xff}]", "0xFF"),
    "50 MB": (b"#" * 50_000_000, "larger than 1MiB"),
    "deep": (b"[" * 100_000, "nested more than 20 deep"),
    "alias bomb": (_BOMB.encode(), "more than 100000 values"),
    "tab": (b"guests:\n- name: a\n\tcpu: {}\n", "a tab"),
    "cut off": (b"guests: [{name: a", "not YAML"),
    "two documents": (b"guests: []\n---\nguests: []\n", "second document"),
    "object": (b"guests: !!python/object/apply:os.system [id]\n", "tag"),
    "list": (b"[a, b]", "mapping"),
    "text": (b"guests", "mapping"),
    "no guests": (b"project: a\n", "`guests:`"),
    "guests is a mapping": (b"guests: {name: a}\n", "list"),
    "duplicate key": (b"guests: []\nguests: []\n", "line 1"),
    "recursive alias": (b"guests: &a [*a]\n", "*a"),
    "1001 guests": (b"guests:\n" + b"".join(b"- name: g%d\n" % n for n in range(1001)), "at most 1000"),
}


@pytest.mark.parametrize("kind", _FILES)
def test_files_that_are_none(kvmctl: Kvmctl, write: Write, kind: str) -> None:
    content, said = _FILES[kind]
    assert said in clear(kvmctl(*TEST, "apply", "-f", write(content), code=2)).err


def test_files_that_cannot_be_read(kvmctl: Kvmctl, tmp_path: Path) -> None:
    assert "Is a directory" in clear(kvmctl(*TEST, "apply", "-f", tmp_path, code=2)).err
    assert "/none.yaml" in clear(kvmctl(*TEST, "apply", "-f", tmp_path / "none.yaml", code=3)).err
    assert "''" in clear(kvmctl(*TEST, "apply", "-f", "", code=2)).err
    assert "File name too long" in clear(kvmctl(*TEST, "diff", "-f", "x" * 5000, code=2)).err
    assert "empty" in clear(kvmctl(*TEST, "apply", "-f", "-", code=2)).err
    clear(kvmctl(*TEST, "apply", code=2))


def test_a_file_whose_reading_fails(kvmctl: Kvmctl) -> None:
    assert "/proc/self/mem" in clear(kvmctl(*TEST, "apply", "-f", "/proc/self/mem", code=2)).err


def test_files_that_contradict_each_other(kvmctl: Kvmctl, tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    nic = "nics: [{network: default, mac: '52:54:00:00:00:01'}]"
    one.write_text(f"project: a\nguests:\n- {{name: x, {nic}}}\n")
    two.write_text(f"project: b\nguests:\n- name: x\n- {{name: y, {nic}}}\n")
    said = clear(kvmctl(*TEST, "apply", "-f", one, "-f", two, code=2)).err
    assert f"{two}:1:10: the project b is not a, which {one} names" in said
    assert f"{two}:3:9: a guest named x is declared already, at {one}:3" in said
    assert f"{two}:4:" in said
    assert f"that of guest x ({one}:3)" in said


def test_options_that_do_not_go_together(kvmctl: Kvmctl, write: Write) -> None:
    file = write("guests: []")
    clear(kvmctl(*TEST, "apply", "-f", file, "--prune", code=2))
    clear(kvmctl(*TEST, "apply", "-f", file, "--disks", code=2))


# The command line

_WRONG = {
    "show": 2, "show a b": 2, "show -rf": 2, "set test": 2, "set test cpu.shares": 2, "set test cpu.shares=0": 2,
    "set test cpu.shares=1 cpu.shares=2": 2, "set test cup.shares=1": 2, "set test name=x": 2, "set test =": 2,
    "set test disks.0.path=/x": 2, "set test memory.max=1GiB": 2, "set nobody cpu.shares=1": 3, "show nobody": 3,
    "show 1": 3, "spec nobody": 3, "xml nobody": 3, "start": 2, "start nobody": 3, "start test nobody": 3,
    "stop no*": 3, "stop [": 3, "delete --yes": 2, "delete --yes no*": 3, "delete test": 4, "delete test --force": 5,
    "start -l": 2, "start -l x": 2, "start -l x=y": 3, "list -l x": 2, "list --state on": 2, "list --stat running": 2,
    "stop test --timeout nan": 2, "stop test --timeout -1": 2, "stop test --timeout 1d": 2, "console test": 2,
    "cpu --sample x": 2, "lst": 2, "host sow": 2, "ksm enable --pages-to-scan 0": 2, "completion tcsh": 2,
    "-o xml list": 2, "--bogus": 2, "list --bogus": 2, "-c": 2, "resume test -l": 2,
}  # fmt: skip


@pytest.mark.parametrize("line", _WRONG)
def test_command_lines(kvmctl: Kvmctl, line: str) -> None:
    clear(kvmctl(*TEST, *line.split(), code=_WRONG[line]))


@pytest.mark.parametrize("name", ["", "[", "\x1b[31m", "é" * 300, os.fsdecode(b"\xff\xfe"), "\n"])
@pytest.mark.parametrize("verb", ["show", "start", "stop", "pause", "autostart", "set", "spec", "xml", "delete"])
def test_names_that_nobody_has(kvmctl: Kvmctl, verb: str, name: str) -> None:
    more = {"set": ["cpu.shares=1"], "delete": ["--yes"]}.get(verb, [])
    said = clear(kvmctl(*TEST, verb, name, *more, code=3)).err
    assert "\x1b" not in said


@pytest.mark.parametrize("value", ["", "\x1b", os.fsdecode(b"\xff"), "9" * 5000, "½"])
def test_values_that_are_none(kvmctl: Kvmctl, value: str) -> None:
    for key in ("cpu.shares", "memory.size", "cpu.limit"):
        clear(kvmctl(*TEST, "set", "test", f"{key}={value}", code=2))


# Connections

_URIS = {
    "": 2, "qemu://": 6, "foo:///": 6, "nonsense": 6, "qemu:///nowhere": 6, "qemu+foo:///system": 2, "qemu://[x": 2,
    "test:///does/not/exist.xml": 6, "qemu:///system?socket=/does/not/exist": 6, "qemu+tcp://127.0.0.1:1/system": 6,
    "qemu+ssh://host.invalid/system": 6, os.fsdecode(b"qemu:///\xff"): 2, "qemu:///\x1b": 2, "x" * 5000: 6,
}  # fmt: skip


@pytest.mark.parametrize("uri", _URIS, ids=lambda uri: ascii(uri)[:50])
def test_connections(kvmctl: Kvmctl, uri: str) -> None:
    ran = kvmctl("-c", uri, "list", code=_URIS[uri])
    assert "error: " in ran.err
    assert ran.err.splitlines()[-1].startswith("  ")
    if uri:  # where there is none, the environment may speak
        kvmctl("list", env={"LIBVIRT_DEFAULT_URI": uri}, code=_URIS[uri])


def test_a_name_that_is_no_host_is_not_taken_for_a_daemon_that_refuses(kvmctl: Kvmctl) -> None:
    assert "no name of hosts.yaml" in clear(kvmctl("-c", "node2", "list", code=6)).err
    found = {one["name"]: one for one in kvmctl("-c", "node2", "host", "doctor", "-o", "json", code=1).json()}
    assert found["connection"]["next"] == "name it in hosts.yaml, or write a URI as in -c qemu+ssh://HOST/system"


def test_an_unset_variable_does_not_mean_this_machine(kvmctl: Kvmctl) -> None:
    clear(
        kvmctl("-c", "", "delete", "test", "--yes", "--force", code=2, env={"LIBVIRT_DEFAULT_URI": "test:///default"})
    )


def test_debug_shows_the_cause(kvmctl: Kvmctl) -> None:
    ran = kvmctl("-c", "foo:///", "list", "--debug", code=6)
    assert "libvirt.libvirtError" in ran.err
    assert "Traceback" in ran.err
    assert ran.out == ""


# Somebody else


@pytest.mark.parametrize("verb", ["start", "stop", "pause", "resume", "set_autostart", "remove"])
def test_a_guest_deleted_meanwhile(verb: str, foreign: Callable[..., str]) -> None:
    acts: dict[str, Callable[[select.Guest], lifecycle.Deed]] = {
        "start": lifecycle.start,
        "stop": lambda guest: lifecycle.stop(guest, 1, True),
        "pause": lifecycle.pause,
        "resume": lifecycle.resume,
        "set_autostart": lambda guest: lifecycle.set_autostart(guest, True),
        "remove": lambda guest: delete.remove(hypervisor, delete.Removal(guest, ()), True),
    }
    with open_hypervisor(foreign("g")) as hypervisor:
        guests = select.chosen(hypervisor, ["g"], ())
        guests[0][1].destroy()
        guests[0][1].undefine()
        (deed,) = lifecycle.for_each(guests, acts[verb])
        assert deed.result == "not applied"
        assert isinstance(deed.error, NotFoundError)
        assert deed.error.hint
