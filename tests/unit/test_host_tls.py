"""Whether this host can encrypt a move: certificates as they are made for libvirt, and what goes wrong with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kvmctl.host import tls
from tests.certificates import Authority, missing

pytestmark = pytest.mark.unit


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    if missing():
        pytest.skip("it needs openssl")
    return Authority(tmp_path / "ca")


@pytest.mark.parametrize("role", ["client", "server"])
def test_certificates(authority: Authority, tmp_path: Path, role: str) -> None:
    folder = tmp_path / "pki"
    authority.give(folder, "10.99.0.1")
    assert tls.why_not(folder, role) == ""
    assert "has no ca-cert.pem" in tls.why_not(tmp_path, role)
    (folder / f"{role}-key.pem").unlink()
    assert f"has no {role}-key.pem" in tls.why_not(folder, role)
    Authority(tmp_path / "other").give(tmp_path / "foreign", "10.99.0.1")
    shutil.copy(tmp_path / "foreign" / f"{role}-key.pem", folder)
    assert "cannot be used" in tls.why_not(folder, role)
    shutil.copy(tmp_path / "foreign" / f"{role}-cert.pem", folder)
    assert "is not accepted by ca-cert.pem" in tls.why_not(folder, role)


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("", "own"),
        ("# migrate_tls_x509_cert_dir = '/x'\n", "own"),
        ('migrate_tls_x509_cert_dir = "/a/b"\ndefault_tls_x509_cert_dir = "/c"\n', "/a/b"),
        ('default_tls_x509_cert_dir = "/c"\n', "/c"),
        ('migrate_tls_x509_secret_uuid = "00000000-0000-0000-0000-000000000000"\n', None),
    ],
)
def test_where_they_are(tmp_path: Path, text: str, folder: str | None) -> None:
    (tmp_path / "qemu.conf").write_text(text)
    own = tmp_path / "own"
    own.mkdir()
    found = tls.migration_folder(tmp_path / "qemu.conf", own)
    assert found == (own if folder == "own" else folder and Path(folder))
    own.rmdir()
    if not text:
        assert tls.migration_folder(tmp_path / "qemu.conf", own) == Path("/etc/pki/qemu")
        assert tls.migration_folder(tmp_path / "none.conf", own) == Path("/etc/pki/qemu")
