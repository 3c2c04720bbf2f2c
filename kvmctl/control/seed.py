"""The NoCloud seed: what cloud-init in a guest reads at its first start."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from kvmctl.model.errors import NotFoundError, UsageError
from kvmctl.model.spec import CloudInitSpec

MAX_FILE = 1 << 20
KEY_TYPES = ("ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-")
_HINT = "take that drive out of the guest first: a copy with the same seed would be the same instance to cloud-init"


@dataclass(frozen=True, slots=True)
class Seed:
    """The files of a seed, and the SHA-256 over their content as hex."""

    files: tuple[tuple[str, bytes], ...]
    digest: str


def compose(guest: str, spec: CloudInitSpec) -> Seed:
    """Read the files that `spec` names and make the seed's. Raises NotFoundError, UsageError."""
    import yaml

    user_data = _read(spec.user_data) if spec.user_data else _cloud_config(guest, spec)
    parts = {"user-data": user_data}
    if spec.network_config:
        parts["network-config"] = _read(spec.network_config)
    digest = hashlib.sha256(b"\0".join(name.encode() + b"\0" + data for name, data in parts.items())).hexdigest()
    # cloud-init acts on a seed once per instance-id: other content has to be another instance.
    meta = {"instance-id": f"{guest}-{digest[:12]}", "local-hostname": spec.hostname or guest}
    parts["meta-data"] = yaml.safe_dump(meta, sort_keys=False).encode()
    return Seed(tuple(parts.items()), digest)


def _cloud_config(guest: str, spec: CloudInitSpec) -> bytes:
    import yaml

    keys = [_key(key) for key in spec.ssh_keys]
    config: dict[str, object] = {"hostname": spec.hostname or guest}
    if spec.user:
        user: dict[str, object] = {"name": spec.user, "shell": "/bin/bash", "sudo": "ALL=(ALL) NOPASSWD:ALL"}
        config["users"] = ["default", user | ({"ssh_authorized_keys": keys} if keys else {})]
    elif keys:
        config["ssh_authorized_keys"] = keys
    return b"#cloud-config\n" + yaml.safe_dump(config, sort_keys=False).encode()


def _key(key: str) -> str:
    if key.startswith("/"):
        text = _read(key).decode(errors="replace").strip()
        if not text.startswith(KEY_TYPES):
            raise UsageError(f"{key} does not hold a public SSH key", "name the .pub file")
        return text
    return key


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        kind = NotFoundError if isinstance(error, FileNotFoundError) else UsageError
        raise kind(
            f"cannot read {path} for cloud-init: {error.strerror}", "check the paths under cloud-init in the guest file"
        ) from error
    if len(data) > MAX_FILE:
        raise UsageError(f"{path} is larger than 1 MiB, too much for a cloud-init seed", "name a smaller file")
    return data


def image(seed: Seed) -> bytes:
    """The ISO 9660 image, labelled `cidata` as NoCloud demands."""
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for index, (name, data) in enumerate(seed.files):
        iso.add_fp(io.BytesIO(data), len(data), f"/F{index}.;1", rr_name=name, joliet_path=f"/{name}")
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()


def renewed(content: bytes, old: str, new: str, instance: str) -> bytes:
    """A seed image like `content`, of guest `old`, for its copy `new`: cloud-init takes it for a new instance, whose
    ID begins with the new name and holds `instance`. The host name changes where it was the guest's name.

    Raises UsageError where `content` is no seed image, or its meta-data cannot be read.
    """
    import yaml

    files = dict(read_image(content))
    try:
        meta = _loaded(files.get("meta-data", b"")) or {}
    except ValueError as error:
        raise UsageError(f"the meta-data of the cloud-init seed of guest {old} is no YAML: {error}", _HINT) from error
    if not isinstance(meta, dict):
        raise UsageError(f"the meta-data of the cloud-init seed of guest {old} is no mapping", _HINT)
    meta["instance-id"] = f"{new}-{instance}"
    if meta.get("local-hostname", old) == old:
        meta["local-hostname"] = new
    if "user-data" in files:
        files["user-data"] = _renamed(files["user-data"], old, new)
    files["meta-data"] = yaml.safe_dump(meta, sort_keys=False).encode()
    return image(Seed(tuple(files.items()), ""))


def _loaded(text: bytes) -> Any:
    """What a YAML document says. Raises ValueError where it says nothing that can be read."""
    import yaml

    try:
        return yaml.safe_load(text)
    # PyYAML stumbles over what it does not expect with whatever comes.
    except (yaml.YAMLError, RecursionError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(str(error)) from error


def _renamed(data: bytes, old: str, new: str) -> bytes:
    """user-data with the host name `new`, where it is a cloud-config that says `old`. Anything else is as good, such
    as a script, and stays as it is: whoever wrote it knows the name that it gives."""
    import yaml

    head = list(takewhile(lambda line: line.startswith(b"#"), data.splitlines(keepends=True)))
    body = data[sum(map(len, head)) :]
    template = bool(head) and head[0].lower().startswith(b"## template:")
    # What a template does can be said in comments, which would not come through.
    if (template and b"{%" in body) or [line.rstrip() for line in head[template:][:1]] != [b"#cloud-config"]:
        return data
    try:
        user = _loaded(body)
        if not isinstance(user, dict) or user.get("hostname") != old:
            return data
        return b"".join(head) + yaml.safe_dump(user | {"hostname": new}, sort_keys=False).encode()
    except (ValueError, RecursionError):
        return data


def read_image(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The files of a seed image, by name; what lies in folders is left out. Raises UsageError where it is none."""
    import pycdlib
    from pycdlib.pycdlibexception import PyCdlibException

    iso = pycdlib.PyCdlib()
    try:
        iso.open_fp(io.BytesIO(content))
        for child in iso.list_children(joliet_path="/"):
            if child is not None and child.is_file() and child.get_data_length() <= MAX_FILE:
                name = child.file_identifier().decode("utf-16-be")
                out = io.BytesIO()
                iso.get_file_from_iso_fp(out, joliet_path=f"/{name}")
                yield name, out.getvalue()
        iso.close()
    # pycdlib stumbles over what it does not expect with whatever comes.
    except (PyCdlibException, ValueError, LookupError, OSError, struct.error, AttributeError, TypeError) as error:
        raise UsageError(f"the cloud-init seed is no image that can be read: {error}", _HINT) from error
