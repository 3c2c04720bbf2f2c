"""An authority of a test's own, and what it certifies, under the names that libvirt and QEMU look for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_NEW = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]


def missing() -> list[str]:
    """The programs that it needs and that are not installed."""
    return [] if shutil.which("openssl") else ["openssl"]


class Authority:
    """Its certificate and key, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.certificate, self._key = folder / "ca-cert.pem", folder / "ca-key.pem"
        _request(["-x509", *_NEW, "-subj", "/CN=a test's authority", "-days", "2"], self._key, self.certificate)

    def give(self, folder: Path, address: str) -> None:
        """Fill a folder with what the host of that address needs as the server and as the client of a move."""
        folder.mkdir(exist_ok=True)
        shutil.copy(self.certificate, folder)
        for role in ("server", "client"):
            signed = ["-x509", "-CA", str(self.certificate), "-CAkey", str(self._key), *_NEW]
            about = ["-subj", f"/CN={address}", "-addext", f"subjectAltName=IP:{address}", "-days", "2"]
            use = ["-addext", f"extendedKeyUsage={role}Auth", "-addext", "basicConstraints=critical,CA:FALSE"]
            _request([*signed, *about, *use], folder / f"{role}-key.pem", folder / f"{role}-cert.pem")


def _request(words: list[str], key: Path, certificate: Path) -> None:
    command = ["openssl", "req", *words, "-keyout", str(key), "-out", str(certificate)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    key.chmod(0o600)
