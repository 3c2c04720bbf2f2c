"""`kvmctl events` on libvirt's test driver, whose guests live in one process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import libvirt
import pytest
import yaml

from kvmctl.hypervisor import events
from kvmctl.hypervisor.connection import Hypervisor, open_hypervisor
from kvmctl.hypervisor.event_words import READERS
from kvmctl.hypervisor.events import Feed
from kvmctl.model.errors import KvmctlError
from kvmctl.model.event import KINDS
from tests.conftest import Kvmctl, environment
from tests.following import Follower
from tests.support import Screen, until

pytestmark = pytest.mark.testdriver
TEST = ("-c", "test:///default")
Follow = Callable[..., Follower]


@pytest.fixture
def env(state: Path, tmp_path: Path) -> dict[str, str]:
    return environment(state, tmp_path / "run")


@pytest.fixture
def follow(env: dict[str, str], tmp_path: Path) -> Follow:
    return lambda *words, **more: Follower(tmp_path, env, *words, world=True, **more)


def test_a_line_for_each_event_as_it_comes(follow: Follow, env: dict[str, str]) -> None:
    env["TZ"] = "Etc/GMT-5"
    with follow() as following:
        following.tell("test.suspend()")
        until(lambda: following.out, bool, 30, "the first line")
        following.tell("test.resume()\ntest.destroy()\ntest.create()")
        until(lambda: following.out, lambda text: "started" in text, 30, "the last line")
        assert following.end() == 130
    lines = [re.split(r"  +", line) for line in following.out.splitlines()]
    assert [line[1:] for line in lines] == [
        ["test", "paused", "on request"],
        ["test", "resumed", "unpaused"],
        ["test", "stopped", "powered off"],
        ["test", "started", "booted"],
    ]
    for (stamp, *_rest), before in zip(lines, [lines[0], *lines], strict=False):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+05:00", stamp)
        assert datetime.fromisoformat(before[0]) <= datetime.fromisoformat(stamp) <= datetime.now().astimezone()
    assert following.err == "following the guests of test:///default; Ctrl-C ends it\n\ninterrupted\n"


def test_json_is_one_object_a_line(follow: Follow) -> None:
    with follow("-o", "json") as following:
        following.tell("test.suspend()\ntest.resume()")
        first, second = following.expect("paused", "resumed")
    assert list(first) == ["time", "guest", "uuid", "event", "detail"]
    assert (first["guest"], first["uuid"]) == ("test", "6695eb01-f6a4-8304-79aa-97f2502e193f")
    assert first["time"] <= second["time"] <= time.time()


def test_yaml_is_a_document_and_name_a_line_for_each(follow: Follow) -> None:
    with follow("-o", "yaml") as following:
        following.tell("test.suspend()\ntest.resume()")
        until(lambda: following.out, lambda text: text.count("detail:") == 2, 30, "two documents")
        assert [event["event"] for event in yaml.safe_load_all(following.out)] == ["paused", "resumed"]
    with follow("-o", "name") as following:
        following.tell("test.suspend()\ntest.resume()")
        until(lambda: following.out, lambda text: text == "test\ntest\n", 30, "two names")


def test_only_the_guests_and_kinds_that_are_asked_for(follow: Follow) -> None:
    xml = "<domain type='test'><name>{}</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    with follow("-o", "json", "w*", "[x]", "--kind", "lifecycle,balloon", "--kind", "reboot") as following:
        assert "no guest on test:///default is named '[x]' yet" in following.err
        for name in ("x", "web1", "test2"):
            following.tell(f'world.defineXML("{xml.format(name)}")')
        following.tell('test.suspend()\nworld.lookupByName("web1").undefine()')
        told = following.expect("defined", "defined", "undefined")
    assert [(event["guest"], event["detail"]) for event in told] == [
        ("x", "new"), ("web1", "new"), ("web1", "removed")
    ]  # fmt: skip
    with follow("-o", "json", "--kind", "balloon,metadata") as following:
        following.tell("test.suspend()")
        following.tell(f'test.setMetadata({libvirt.VIR_DOMAIN_METADATA_TITLE}, "a title", None, None)')
        assert following.expect("metadata")[0]["detail"] == "title"


@pytest.mark.parametrize("output", ["table", "json", "yaml"])
def test_a_name_moves_no_cursor(follow: Follow, output: str) -> None:
    name = "c1\x9b31mred"
    xml = f"<domain type='test'><name>{name}</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    with follow("-o", output) as following:
        following.tell(f'world.defineXML("{xml}")')
        until(lambda: following.out, lambda text: "new" in text, 30, "the line")
    assert [char for char in following.out if not char.isprintable() and char != "\n"] == []
    if output == "json":
        assert following.events[0]["guest"] == name


def test_it_ends_by_itself(kvmctl: Kvmctl) -> None:
    ran = kvmctl(*TEST, "events", "--for", "300ms")
    assert (ran.out, ran.err) == ("", "following the guests of test:///default\n")
    ran = kvmctl(*TEST, "events", "-q", "--for", "0")
    assert (ran.out, ran.err) == ("", "")


def test_ctrl_c_ends_it(screen: Screen, env: dict[str, str]) -> None:
    screen.start(*TEST, "events")
    screen.expect("Ctrl-C ends it")
    screen.type(b"\x03")
    assert screen.wait() == 130
    assert screen.text.endswith("interrupted\r\n")


def test_a_reader_who_has_left_ends_it_quietly(env: dict[str, str]) -> None:
    code = '"$0" -m kvmctl -c test:///default events -q | true; echo ${PIPESTATUS[0]}'
    done = subprocess.run(["bash", "-c", code, sys.executable], capture_output=True, env=env, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (b"0\n", b"")


def test_a_reader_who_leaves_ends_it_quietly(follow: Follow) -> None:
    head = subprocess.Popen(["head", "-n", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with head, follow("-o", "name", to=head.stdin) as following:
        assert head.stdin
        assert head.stdout
        head.stdin.close()
        # What comes together with the line after which the reader leaves is written to nobody.
        following.tell("\n".join(["test.suspend()", "test.resume()"] * 50))
        assert following.wait() == 0
        assert head.stdout.read() == b"test\n"
        assert "Ctrl-C ends it" in following.err.splitlines()[-1]


def test_a_full_disk_is_said(follow: Follow) -> None:
    with Path("/dev/full").open("wb") as full, follow("-o", "json", to=full) as following:
        following.tell("test.suspend()")
        assert following.wait() == 1
        assert "error: cannot write: No space left on device" in following.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--kind", "baloon"), "'baloon' is no kind of event: did you mean balloon?"),
        (("--kind", "lifecycle,"), "'' is no kind of event"),
        (("--for", "soon"), "'soon' is not a duration"),
    ],
)
def test_bad_input(kvmctl: Kvmctl, words: tuple[str, ...], said: str) -> None:
    assert said in kvmctl(*TEST, "events", *words, code=2).err


# The feed itself, with the test driver's guests in this process


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    with open_hypervisor("test:///default") as opened:
        yield opened


def _blink(hypervisor: Hypervisor) -> None:
    domain = hypervisor.connection.lookupByName("test")
    domain.suspend()
    domain.resume()


def test_a_kind_that_libvirt_lacks_is_missing(hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt, "VIR_DOMAIN_EVENT_ID_OF_LATER", 1000, raising=False)
    monkeypatch.setitem(READERS, "refused", {"OF_LATER": READERS["reboot"]["REBOOT"]})
    monkeypatch.setitem(READERS, "unknown", {"UNHEARD_OF": READERS["reboot"]["REBOOT"]})
    with Feed(hypervisor, ("refused", "lifecycle", "unknown")) as feed:
        assert feed.missing == ["refused", "unknown"]
        _blink(hypervisor)
        following = feed.events(30)
        assert [next(following).event for _ in range(2)] == ["paused", "resumed"]
    with pytest.raises(KvmctlError, match="cannot follow the guests of test:///default"):
        Feed(hypervisor, ("refused",))


def test_a_closed_feed_hears_nothing(hypervisor: Hypervisor) -> None:
    first = Feed(hypervisor)
    first.close()
    first.close()
    with Feed(hypervisor) as second:
        _blink(hypervisor)
        following = second.events(30)
        assert [next(following).event for _ in range(2)] == ["paused", "resumed"]
    assert list(first.events(0)) == []


def test_what_is_not_read_is_counted_and_not_kept(hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_WAITING", 3)
    with Feed(hypervisor) as feed:
        for _again in range(3):
            _blink(hypervisor)
        lost = 0
        while lost < 3:
            lost += until(feed.take_lost, bool, 30, "the count of what is lost")
        assert (lost, feed.take_lost()) == (3, 0)
        assert [event.event for event in feed.events(0)] == ["paused", "resumed", "paused"]


# Words


def test_every_kind_has_its_reader() -> None:
    assert tuple(READERS) == KINDS
    assert all(hasattr(libvirt, f"VIR_DOMAIN_EVENT_ID_{event}") for kind in READERS.values() for event in kind)


_LIFECYCLE = (
    "DEFINED", "UNDEFINED", "STARTED", "SUSPENDED", "RESUMED", "STOPPED", "SHUTDOWN", "PMSUSPENDED", "CRASHED"
)  # fmt: skip


@pytest.mark.parametrize("event", _LIFECYCLE)
def test_every_lifecycle_detail_has_words(event: str) -> None:
    number = getattr(libvirt, f"VIR_DOMAIN_EVENT_{event}")
    details = [getattr(libvirt, name) for name in dir(libvirt) if name.startswith(f"VIR_DOMAIN_EVENT_{event}_")]
    assert details
    said = [READERS["lifecycle"]["LIFECYCLE"](number, detail) for detail in details]
    assert all(words.detail for words in said)
    assert len({words.event for words in said}) == 1
    assert READERS["lifecycle"]["LIFECYCLE"](number, 1000).detail is None


@pytest.mark.parametrize(
    ("kind", "event", "told", "words"),
    [
        ("lifecycle", "LIFECYCLE", (99, 1), ("lifecycle-99", None, {})),
        ("balloon", "BALLOON_CHANGE", (262144,), ("balloon", "256MiB", {"balloon": 256 << 20})),
        ("watchdog", "WATCHDOG", (libvirt.VIR_DOMAIN_EVENT_WATCHDOG_PAUSE,), ("watchdog", "the guest is paused", {})),
        ("io-error", "IO_ERROR_REASON", ("/d.raw", "virtio-disk0", libvirt.VIR_DOMAIN_EVENT_IO_ERROR_PAUSE, "enospc"),
         ("io-error", "virtio-disk0 (/d.raw): enospc: the guest is paused",
          {"device": "virtio-disk0", "path": "/d.raw", "reason": "enospc"})),
        ("io-error", "IO_ERROR_REASON", ("", "", 99, ""),
         ("io-error", None, {"device": None, "path": None, "reason": None})),
        ("memory-failure", "MEMORY_FAILURE", (libvirt.VIR_DOMAIN_EVENT_MEMORY_FAILURE_RECIPIENT_GUEST,
                                              libvirt.VIR_DOMAIN_EVENT_MEMORY_FAILURE_ACTION_INJECT, 0),
         ("memory-failure", "memory of the guest: the guest is told", {})),
        ("agent", "AGENT_LIFECYCLE", (1, 2), ("agent-connected", "its channel has changed", {})),
        ("agent", "AGENT_LIFECYCLE", (2, 0), ("agent-disconnected", None, {})),
        ("metadata", "METADATA_CHANGE", (libvirt.VIR_DOMAIN_METADATA_ELEMENT, "urn:x"), ("metadata", "urn:x", {})),
        ("tuning", "TUNABLE", ({"cputune.cpu_shares": 2048, "cputune.vcpupin0": "0-1"},),
         ("tuning", "cpu_shares 2048, vcpupin0 0-1",
          {"tuning": {"cputune.cpu_shares": 2048, "cputune.vcpupin0": "0-1"}})),
        ("job", "JOB_COMPLETED", ({"operation": 5, "time_elapsed": 1700, "downtime": 13, "memory_total": 1024},),
         ("job", "migration to another host, 1.7 s",
          {"operation": "migration to another host", "success": True, "seconds": 1.7, "downtime": 0.013,
           "memory_total": 1024})),
        ("job", "JOB_COMPLETED", ({"operation": 2, "success": False, "errmsg": "No space left"},),
         ("job", "save failed: No space left", {"operation": "save", "success": False})),
        ("job", "JOB_COMPLETED", ({},), ("job", "job", {"operation": "job", "success": True})),
    ],
)  # fmt: skip
def test_words_and_numbers(
    kind: str, event: str, told: tuple[object, ...], words: tuple[str, str | None, dict[str, object]]
) -> None:
    found = READERS[kind][event](*told)
    assert (found.event, found.detail, dict(found.values)) == words
    json.dumps(dict(found.values))
