import pytest
import yaml

from kvmctl.model import declaration, document
from kvmctl.model.errors import FileError
from tests.guestfiles import FULL, guest, read

pytestmark = pytest.mark.unit


def problems(*texts: str | bytes) -> list[str]:
    with pytest.raises(FileError) as caught:
        read(*texts)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert all(len(str(problem)) < 600 for problem in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


BAD_DOCUMENTS = [
    (b"", "a.yaml: the file is empty"),
    (b"# only a comment\n", "a.yaml: the file is empty"),
    (b"---\n", "not nothing"),
    (b"\xff\xfeg\0u\0", "a.yaml:1:1: byte 0xFF is not UTF-8"),
    (b"guests:\n- name: \xe9t\xe9", "a.yaml:2:9: byte 0xE9 is not UTF-8"),
    (b"guests: []\n\0", "a.yaml:2:1: the control character U+0000"),
    (b"\x7fELF\x02\x01\x01\0\0", "a.yaml:1:1: the control character U+007F"),
    (b"guests: [{name: \x1b[31m}]", "a.yaml:1:17: the control character U+001B"),
    (b"a" * (document.MAX_BYTES + 1), "a.yaml: the file is larger than 1MiB"),
    (b"guests: [", "this is not YAML"),
    (b"guests:\n\t- name: g", "a.yaml:2:1: this is not YAML: a tab"),
    (b"guests: []\n---\nguests: []", "a.yaml:2:1: a second document"),
    (b"guests: *g", "a.yaml:1:9: the alias *g"),
    (b"guests: &g [*g]", "a.yaml:1:13: the alias *g"),
    (b"[" * 100_000, "this is nested more than 20 deep"),
    (b"- " * 100_000, "a.yaml:1:41: this is nested more than 20 deep"),
    (b"? " * 100_000, "this is nested more than 20 deep"),
    (b"just text", "a.yaml:1:1: a guest file has to be a mapping"),
    (b"- name: g", "a.yaml:1:1: a guest file has to be a mapping"),
    (b"project: shop", "a.yaml:1:1: the file has no `guests:`"),
    (b"guests:", "a.yaml:1:8: guests has to be a list"),
    (b"guests: {g: {}}", "a.yaml:1:9: guests has to be a list"),
    (b"guests: [g]", "a.yaml:1:10: guest 1: it has to be a mapping such as `- name: web1`"),
    (b"guests: [{cpu: {}}]", "a.yaml:1:10: guest 1: it needs a name"),
    (b"guests: !!python/object/apply:os.system []", "a.yaml:1:9: the tag"),
    (b"guests: [{name: !!str g}]", "a.yaml:1:17: the tag"),
    (b"guests: []\nguests: []", "a.yaml:2:1: the key 'guests' stood in line 1 already"),
    (b"guests: [{name: g, [1]: 2}]", "a.yaml:1:20: a key has to be a plain word"),
    (b"guests: [{name: g, <<: 3}]", "a.yaml:1:24: `<<` merges mappings"),
    (b"guest: []\nguests: []", "a.yaml:1:1: unknown key 'guest': did you mean guests?"),
    (b"xyz: []\nguests: []", "unknown key 'xyz': known are project, defaults, guests"),
    (b"project: [a]\nguests: []", "a.yaml:1:10: project has to be a single value, not a list"),
    (b"project: a b\nguests: []", "a.yaml:1:10: project: a project is named like a guest"),
    (b"defaults: []\nguests: []", "a.yaml:1:11: defaults has to be a mapping"),
    (b"defaults: {name: g}\nguests: []", "a.yaml:1:12: defaults: a name is one guest's own"),
]


@pytest.mark.parametrize(("data", "said"), BAD_DOCUMENTS)
def test_a_bad_document(data: bytes, said: str) -> None:
    (problem,) = problems(data)
    assert said in problem


def bomb(width: int, levels: int) -> str:
    rows = ["a0: &a0 [" + ", ".join(["x"] * width) + "]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(rows)


def test_an_alias_bomb_is_refused_before_it_is_written_out() -> None:
    (problem,) = problems(bomb(9, 9))
    assert "more than 100000 values" in problem


def test_a_chain_of_aliases_cannot_nest_deeper_than_the_file_itself() -> None:
    rows = ["a0: &a0 []"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 2000)]
    (problem,) = problems("\n".join(rows))
    assert "nested more than 20 deep" in problem


def test_a_bomb_of_merge_keys_is_refused() -> None:
    rows = ["a0: &a0 {x: 1, y: 2}"] + [
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}], k{n}: 1}}" for n in range(1, 9)
    ]
    (problem,) = problems("\n".join(rows))
    assert "more than 100000 values" in problem


def test_a_file_full_of_faults_lists_the_first_hundred() -> None:
    found = problems("\n".join(f"key{n}: 1" for n in range(5000)))
    assert len(found) == 101
    assert found[0].startswith("a.yaml:1:1: unknown key 'key0'")
    assert "more than the 100 faults" in found[-1]


def test_too_many_guests() -> None:
    text = "guests:\n" + "".join(f"- name: g{n}\n" for n in range(declaration.MAX_GUESTS))
    assert len(read(text).guests) == declaration.MAX_GUESTS
    (problem,) = problems(text + "- name: extra\n")
    assert problem.startswith(f"a.yaml:{declaration.MAX_GUESTS + 2}:3:")


BAD_FIELDS = [
    ("cpu: 2", "cpu has to be a mapping such as `cpu: {count: 2}`, not a single value"),
    ("cpu: [2]", "cpu has to be a mapping such as `cpu: {count: 2}`, not a list"),
    ("cpu: ~", "cpu has to be a mapping such as `cpu: {count: 2}`, not nothing"),
    ("cpu: {count: }", "cpu.count has no value"),
    ("cpu: {count: [2]}", "cpu.count has to be a single value, not a list"),
    ("cpu: {count: {a: b}}", "cpu.count has to be a single value, not a mapping"),
    ("cpu: {counts: 2}", "unknown key 'cpu.counts': did you mean count?"),
    ("cpu: {foo: 2}", "unknown key 'cpu.foo': known are count, max, shares"),
    ("cmdline: x", "unknown key 'cmdline': did you mean boot.cmdline?"),
    ("nic: []", "unknown key 'nic': did you mean nics?"),
    ("passthru: []", "unknown key 'passthru': did you mean passthrough?"),
    ("passthrough: [{}]", "passthrough.0: a device of the host needs pci"),
    ("passthrough: [{pci: 01:00}]", "passthrough.0.pci: '01:00' is not a PCI address"),
    ("passthrough: [{mdev: abc}]", "passthrough.0.mdev: 'abc' is not a UUID"),
    ("passthrough: [{vf-of: 1:0.0, vlan: 4095}]", "passthrough.0.vlan: '4095' is not a number of VLANs"),
    ("passthrough: [{vf-of: 1:0.0, mac: 01:00:5e:00:00:01}]", "is not the address of one interface"),
    ("passthrough: [{vf-of: 1:0.0, pci: 1:0.0}]", "a function is not the card that it is a function of"),
    ("passthrough: [{mdev: 4b20d080-1b54-4048-85b3-a6a62d165c01, vlan: 1}]", "passthrough.0.vlan: an mdev has none"),
    ("passthrough: [{pci: 1:0.0}, {pci: 01:00.0}]", "0000:01:00.0 is device 1 of the guest already"),
    ("passthrough: [{pci: 1:0.0}, {vf-of: 1:0.0}]", "goes as a whole or function by function"),
    (
        "{nics: [{user: true, mac: 52:54:00:00:00:01}], passthrough: [{vf-of: 1:0.0, mac: 52:54:00:00:00:01}]}"[1:-1],
        "passthrough.0.mac: the MAC address 52:54:00:00:00:01 is that of another nic",
    ),
    ("nics: [{mode: passthrough}]", "passthrough.0: a device of the host needs pci"),
    ("nics: [{mode: passthrough, pci: 1:0.0, model: igb}]", "unknown key 'passthrough.0.model'"),
    ("disks: [{path: /a, iopz: 5}]", "unknown key 'disks.0.iopz': did you mean iops"),
    ("disks: [{path: /a, mode: emulated, bus: virtio}]", "a disk on virtio is paravirtual, not emulated"),
    ("disks: [{path: /a, mode: passthrough}]", "unknown key 'passthrough.0.path': known are pci, vf-of"),
    ("disks: [{path: /a, target: sda, iothread: yes}]", "only a disk on virtio has a thread"),
    ("disks: [{path: /a, bus: sata, iothread: yes}]", "only a disk on virtio has a thread"),
    ("disks: [{path: /a, iops: 5, read-iops: 5}]", "say either iops, for reading and writing together"),
    ("disks: [{path: /a, iops-burst: 5}]", "beyond iops, which is not limited"),
    ("disks: [{path: /a, iops: 5, iops-burst: 4}]", "it is less than iops"),
    ("disks: [{path: /a, iops: 5, burst-seconds: 4}]", "only together with a burst"),
    ("disks: [{path: /a, bandwidth: 5}]", "has no unit"),
    ("disks: [{path: /a, bandwidth: 0MiB}]", "would stop all traffic"),
    ("nics: [{network: a, mode: emulated, model: virtio}]", "a nic virtio is paravirtual, not emulated"),
    ("nics: [{network: a, model: e1000e, queues: 2}]", "only a virtio nic has more queues"),
    ("nics: [{user: true, queues: 2}]", "QEMU's own network has one queue"),
    ("nics: [{user: true, bandwidth: {in: 1Mbit}}]", "QEMU's own network has no limit"),
    ("nics: [{network: a, bandwidth: 1Mbit}]", "has to be a mapping such as"),
    ("nics: [{network: a, bandwidth: {inn: 1Mbit}}]", "unknown key 'nics.0.bandwidth.inn'"),
    ("nics: [{network: a, bandwidth: {out-peak: 1Mbit}}]", "unknown key 'nics.0.bandwidth.out-peak'"),
    ("nics: [{network: a, bandwidth: {in: 10MiB}}]", "is not a speed"),
    ("nics: [{network: a, bandwidth: {in: 2Mbit, in-peak: 1Mbit}}]", "it is less than bandwidth.in"),
    ("nics: [{network: a, bandwidth: {out-burst: 1MiB}}]", "goes beyond bandwidth.out, which is not limited"),
    ("nics: [{network: a, bandwidth: {in: 1}}]", "is not a speed"),
    ("disks: /a", "disks has to be a list such as `disks: [{path: …}]`, not a single value"),
    ("disks: {path: /a}", "disks has to be a list such as `disks: [{path: …}]`, not a mapping"),
    ("disks: [/a]", "an entry of disks has to be a mapping such as `disks: [{path: …}]`, not a single value"),
    ("nics: [{netwrk: a}]", "unknown key 'nics.0.netwrk': did you mean network?"),
    ("nics: [{network: a, mac: 01:00:5e:00:00:01}]", "nics.0.mac: '01:00:5e:00:00:01' is not the address"),
    ("labels: [a]", "labels has to be a mapping"),
    ("labels: {A: b}", "labels: 'A' is not the key of a label"),
    ("labels: {a: [b]}", "labels.a has to be a single value, not a list"),
    ("labels: {a: ''}", "labels.a: '' is not usable"),
    ("cloud-init: web1", "cloud-init has to be a mapping"),
    ("cloud-init: {ssh-keys: /k}", "cloud-init.ssh-keys has to be a list"),
    ("cloud-init: {ssh-keys: [k]}", "cloud-init.ssh-keys: 'k' is not a public key"),
    ("cloud-init: {hostnam: k}", "unknown key 'cloud-init.hostnam': did you mean hostname?"),
    ("console: maybe", "console.enabled: 'maybe' is not true or false"),
    ("console: {log: relative}", "console.log: 'relative' is not an absolute path"),
    ("vnc: {listen: everywhere}", "vnc.listen: 'everywhere' is not an IP address"),
    ("boot: {order: [disk, [cdrom]]}", "boot.order has to be a single value, not a list"),
    ("boot: {order: []}", "boot.order: '' is not possible here"),
    ("memory: {size: 1.5G}", "memory.size: '1.5G' is not a size"),
    ("memory: {size: 4Gi}", "unknown unit 'Gi'"),
    ("memory: {size: -1}", "memory.size: '-1' is not a size"),
    ("memory: {size: 0}", "memory.size: '0' has no unit"),
    ("memory: {size: 4Ｇ}", "memory.size: '4Ｇ' is not a size"),
    ("memory: {size: 1e3M}", "memory.size: '1e3M' is not a size"),
    ("memory: {size: 99999999999G}", "memory.size: '99999999999G' is larger than any host"),
    ("memory: {size: 1GiB, max: 512MiB}", "memory.max: a maximum of 512MiB is less than"),
    ("cpu: {shares: 0}", "cpu.shares: '0' is not a number of shares"),
    ("cpu: {limit: 0.005}", "no quota below 1 ms"),
    ("cpu: {count: 1, reservation: 2}", "cpu.reservation: a reservation of 2 cores is more than 1 vCPUs"),
    ("cpu: {limit: 1, reservation: 150%}", "cpu.reservation: a reservation of 1.5 cores is above the limit of 1"),
    ("name: h", "the key 'name' stood in line 1 already"),
    (r'description: "a\0b"', "description: 'a\\x00b' holds the control character U+0000"),
    (r'description: "\ud800"', "this is not YAML"),
]


@pytest.mark.parametrize(("text", "said"), BAD_FIELDS)
def test_a_bad_field(text: str, said: str) -> None:
    (problem,) = problems(guest(text))
    assert problem.startswith("a.yaml:1:")
    assert said in problem


@pytest.mark.parametrize("name", ["a/b", "..", "-rf", " ", "1", 'a<b>&"c"\nd', "a" * 300, ""])
def test_a_bad_name(name: str) -> None:
    quoted = "'" + name.replace("\n", "\n\n") + "'"
    (problem,) = problems(f"guests:\n  - agent: true\n    name: {quoted}")
    assert problem.startswith("a.yaml:3:11: guest 1: name: ")


def test_every_fault_of_every_file_comes_out_at_once_in_order() -> None:
    first = """\
defaults:
  cpu: {share: normal, limit: 0}
guests:
  - name: a
    memory: {size: 1.5G}
    nics: [{network: default, mac: "52:54:00:00:00:01"}]
  - name: b
    cpu: {count: 1, reservation: 2, shares: 0}
    boot: {initrd: /i}
  - name: a
"""
    second = """\
guests:
  - name: a
  - {name: c, nics: [{user: true, mac: "52:54:00:00:00:01"}], disks: [{size: 1GiB}]}
"""
    found = problems(first, b"\xff", second)
    assert [line.split(": ")[0] for line in found] == [
        "a.yaml:2:9",
        "a.yaml:2:31",
        "a.yaml:5:20",
        "a.yaml:8:34",
        "a.yaml:8:45",
        "a.yaml:9:20",
        "a.yaml:10:11",
        "b.yaml:1:1",
        "c.yaml:2:11",
        "c.yaml:3:40",
        "c.yaml:3:71",
    ]


def test_the_order_of_guests_and_places_is_kept_for_two_on_one_line() -> None:
    (problem,) = problems("guests: [{name: a}, {name: b}, {name: a}]")
    assert problem == "a.yaml:1:39: a guest named a is declared already, at a.yaml:1"


def test_one_guest_by_alias_twice_is_a_duplicate() -> None:
    assert len(problems("guests: [&g {name: a}, *g]")) == 1


def test_a_fault_in_defaults_is_told_once_but_a_contradiction_for_every_guest() -> None:
    text = """\
defaults:
  memory: {size: 1.5G}
  cpu: {reservation: 2}
guests:
  - {name: a, cpu: {count: 1}}
  - {name: b, cpu: {count: 1}}
  - {name: c, cpu: {count: 2}}
"""
    found = problems(text)
    assert [line.partition(" ")[2].split(":")[0] for line in found] == ["defaults", "guest a", "guest b"]


def test_what_could_not_be_read_is_not_reported_as_missing_too() -> None:
    assert len(problems(guest("boot: {kernel: vmlinuz, initrd: /i, cmdline: x}"))) == 1
    assert len(problems(guest("nics: [{network: a/b}]"))) == 1
    assert len(problems(guest("disks: [{volume: a/b, size: 1GiB}]"))) == 1
    assert len(problems(guest("disks: [{volume: a/b}, {path: /a, size: 1GiB}]"))) == 2
    assert len(problems(guest("disks: [{size: 1GiB}]"))) == 1


def test_projects_have_to_agree() -> None:
    (problem,) = problems("project: a\nguests: []", "guests: []", "guests: []\nproject: b")
    assert problem.startswith("c.yaml:2:10: the project b is not a, which a.yaml names")


def test_a_mac_address_belongs_to_one_guest() -> None:
    (problem,) = problems(
        guest("nics: [{user: true, mac: '52:54:00:00:00:01'}]"),
        "guests: [{name: h, nics: [{user: true, mac: '52:54:00:00:00:01'}]}]",
    )
    assert problem.startswith("b.yaml:1:45: guest h: the MAC address 52:54:00:00:00:01 is that of guest g (a.yaml:1)")


def test_the_pure_python_parser_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = read(FULL)
    slow = [problems(data) for data, _ in BAD_DOCUMENTS if len(data) < 1000]
    monkeypatch.setattr(document, "_LOADER", yaml.SafeLoader)
    assert read(FULL) == quick
    for (data, _), said in zip([bad for bad in BAD_DOCUMENTS if len(bad[0]) < 1000], slow, strict=True):
        found = problems(data)
        assert [line for line in found if "not YAML" not in line] == [line for line in said if "not YAML" not in line]
