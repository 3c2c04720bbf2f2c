"""The keys that sign the certificates of emulated TPMs, where two libvirtds have used them as different users.

libvirt runs swtpm as the user `tss`, but a libvirtd that was started before swtpm's packages made that user runs it as
root. What root has made then is closed to the next libvirtd's swtpm, and no new guest with a TPM starts any more.
"""

import os
from pathlib import Path

from kvmctl.bootstrap.progress import say

FOLDER = Path("/var/lib/swtpm-localca")


def ensure(folder: Path = FOLDER) -> None:
    """Give what root left in the folder to the folder's own user. Raises OSError where that is not permitted."""
    if not folder.is_dir():
        return
    owner = folder.stat().st_uid
    strays = [path for path in folder.iterdir() if path.lstat().st_uid == 0 != owner and not path.is_symlink()]
    for path in strays:
        os.chown(path, owner, -1, follow_symlinks=False)
    if strays:
        say(f"gave {', '.join(sorted(path.name for path in strays))} in {folder} to the user that swtpm runs as")
