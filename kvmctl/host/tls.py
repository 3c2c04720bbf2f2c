"""The certificates that libvirt has QEMU encrypt a move with, and whether they do: found out by a handshake."""

from __future__ import annotations

import re
from pathlib import Path

from kvmctl.host.files import read_permitted

_CONFIG = Path("/etc/libvirt/qemu.conf")
_OWN = Path("/etc/pki/libvirt-migrate")
_DEFAULT = "/etc/pki/qemu"
_SETTING = re.compile(r"""^\s*(\w+)\s*=\s*(?:"([^"]*)"|(\S+))""", re.MULTILINE)


def migration_folder(config: Path = _CONFIG, own: Path = _OWN) -> Path | None:
    """The folder of the certificates for moves, as libvirt chooses it (virQEMUDriverConfigSetDefaults); None where
    the settings cannot be read, or keep the key under a password."""
    text = read_permitted(config)
    if text is None and config.exists():
        return None
    settings = {key: quoted or bare for key, quoted, bare in _SETTING.findall(text or "")}
    if any(settings.get(f"{kind}_tls_x509_secret_uuid") for kind in ("default", "migrate")):
        return None
    if found := settings.get("migrate_tls_x509_cert_dir"):
        return Path(found)
    default = settings.get("default_tls_x509_cert_dir")
    return own if default is None and own.is_dir() else Path(default or _DEFAULT)


def why_not(folder: Path, role: str) -> str:
    """Why this host cannot encrypt with what is in the folder as the `client` or the `server` of a move; empty where
    it can."""
    import ssl

    authority, certificate, key = (folder / name for name in ("ca-cert.pem", f"{role}-cert.pem", f"{role}-key.pem"))
    if absent := [path.name for path in (authority, certificate, key) if not path.is_file()]:
        return f"{folder} has no {', '.join(absent)}"
    try:
        _shake_hands(str(authority), str(certificate), str(key), role)
    except ssl.SSLCertVerificationError as error:
        return f"{certificate} is not accepted by {authority.name}: {error.verify_message}"
    except (ssl.SSLError, OSError) as error:
        return f"{certificate} cannot be used: {getattr(error, 'reason', None) or error}"
    return ""


def _shake_hands(authority: str, certificate: str, key: str, role: str) -> None:
    """Raises ssl.SSLError, OSError. Both ends have the same certificate; the one that is asked about is verified."""
    import ssl

    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_REQUIRED if role == "server" else ssl.CERT_NONE
    server.verify_mode = ssl.CERT_REQUIRED if role == "client" else ssl.CERT_NONE
    for context in (client, server):
        # How strong a key has to be is for GnuTLS to say, which does the real one.
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.load_verify_locations(authority)
        context.load_cert_chain(certificate, key, lambda: "")
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there, server_side=False), server.wrap_bio(there, back, server_side=True)]
    for _turn in range(8):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue
