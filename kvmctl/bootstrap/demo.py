"""The demonstration: three guests with different promises, made and changed by the ordinary command line."""

import os
import re
import shlex
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template

from kvmctl.bootstrap import defaults, environment, microguest, state, virsh
from kvmctl.bootstrap.progress import say, step
from kvmctl.bootstrap.setup import Machine
from kvmctl.host import cgroup, process
from kvmctl.host.files import make_private_directory, read_text, write_atomic
from kvmctl.model.errors import ConflictError, KvmctlError, PartialError, TimedOutError

GUESTS = ("demo-gold", "demo-silver", "demo-bronze")
LOGS = Path("/var/log/kvmctl")
_CHANGED = "demo-bronze"
_BOOT_SECONDS = 300.0
_SLOW = (TimedOutError.exit_code, PartialError.exit_code)
_MEASURE_SECONDS = 8.0
_REPORT = re.compile(r"^micro (.*\bnics=\S+)\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Report:
    """What a micro guest says of itself: seconds since it booted, loops done, kilobytes available."""

    up: float
    count: int
    available: int


def run(machine: Machine) -> None:
    """Apply, show, change live, show again. The guests stay. Raises KvmctlError at the first command that fails."""
    _claim()
    file = _write_file(machine)
    say(f"\nThe guests of this demonstration are declared in {file}:")
    print(file.read_text(), flush=True)
    _kvmctl("apply", "-f", str(file))
    _record_guests()
    _wait_for_reports()
    for command in ("list", "cpu", "memory", "host show"):
        _kvmctl(*command.split())
    _change()
    _farewell(file)


def log(name: str) -> Path:
    """Where the console of a guest is written to."""
    return LOGS / f"{name}.log"


def volume(name: str) -> str:
    """The image of a guest, in the default pool."""
    return f"{name}.qcow2"


def _claim() -> None:
    """Record what will be made, unless somebody else has guests or images of these names."""
    ours = state.load()
    present = virsh.names("list", "--all", "--name")
    for name in GUESTS:
        if name in present and not is_ours(name, ours):
            raise ConflictError(
                f"there is a guest {name} that this demonstration did not make",
                "rename or delete it, then run this again",
            )
        if volume(name) not in ours.volumes and virsh.succeeds("vol-info", "--pool", defaults.NAME, volume(name)):
            raise ConflictError(
                f"the pool `{defaults.NAME}` has an image {volume(name)} that this demonstration did not make",
                "rename or delete it, then run this again",
            )
    state.record(guests=dict.fromkeys(GUESTS, "") | ours.guests, volumes=tuple(volume(name) for name in GUESTS))


def is_ours(name: str, made: state.State) -> bool:
    """Whether an existing guest is the one that was recorded. Before its UUID is, and when the file was
    applied again by hand, it is known by the micro guest's kernel."""
    if name not in made.guests:
        return False
    if virsh.virsh("domuuid", name).strip() == made.guests[name]:
        return True
    return str(microguest.CACHE) in virsh.virsh("dumpxml", "--inactive", name)


def _write_file(machine: Machine) -> Path:
    text = Template(Path(__file__).with_name("demo.yaml").read_text()).substitute(
        kernel=machine.guest.kernel,
        initrd=machine.guest.initrd,
        nic=f"network: {defaults.NAME}" if machine.network else "user: true",
        logs=LOGS,
    )
    make_private_directory(LOGS)
    make_private_directory(state.directory())
    file = state.directory() / "demo.yaml"
    write_atomic(file, text)
    return file


def _kvmctl(*arguments: str, slow: bool = False) -> None:
    """Run one command as a user would; with `slow`, go on if the guest took too long to follow."""
    say(f"\n$ kvmctl {shlex.join(arguments)}")
    command = [str(environment.KVMCTL), *arguments]
    status = subprocess.run(command, env={**os.environ, "LIBVIRT_DEFAULT_URI": virsh.URI}, check=False).returncode
    if status and not (slow and status in _SLOW):
        raise KvmctlError(f"`kvmctl {shlex.join(arguments)}` ended with status {status}")


def _record_guests() -> None:
    uuids = {name: virsh.virsh("domuuid", name).strip() for name in GUESTS}
    state.update(lambda known: replace(known, guests=uuids))


def _wait_for_reports() -> None:
    with step("Waiting until Linux is up in the three guests, and wants all the CPU it can get"):
        for name in GUESTS:
            while not _next_report(name, _BOOT_SECONDS).count:
                pass


def _next_report(name: str, timeout: float) -> Report:
    """The first report that a guest makes from now on. Raises TimedOutError."""
    start = _size(log(name))
    deadline = time.monotonic() + timeout
    while True:
        # The log starts anew when it has grown large.
        if (size := _size(log(name))) < start:
            start = 0
        if size > start and (found := reports(_said(log(name), start))):
            return found[-1]
        if time.monotonic() > deadline:
            raise TimedOutError(
                f"the guest {name} reported nothing within {timeout:.0f} s", f"look at its console: {log(name)}"
            )
        time.sleep(0.2)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _said(path: Path, start: int) -> str:
    with path.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")


def reports(text: str) -> list[Report]:
    """The whole reports in what a micro guest printed."""
    found = (dict(pair.split("=", 1) for pair in line.split()) for line in _REPORT.findall(text))
    return [Report(float(said["up"]), int(said["count"]), int(said["mem_available_kb"])) for said in found]


def _change() -> None:
    kernel, guest = _kernel_files(_CHANGED), _measure(_CHANGED)
    _kvmctl("set", _CHANGED, "cpu.limit=0.2", "memory.size=192MiB", slow=True)
    changed_kernel, changed_guest = _kernel_files(_CHANGED), _measure(_CHANGED)
    print("\nWhat the kernel has, before and after:")
    for file, text in changed_kernel.items():
        print(f"  {file}: {kernel.get(file, 'absent')} → {text}")
    print(f"What {_CHANGED} itself says, before and after:")
    print(f"  loops a second: {guest[0]:.1f} → {changed_guest[0]:.1f}")
    print(f"  memory available: {guest[1] // 1024} MiB → {changed_guest[1] // 1024} MiB", flush=True)


def _kernel_files(name: str) -> dict[Path, str]:
    """The files a CPU limit is in, of the guest's control group of whichever version."""
    uuid = virsh.virsh("domuuid", name).strip()
    pid = process.find_guests([uuid]).get(uuid)
    folder = cgroup.guest_directory(pid) if pid else None
    if folder is None:
        return {}
    # With systemd and version 2, libvirt may set the limit one level below the guest's own.
    files = (place / file for place in (folder, folder / "libvirt") for file in ("cpu.max", "cpu.cfs_quota_us"))
    return {file: text.strip() for file in files if (text := read_text(file))}


def _measure(name: str) -> tuple[float, int]:
    """Loops a second over some seconds, and kilobytes available at their end, both by the guest's own report."""
    with step(f"Listening to what {name} reports"):
        first = _next_report(name, _BOOT_SECONDS)
        time.sleep(_MEASURE_SECONDS)
        last = _next_report(name, _BOOT_SECONDS)
    return (last.count - first.count) / (last.up - first.up), last.available


def _farewell(file: Path) -> None:
    print(
        f"""
The three guests go on running. kvmctl is {environment.KVMCTL}.
  look further        kvmctl cpu; kvmctl memory; kvmctl show demo-gold; kvmctl host doctor
  a guest's console   kvmctl console demo-gold      (Enter opens a shell, Ctrl-] leaves)
  what it prints      tail -f {log("demo-gold")}
  change the file     {file}, then kvmctl apply -f {file}
  remove all of it    python3 -m kvmctl.bootstrap clean""",
        flush=True,
    )
