"""The file that names hosts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.control import hosts
from kvmctl.model.errors import FileError, NotFoundError, UsageError
from kvmctl.model.hostsfile import NamedHost, load

pytestmark = pytest.mark.unit

TEXT = b"""
hosts:
- {name: node1, uri: qemu+ssh://node1/system}
- name: node2
  uri: qemu+tls://node2/system
  policy: /etc/kvmctl/node2.yaml
"""


def test_two_hosts() -> None:
    assert load("hosts.yaml", TEXT) == (
        NamedHost("node1", "qemu+ssh://node1/system"),
        NamedHost("node2", "qemu+tls://node2/system", "/etc/kvmctl/node2.yaml"),
    )
    assert load("hosts.yaml", b"") == ()
    assert load("hosts.yaml", b"hosts: []") == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("host: []", "did you mean hosts?"),
        ("hosts: {}", "has to be a list"),
        ("hosts: [node1]", "has to be a mapping"),
        ("hosts: [{name: node1}]", "needs a uri"),
        ("hosts: [{uri: 'qemu:///system'}]", "needs a name"),
        ("hosts: [{name: node1, uri: node1}]", "is not a connection URI"),
        ("hosts: [{name: '1', uri: 'qemu:///system'}]", "all digits"),
        ("hosts: [{name: a, uri: 'qemu:///system', policy: x.yaml}]", "not an absolute path"),
        ("hosts: [{name: a, uri: 'qemu:///system'}, {name: a, uri: 'xen:///system'}]", "is there already"),
        ("hosts: [{name: a, uri: 'qemu:///system', polcy: /x}]", "did you mean policy?"),
    ],
)
def test_faults(text: str, said: str) -> None:
    with pytest.raises(FileError, match=r"hosts\.yaml:1:") as caught:
        load("hosts.yaml", text.encode())
    assert said in caught.value.message


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_anything_is_read_or_refused(data: bytes) -> None:
    try:
        found = load("hosts.yaml", data)
    except FileError:
        return
    assert all(isinstance(host, NamedHost) for host in found)


def test_hosts_by_name_and_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hosts.yaml"
    monkeypatch.setenv("KVMCTL_HOSTS_FILE", str(file))
    assert hosts.named() == ()
    with pytest.raises(UsageError, match="names no hosts"):
        hosts.all_hosts()
    with pytest.raises(NotFoundError, match="names none"):
        hosts.resolve("node1")
    file.write_bytes(TEXT)
    assert hosts.resolve("node1").uri == "qemu+ssh://node1/system"
    assert hosts.resolve("qemu+tls://node2/system").policy == "/etc/kvmctl/node2.yaml"
    assert hosts.resolve("qemu:///system") == NamedHost("qemu:///system", "qemu:///system")
    with pytest.raises(NotFoundError, match="did you mean node2"):
        hosts.resolve("node22")
