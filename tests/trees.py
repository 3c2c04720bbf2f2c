"""Hosts' /proc and cgroup file systems as files, laid out as libvirt lays them out."""

from __future__ import annotations

from pathlib import Path

V1_GUEST = "machine/qemu-1-web1.libvirt-qemu"
V2_GUEST = "machine.slice/machine-qemu\\x2d1\\x2dweb1.scope"
PID = 4242


class Tree:
    """A host's /proc and cgroup file systems, as files."""

    def __init__(self, top: Path) -> None:
        self.proc = top / "proc"
        self.mounts: list[str] = []
        self.cgroup_lines: list[str] = []
        self.top = top

    def mount(self, name: str, kind: str, options: str, root: str = "/") -> Path:
        point = self.top / "cgroup" / name
        point.mkdir(parents=True, exist_ok=True)
        shown = str(point).replace(" ", "\\040")
        self.mounts.append(f"{32 + len(self.mounts)} 31 0:29 {root} {shown} rw,relatime - {kind} {kind} {options}")
        (self.proc / "self").mkdir(parents=True, exist_ok=True)
        (self.proc / "self/mountinfo").write_text("22 1 254:0 / / rw - ext4 /dev/vda rw\n" + "\n".join(self.mounts))
        return point

    def process(self, *lines: str, pid: int = PID) -> None:
        (self.proc / str(pid)).mkdir(parents=True, exist_ok=True)
        (self.proc / str(pid) / "cgroup").write_text("\n".join(lines) + "\n")


def fill(directory: Path, **values: object) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (directory / name.replace("__", ".")).write_text(f"{value}\n")
    return directory


def v1(directory: Path, shares: int, quota: int = -1, period: int = 100_000) -> Path:
    return fill(directory, cpu__shares=shares, cpu__cfs_quota_us=quota, cpu__cfs_period_us=period)


def v2(directory: Path, weight: int, maximum: str = "max 100000") -> Path:
    return fill(directory, cpu__weight=weight, cpu__max=maximum)


def plain_host(top: Path) -> Tree:
    """A v1 host without systemd: guests' groups on one side, all other tasks at the root."""
    tree = Tree(top)
    cpu = tree.mount("cpu", "cgroup", "rw,cpu")
    v1(cpu / "machine", 1024)
    v1(cpu / V1_GUEST, 1024)
    fill(cpu, release_agent="", tasks="1\n2\n30\n31\n")
    return tree


def systemd_host(top: Path) -> Tree:
    """A systemd host with cgroup v2, laid out as Debian 12 does."""
    tree = Tree(top)
    (top / "run/systemd/system").mkdir(parents=True)
    root = tree.mount("", "cgroup2", "rw,nsdelegate,memory_recursiveprot")
    fill(root, cgroup__controllers="cpuset cpu io memory hugetlb pids rdma misc")
    for name, populated in (("init.scope", 1), ("system.slice", 1), ("user.slice", 0), ("machine.slice", 1)):
        fill(v2(root / name, 100), cgroup__events=f"populated {populated}\nfrozen 0", cgroup__type="domain")
    v2(root / V2_GUEST, 100)
    v2(root / V2_GUEST / "libvirt", 100)
    return tree
