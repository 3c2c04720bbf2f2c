"""Several hosts at once, and what migrate and doctor say before anything moves, against the test driver."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from tests.conftest import Kvmctl

pytestmark = pytest.mark.testdriver

HERE = "test:///default"


@pytest.fixture
def hosts(tmp_path: Path) -> dict[str, str]:
    """An environment with two hosts that answer and one that is dead."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = tmp_path / "hosts.yaml"
    file.write_text(
        f"hosts:\n- {{name: one, uri: '{HERE}'}}\n- {{name: dead, uri: 'qemu+tcp://127.0.0.1:{port}/system'}}\n"
        f"- {{name: two, uri: '{HERE}'}}\n"
    )
    return {"KVMCTL_HOSTS_FILE": str(file)}


def test_list_all_hosts(kvmctl: Kvmctl, hosts: dict[str, str]) -> None:
    rows = kvmctl("list", "--all-hosts", "-o", "json", code=8, env=hosts).json()
    assert [(row["host"], row["name"], row["state"]) for row in rows] == [
        ("one", "test", "running"), ("dead", None, "unreachable"), ("two", "test", "running"),
    ]  # fmt: skip
    assert "onnection refused" in rows[1]["error"]
    table = kvmctl("list", "--all-hosts", code=8, env=hosts)
    assert "dead" in table.out
    assert "onnection refused" in table.err
    assert kvmctl("list", "--all-hosts", "-o", "name", code=8, env=hosts).out == "test\ntest\n"


def test_several_connections(kvmctl: Kvmctl, hosts: dict[str, str]) -> None:
    """As --all-hosts, over those that are named; what acts on one host refuses two."""
    other = "test:///default?other"
    rows = kvmctl("list", "-c", "two", "-c", other, "-o", "json", env=hosts).json()
    assert [(row["host"], row["uri"], row["name"]) for row in rows] == [("two", HERE, "test"), (other, other, "test")]
    found = kvmctl("-c", "dead", "-c", "one", "host", "show", "-o", "json", code=8, env=hosts).json()
    assert [(one["host"], one["state"]) for one in found] == [("dead", "unreachable"), ("one", "up")]
    assert "NAME" in kvmctl("-c", "one", "list", env=hosts).out
    assert kvmctl("-c", "one", "-c", "one", "list", "-o", "json", env=hosts).json()[0]["name"] == "test"
    assert kvmctl("-c", "dead", "list", "-c", "one", "-o", "name", env=hosts).out == "test\n"
    assert "say which hosts" in kvmctl("-c", "one", "list", "--all-hosts", code=2, env=hosts).err


@pytest.mark.parametrize(
    "words",
    [
        "show test", "stop test", "delete test --yes", "apply -f -", "cpu", "memory", "top --once", "events",
        "host doctor", "host metrics", "rebalance --dry-run", "migrate test one", "doctor test --on one",
        "backup test /tmp", "export test", "snapshot list test", "clone test other",
    ],
)  # fmt: skip
def test_what_acts_on_one_host_refuses_two(kvmctl: Kvmctl, hosts: dict[str, str], words: str) -> None:
    several = ("-c", "one", "-c", "dead")
    for line in ((*several, *words.split()), (*words.split(), *several)):
        ran = kvmctl(*line, code=2, env=hosts, stdin="guests: []\n")
        assert "-c names 2" in ran.err
        assert ran.out == ""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("kvmctl host baseline ", ["one", "dead", "two"]),
        ("kvmctl doctor test --on t", ["two"]),
        ("kvmctl -c d", ["dead"]),
    ],
)
def test_hosts_are_completed(kvmctl: Kvmctl, hosts: dict[str, str], words: str, offered: list[str]) -> None:
    env = {"_KVMCTL_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    assert kvmctl(env=hosts | env).out.splitlines() == [f"plain,{name}" for name in offered]


def test_show_all_hosts(kvmctl: Kvmctl, hosts: dict[str, str]) -> None:
    found = kvmctl("host", "show", "--all-hosts", "-o", "json", code=8, env=hosts).json()
    assert [one["state"] for one in found] == ["up", "unreachable", "up"]
    assert found[0]["guests"]["running"] == 1
    lines = kvmctl("host", "show", "--all-hosts", code=8, env=hosts).out.splitlines()
    assert [line.split()[0] for line in lines] == ["HOST", "one", "dead", "two"]


def test_a_host_that_hangs_is_a_line(kvmctl: Kvmctl, tmp_path: Path) -> None:
    """It takes the connection, and never says anything."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        file = tmp_path / "hosts.yaml"
        uri = f"qemu+tcp://127.0.0.1:{silent.getsockname()[1]}/system"
        file.write_text(f"hosts: [{{name: one, uri: '{HERE}'}}, {{name: silent, uri: '{uri}'}}]\n")
        ran = kvmctl("list", "--all-hosts", "-o", "json", code=8, env={"KVMCTL_HOSTS_FILE": str(file)})
    assert [row["state"] for row in ran.json()] == ["running", "unreachable"]
    assert "no answer within" in ran.err


def test_no_hosts_and_wrong_ones(kvmctl: Kvmctl, tmp_path: Path) -> None:
    file = tmp_path / "hosts.yaml"
    env = {"KVMCTL_HOSTS_FILE": str(file)}
    assert "names no hosts" in kvmctl("list", "--all-hosts", code=2, env=env).err
    file.write_text("hosts: [{name: one}]")
    assert "hosts.yaml:1:" in kvmctl("list", "--all-hosts", code=2, env=env).err
    file.write_bytes(b"hosts: [{name: \xff}]")
    assert "byte 0xFF is not UTF-8" in kvmctl("list", "--all-hosts", code=2, env=env).err
    file.write_text("hosts: [{name: one, uri: 'qemu+tcp://127.0.0.1:1/system'}]")
    assert "none of 1 hosts" in kvmctl("list", "--all-hosts", code=6, env=env).err


def test_a_path_that_is_no_hosts_file_is_a_usage_error(kvmctl: Kvmctl, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        ran = kvmctl("list", "--all-hosts", code=2, env={"KVMCTL_HOSTS_FILE": str(path)})
        assert f"{path}: it is not a file\n  look at it: ls -ld {path}" in ran.err
    assert "larger than 1MiB" in kvmctl("list", "--all-hosts", code=2, env={"KVMCTL_HOSTS_FILE": "/dev/zero"}).err


def test_migrate_names_all_obstacles(kvmctl: Kvmctl, hosts: dict[str, str]) -> None:
    for more in ((), ("--check",)):
        ran = kvmctl("-c", HERE, "migrate", "test", "one", "-o", "json", *more, code=5, env=hosts)
        obstacles = {row["what"] for row in ran.json() if row["severity"] == "obstacle"}
        assert {"connection", "uuid", "disk vda"} <= obstacles
        assert all(row["next"] for row in ran.json() if row["severity"] == "obstacle")
    assert "nothing was moved" in ran.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("migrate", "nobody", "one"), 3, "nobody"),
        (("migrate", "test", "nowhere"), 3, "no host is named"),
        (("migrate", "one"), 2, "no guest named"),
        (("migrate", "test"), 2, "no guest named: 'test' alone is the host"),
        (("migrate", "test", "one", "--jobs", "x"), 2, "'x' is not a whole number"),
        (("migrate",), 2, "Missing argument"),
        (("migrate", "test", "one", "--bandwidth", "100"), 2, "bandwidth"),
        (("migrate", "test", "one", "--bandwidth", "1KiB"), 2, "1MiB is the least"),
        (("migrate", "test", "one", "--max-downtime", "0"), 2, "downtime"),
        (("migrate", "test", "one", "--parallel", "2"), 2, "--connections"),
        (("migrate", "test", "one", "--overwrite"), 2, "--copy-storage"),
        (("migrate", "test", "one", "--connections", "2", "--post-copy"), 2, "exclude each other"),
        (("doctor", "test"), 2, "--on"),
        (("doctor", "nobody", "--on", "one"), 3, "nobody"),
        (("doctor", "test", "--on", "one"), 5, "not every guest"),
        (("host", "baseline"), 2, "Missing argument"),
        (("host", "baseline", "nowhere"), 3, "no host is named"),
        (("host", "baseline", "one", "dead"), 6, "dead: cannot connect"),
    ],
)
def test_bad_input(kvmctl: Kvmctl, hosts: dict[str, str], words: tuple[str, ...], code: int, said: str) -> None:
    ran = kvmctl("-c", HERE, *words, code=code, env=hosts)
    assert said.lower() in ran.err.lower()


def test_doctor_on_another_host(kvmctl: Kvmctl, hosts: dict[str, str]) -> None:
    rows = json.loads(kvmctl("-c", HERE, "doctor", "test", "--on", "two", "-o", "json", code=5, env=hosts).out)
    assert {row["what"] for row in rows if row["severity"] == "obstacle"} == {"disk vda"}
