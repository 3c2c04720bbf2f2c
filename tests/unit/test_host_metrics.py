from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from kvmctl.host import metrics
from kvmctl.host.prometheus import exposition
from kvmctl.model.host_sample import KsmSample, ProcessSample
from kvmctl.model.metrics import Flow, GuestReading, HostReading, Pressure, guest_rates, host_rates
from kvmctl.model.sample import BalloonSample, GuestSample

pytestmark = pytest.mark.unit

KSM = KsmSample(1, 100, 20, 1, 7, 10, 90, 5, 0, None, None, None, None, None)
HOST = HostReading(
    taken=0,
    cpus=2,
    cpu_seconds={"user": 10.0, "system": 5.0, "idle": 100.0, "iowait": 1.0},
    load=(0.5, 0.25, 0.125),
    memory_total=4 << 30,
    memory_available=1 << 30,
    swap_total=0,
    swap_used=0,
    swap=Flow(0, 0),
    disks={"vda": Flow(1000, 2000)},
    networks={"eth0": Flow(5, 6)},
    pressure={"cpu": Pressure(0.5, 0.25, 12.5)},
    ksm=KSM,
)
SAMPLE = GuestSample(
    "web1", "302ee087-116f-4579-b971-b29bd0c9f82b", "running", 2, 2, BalloonSample(current=1 << 30), 10**9, (), (5, 7)
)
GUEST = GuestReading(0, SAMPLE, Flow(100, 200), None)
counts = st.integers(0, 10**15)


def later(seconds: float, **changes: object) -> HostReading:
    return replace(HOST, taken=int(seconds * 1e9), **changes)  # type: ignore[arg-type]


def test_host_rates_are_per_second_and_percent_of_all_cpus() -> None:
    after = later(
        2,
        cpu_seconds={"user": 11.0, "system": 5.5, "idle": 102.0, "iowait": 1.5},
        disks={"vda": Flow(5000, 2000)},
    )
    rates = host_rates(HOST, after)
    assert rates.seconds == 2
    assert rates.cpu == {"user": 25.0, "system": 12.5, "idle": 50.0, "iowait": 12.5}
    assert rates.busy == 37.5
    assert rates.disks == {"vda": Flow(2000, 0)}


def test_two_readings_at_once_have_no_rates() -> None:
    rates = host_rates(HOST, HOST)
    assert rates.busy is None
    assert rates.disks == {}


def test_a_disk_that_appeared_or_was_swapped_for_another_has_no_rate() -> None:
    rates = host_rates(HOST, later(1, disks={"vda": Flow(10, 10), "vdb": Flow(10**9, 0)}))
    assert rates.disks == {}


def guest(seconds: float, state: str = "running", cpu_time: int | None = 10**9, **changes: object) -> GuestReading:
    sample = replace(SAMPLE, state=state, cpu_time=cpu_time)
    return replace(GUEST, taken=int(seconds * 1e9), sample=sample, **changes)  # type: ignore[arg-type]


def test_guest_rates_are_cores_and_bytes_a_second() -> None:
    rates = guest_rates(GUEST, guest(2, cpu_time=4 * 10**9, block=Flow(300, 200)))
    assert (rates.cores, rates.steal, rates.block, rates.network) == (1.5, 0.0, Flow(100, 0), None)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, GUEST),
        (guest(0, state="stopped"), guest(1)),
        (guest(0), guest(1, state="stopped", cpu_time=10**12)),
        (guest(0, cpu_time=10**12), guest(1)),
        (guest(0, cpu_time=None), guest(1)),
        (guest(1), guest(1)),
    ],
)
def test_what_is_not_known_is_none_and_not_zero(before: GuestReading | None, after: GuestReading) -> None:
    assert guest_rates(before, after).cores is None


@given(before=counts, after=counts, seconds=st.floats(0, 1e6))
def test_no_rate_is_ever_negative(before: int, after: int, seconds: float) -> None:
    rates = guest_rates(guest(0, cpu_time=before), guest(seconds, cpu_time=after))
    assert rates.cores is None or rates.cores >= 0
    found = host_rates(later(0, cpu_seconds={"user": before}), later(seconds, cpu_seconds={"user": after}))
    assert found.busy in (None, 100.0)


def samples(text: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(text.decode())
    return {(s.name, tuple(s.labels.values())): s.value for family in families for s in family.samples}


def test_the_text_format_says_what_was_read_in_base_units() -> None:
    process = ProcessSample(1, weight=555, rss=1 << 28, swapped=4096, ksm_merging_pages=10)
    text = exposition(HOST, [replace(GUEST, sample=replace(SAMPLE, process=process))])
    found = samples(text)
    assert found["kvmctl_up", ()] == 1
    assert found["kvmctl_host_cpu_seconds_total", ("idle",)] == 100
    assert found["kvmctl_host_disk_written_bytes_total", ("vda",)] == 2000
    assert found["kvmctl_host_network_received_bytes_total", ("eth0",)] == 5
    assert found["kvmctl_host_pressure_some_seconds_total", ("cpu",)] == 12.5
    assert found["kvmctl_host_ksm_sharing_bytes", ()] == 90 * 4096
    assert found["kvmctl_guest_cpu_seconds_total", ("web1",)] == 1
    assert found["kvmctl_guest_steal_seconds_total", ("web1",)] == 12e-9
    assert found["kvmctl_guest_state", ("web1", "running")] == 1
    assert found["kvmctl_guest_cpu_weight", ("web1",)] == 555
    assert found["kvmctl_guest_ksm_merged_bytes", ("web1",)] == 10 * 4096
    assert all(name.startswith("kvmctl_") for name, _labels in found)


def test_what_is_not_known_has_no_sample() -> None:
    names = {name for name, _labels in samples(exposition(HOST, [GUEST]))}
    assert not names & {
        "kvmctl_guest_usable_bytes", "kvmctl_guest_network_sent_bytes_total", "kvmctl_guest_cpu_weight",
        "kvmctl_host_pressure_full_seconds_total", "kvmctl_host_ksm_profit_bytes",
    }  # fmt: skip


def test_a_hypervisor_that_does_not_answer_is_down_and_the_host_still_there() -> None:
    found = samples(exposition(HOST, None))
    assert found["kvmctl_up", ()] == 0
    assert found["kvmctl_host_cpus", ()] == 2
    assert not [name for name, _labels in found if "guest" in name]


@given(name=st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_guest_name_reads_back(name: str) -> None:
    found = samples(exposition(None, [replace(GUEST, sample=replace(SAMPLE, name=name))]))
    assert found["kvmctl_guest_vcpus", (name,)] == 2


def test_this_machine_is_read() -> None:
    before, after = metrics.read(), metrics.read()
    assert after.taken > before.taken
    assert after.cpus >= 1
    assert sum(after.cpu_seconds.values()) >= sum(before.cpu_seconds.values()) > 0
    assert 0 < after.memory_available <= after.memory_total
    assert set(after.disks) <= {path.name for path in Path("/sys/block").iterdir()}
