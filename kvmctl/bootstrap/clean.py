"""Removes what the bootstrap made, and nothing else."""

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from kvmctl.bootstrap import daemons, defaults, demo, device, environment, microguest, packages, state
from kvmctl.bootstrap.progress import run, say
from kvmctl.bootstrap.virsh import URI, names, succeeds, virsh
from kvmctl.host import accelerator
from kvmctl.model.errors import KvmctlError

_TEST_PREFIX = "kvmctl-test-"
_TEST_FOLDERS = Path("/var/lib/libvirt")
_METADATA = ("--managed-save", "--nvram", "--snapshots-metadata", "--checkpoints-metadata")


def clean(everything: bool) -> None:
    """Remove the demonstration's guests with their images, and stop what was started for them; with
    `everything` the caches and .venv too. Doing it again does no harm. Raises KvmctlError."""
    made = state.load()
    if made.guests or made.volumes or made.pool or made.network or made.kvm_device or daemons.running():
        daemons.ensure()
        _remove_demo(made)
        _release()
    _remove_files(demo.LOGS.glob("demo-*.log*"))
    with suppress(OSError):  # somebody else's logs are in it, or it is gone
        demo.LOGS.rmdir()
    if everything:
        _remove_caches()
    kept = state.load()
    if kept == state.State():
        shutil.rmtree(state.directory(), ignore_errors=True)
    _say_what_stays(kept, everything)


def _remove_demo(made: state.State) -> None:
    present = names("list", "--all", "--name")
    ours = sorted(name for name in made.guests if name in present and demo.is_ours(name, made))
    for name in sorted(set(made.guests) & present - set(ours)):
        say(f"left the guest {name} alone: it is not the one that the demonstration made")
    kept = _delete_with_images(ours) if ours else set()
    state.update(lambda known: replace(known, guests={}))
    if made.volumes:
        defaults.ensure_pool()
    for volume in made.volumes:
        if succeeds("vol-info", "--pool", defaults.NAME, volume):
            if volume in kept:
                say(f"left the image {volume}: something else needs it")
            else:
                virsh("vol-delete", "--pool", defaults.NAME, volume)
    state.update(lambda known: replace(known, volumes=()))


def _delete_with_images(guests: Sequence[str]) -> set[str]:
    """Delete guests by kvmctl, which sets the other guests' weights anew; by virsh where kvmctl cannot
    run. The images that kvmctl was to decide about."""
    say(f"removing {', '.join(guests)}, with their images")
    try:
        run([str(environment.KVMCTL), "--connect", URI, "--quiet", "--yes", "delete", "--force", "--disks", *guests])
    except KvmctlError:
        for name in guests:
            _remove_guest(name)
        return set()
    return {demo.volume(name) for name in guests}


def _remove_guest(name: str) -> None:
    if name in names("list", "--name"):
        virsh("destroy", name)
    # One that was not persistent went with its process.
    if name in names("list", "--all", "--name"):
        virsh("undefine", name, *_METADATA)


def _release() -> None:
    """Stop what was started here, unless somebody has come to need it."""
    if others := names("list", "--all", "--name"):
        say(f"left the default pool and network as they are: there are other guests ({_listed(others)})")
    else:
        defaults.remove()
    if others := names("list", "--name"):
        say(f"left libvirt's daemons running: so are other guests ({_listed(others)})")
    else:
        daemons.stop()
        device.remove()


def _listed(found: Iterable[str]) -> str:
    listed = sorted(found)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def _remove_files(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _remove_caches() -> None:
    for path in (microguest.CACHE, environment.ENVIRONMENT):
        if path.exists():
            shutil.rmtree(path)
            say(f"deleted {path}")
    accelerator.forget()


def _say_what_stays(kept: state.State, everything: bool) -> None:
    if not everything:
        say(
            f"kept, so that the next start is quick: {microguest.CACHE} and {environment.ENVIRONMENT} "
            "(python3 -m kvmctl.bootstrap clean --all deletes them)"
        )
    if installed := sorted(set(kept.packages) - set(packages.lacking(kept.packages))):
        say(f"kept: the Debian packages that were installed; apt-get remove {' '.join(installed)}")


def remove_test_leftovers() -> None:
    """Remove the guests, pools and folders that tests left which were killed. What belongs to a test run
    that is still going on stays."""
    for name in sorted(names("list", "--all", "--name")):
        if is_left_over(name):
            say(f"removing the guest {name}, which a killed test left")
            _remove_guest(name)
    for name in sorted(names("pool-list", "--name")):
        if is_left_over(name):
            virsh("pool-destroy", name)
    for folder in _TEST_FOLDERS.glob(f"{_TEST_PREFIX}*"):
        if is_left_over(folder.name):
            shutil.rmtree(folder)
    if not names("list", "--name"):
        forget_owners(microguest.CACHE)


def forget_owners(cache: Path) -> None:
    """Take the account that libvirt keeps of a file's users off the micro guest's files, of which nobody is one: that
    of a daemon that was killed never comes to its end, and then guests of another user cannot have them."""
    for file in (file for file in cache.glob("micro*/**/*") if file.is_file()):
        for name in os.listxattr(file):
            if name.startswith("trusted.libvirt.security."):
                os.removexattr(file, name)


def is_left_over(name: str) -> bool:
    """Whether a name is one that tests give, and the test run that gave it is over."""
    if not name.startswith(_TEST_PREFIX):
        return False
    # The last but one part is the number of the run's process.
    maker = re.search(r"-(\d+)-\d+$", name)
    return not (maker and _is_python(int(maker[1])))


def _is_python(pid: int) -> bool:
    try:
        return "python" in Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return False
