"""libvirt's library writes nothing of its own to our stderr."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment

pytestmark = pytest.mark.testdriver


def test_a_host_name_that_does_not_resolve_is_not_remarked_on(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.write_text("")
    script = (
        f"hostname no-such-host && mount --bind {nothing} /etc/hosts && mount --bind {nothing} /etc/nsswitch.conf && "
        f'exec "{sys.executable}" -m kvmctl -c test:///default -q host show'
    )
    done = subprocess.run(
        ["unshare", "--uts", "--mount", "sh", "-c", script],
        env=environment(tmp_path / "state", tmp_path / "run"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "libvirt" in done.stdout
