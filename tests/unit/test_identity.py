from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.control import identity as control
from kvmctl.control import seed
from kvmctl.model.errors import UsageError
from kvmctl.model.spec import CloudInitSpec
from kvmctl.xml import identity
from kvmctl.xml.identity import Identity

pytestmark = pytest.mark.unit

XML = """\
<!-- kept -->
<domain type='kvm' id='7'>
  <name>web1</name>
  <uuid>5f0c6aa0-2c11-4f0f-8f0a-111111111111</uuid>
  <genid>5f0c6aa0-2c11-4f0f-8f0a-222222222222</genid>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/web1_VARS.fd</nvram>
  </os>
  <sysinfo type='smbios'><system><entry name='uuid'>5f0c6aa0-2c11-4f0f-8f0a-111111111111</entry></system></sysinfo>
  <devices>
    <interface type='network'><mac address='52:54:00:AA:bb:01'/>
      <source network='default'/><target dev='vnet3'/></interface>
    <interface type='user'/>
    <interface type='bridge'><mac address='52:54:00:aa:bb:02'/>
      <source bridge='br0'/><target dev='web1-lan'/></interface>
    <channel type='unix'>
      <source mode='bind' path='/run/libvirt/qemu/channel/target/domain-7-web1/org.qemu.guest_agent.0'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
  </devices>
</domain>
"""
NEW = Identity("web2", "aaaaaaaa-0000-4000-8000-000000000001", ("52:54:00:00:00:01",) * 3, "g", "/nv/web2_VARS.fd")


def test_reads_what_is_the_guests_alone() -> None:
    assert identity.read(XML) == Identity(
        "web1",
        "5f0c6aa0-2c11-4f0f-8f0a-111111111111",
        ("52:54:00:aa:bb:01", "", "52:54:00:aa:bb:02"),
        "5f0c6aa0-2c11-4f0f-8f0a-222222222222",
        "/var/lib/libvirt/qemu/nvram/web1_VARS.fd",
    )


def test_another_identity_and_nothing_else() -> None:
    changed = identity.renew(XML, NEW)
    assert identity.read(changed) == NEW
    assert "11111111" not in changed
    assert "22222222" not in changed
    assert changed.startswith("<!-- kept -->")
    assert "<target dev='web1-lan'/>" in changed.replace('"', "'")
    assert "vnet3" not in changed
    assert "domain-7" not in changed
    assert "id='7'" not in changed.replace('"', "'")
    assert "/usr/share/OVMF/OVMF_VARS_4M.fd" in changed
    assert identity.renew(changed, NEW) == changed


def test_what_is_not_given_is_left_to_libvirt() -> None:
    changed = identity.renew(XML, Identity("web2", NEW.uuid))
    assert identity.read(changed) == Identity("web2", NEW.uuid, ("", "", ""), "", None)
    assert "<mac" not in changed


def test_nvram_lies_beside_the_old_one() -> None:
    assert identity.nvram_path("/a/b/web1_VARS.fd", "web2") == "/a/b/web2_VARS.fd"
    assert identity.nvram_path(None, "web2") is None


@given(st.binary(min_size=3, max_size=3))
def test_a_mac_is_a_guests(tail: bytes) -> None:
    assert re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", identity.mac(tail))


def test_clashes_are_named_one_by_one() -> None:
    own = identity.read(XML)
    assert control.clashes(own, {}) == []
    assert control.clashes(NEW, {"web1": own}) == []
    (name, mac) = control.clashes(own, {"web1": own})
    assert "'web1'" in name
    assert "52:54:00:aa:bb:01, 52:54:00:aa:bb:02" in mac
    other = Identity("db", own.uuid)
    assert control.clashes(own, {"db": other}) == [f"guest 'db' has the UUID {own.uuid} already"]


def made(**more: str) -> bytes:
    return seed.image(seed.compose("web1", CloudInitSpec(user="ann", **more)))  # type: ignore[arg-type]


def test_a_renewed_seed_is_another_instance() -> None:
    before, after = dict(seed.read_image(made())), dict(seed.read_image(seed.renewed(made(), "web1", "web2", "abc")))
    assert yaml.safe_load(after["meta-data"]) == {"instance-id": "web2-abc", "local-hostname": "web2"}
    assert after["user-data"].startswith(b"#cloud-config\n")
    old, new = yaml.safe_load(before["user-data"]), yaml.safe_load(after["user-data"])
    assert (old["hostname"], new["hostname"]) == ("web1", "web2")
    assert old | {"hostname": ""} == new | {"hostname": ""}


def test_a_host_name_of_its_own_stays() -> None:
    after = dict(seed.read_image(seed.renewed(made(hostname="front"), "web1", "web2", "abc")))
    assert yaml.safe_load(after["meta-data"])["local-hostname"] == "front"
    assert yaml.safe_load(after["user-data"])["hostname"] == "front"


def renewed(user: bytes, meta: bytes = b"{instance-id: i, local-hostname: web1}") -> dict[str, bytes]:
    content = seed.image(seed.Seed((("user-data", user), ("meta-data", meta)), ""))
    return dict(seed.read_image(seed.renewed(content, "web1", "web2", "abc")))


_ODD = {
    "script": b"#!/bin/sh\necho: [hello\n",
    "multipart": b"Content-Type: multipart/mixed; boundary=X\nMIME-Version: 1.0\n\n--X\nhostname: web1\n--X--\n",
    "no date": b"#cloud-config\nhostname: web1\nx: 2020-13-45\n",
    "deep": b"#cloud-config\nhostname: web1\nx: " + b"[" * 50000,
    "no number": b"#cloud-config\nhostname: web1\nx: !!int ''\n",
    "no text": b"#cloud-config\nhostname: web1\nx: \xff\n",
    "template": b"## template: jinja\n#cloud-config\nhostname: web1\n#{% if a %}\nx: 1\n#{% endif %}\n",
    "no cloud-config": b"hostname: web1\n",
    "head": b"## template: jinja\n",
    "empty": b"",
}


@pytest.mark.parametrize("user", _ODD.values(), ids=_ODD)
def test_user_data_that_is_no_plain_cloud_config_stays(user: bytes) -> None:
    after = renewed(user)
    assert after["user-data"] == user
    assert yaml.safe_load(after["meta-data"]) == {"instance-id": "web2-abc", "local-hostname": "web2"}


def test_the_comments_that_user_data_begins_with_stay() -> None:
    head = b"## template: jinja\n#cloud-config\n# ours\n"
    assert renewed(head + b"hostname: web1\nx: '{{ a }}'\n")["user-data"] == head + b"hostname: web2\nx: '{{ a }}'\n"
    assert renewed(b"#cloud-config\r\nhostname: web1\n")["user-data"] == b"#cloud-config\r\nhostname: web2\n"


@pytest.mark.parametrize("meta", [b"x: 2020-13-45", b"[" * 50000, b"x: [", b"x: \xff", b"- a"])
def test_meta_data_that_cannot_be_read_is_refused(meta: bytes) -> None:
    with pytest.raises(UsageError, match="meta-data"):
        renewed(b"#cloud-config\n{}\n", meta)


@given(st.binary(max_size=64) | st.text(st.sampled_from("#cloud-nfig:{}[]!&*x \n'"), max_size=64).map(str.encode))
def test_any_user_data_comes_through(user: bytes) -> None:
    assert renewed(user)["user-data"] == user
    assert renewed(b"#cloud-config\n" + user)["user-data"].startswith(b"#cloud-config\n")


@given(st.binary(max_size=4096) | st.binary(max_size=64).map(lambda tail: made()[:40000] + tail))
def test_what_is_no_seed_is_refused(content: bytes) -> None:
    with pytest.raises(UsageError):
        seed.renewed(content, "web1", "web2", "abc")
