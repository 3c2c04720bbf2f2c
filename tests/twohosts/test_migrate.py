"""`kvmctl migrate` between two real hosts: guests that count go there and back, with their promises."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.pair import Pair
from tests.twohosts.conftest import Traveller, promised, weight

pytestmark = pytest.mark.twohosts

Make = Callable[..., Traveller]


def test_there_and_back(hosts: Pair, make_traveller: Make) -> None:
    traveller = make_traveller()
    said, before = promised(traveller, hosts.a), traveller.count()
    hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp)
    assert traveller.is_only(hosts.b)
    after = traveller.count()
    assert after > before
    assert promised(traveller, hosts.b) == said != ""
    there = traveller.at(hosts.b)
    assert there is not None
    assert there.autostart() == 1
    # Alone on its host it is entitled to all of it, whatever its shares are worth.
    assert weight(traveller, hosts.b) != 1500
    rows = json.loads(hosts.b.kvmctl("migrate", traveller.name, hosts.a.tcp, "-o", "json").stdout)
    assert traveller.is_only(hosts.a)
    assert traveller.count() > after
    assert rows[0]["result"] == "changed"
    assert rows[0]["downtime"] < rows[0]["seconds"]
    assert rows[0]["sent"] > 1 << 20
    moves = [json.loads(line) for line in (hosts.a.folder / "state/moves.jsonl").read_text().splitlines()]
    assert moves[-1]["guest"] == traveller.name
    assert moves[-1]["expected"] > 0
