from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.backup import Manifest, Part, lineage, parse, sums, text
from kvmctl.model.errors import ConflictError, UsageError

pytestmark = pytest.mark.unit

SUM = "0" * 64
PARTS = (
    Part("disks/sda.seed", 3, SUM, "sda"),
    Part("disks/vda.qcow2", 5, SUM, "vda", 4096),
    Part("domain.xml", 7, SUM),
)
FULL = Manifest("20261126-053000-full", "web1", "u", "full", None, "t", "kvmctl-1", "off", "kvmctl", PARTS)
NEXT = Manifest("20261127-053000-incremental", "web1", "u", "incremental", FULL.id, "t", None, "off", "kvmctl", PARTS)


def changed(**values: Any) -> str:
    return json.dumps(json.loads(text(FULL)) | values)


def part(**values: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text(FULL))["parts"][1]
    return found | values


@pytest.mark.parametrize("one", [FULL, NEXT])
def test_what_is_written_is_read(one: Manifest) -> None:
    assert parse(text(one)) == one
    assert one.size == 15
    assert one.targets == ("vda",)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        changed(version=2),
        changed(format="tar"),
        changed(kind="whole"),
        changed(id="../../etc"),
        changed(parent="20261126-053000-full"),
        changed(guest=None),
        changed(more=1),
        changed(parts=[]),
        changed(parts=[part(), part()]),
        changed(parts=[part(name="../../etc/passwd")]),
        changed(parts=[part(name="disks/../../x.qcow2")]),
        changed(parts=[part(name="/etc/passwd")]),
        changed(parts=[part(sha256="0")]),
        changed(parts=[part(size=-1)]),
        changed(parts=[part(size=True)]),
        changed(parts=[part(capacity=None)]),
        changed(parts=[part(target="vdb")]),
        changed(parts=[part(more=1)]),
        changed(parts=[3]),
    ],
)
def test_what_it_could_not_have_said_is_refused(content: str) -> None:
    with pytest.raises(UsageError):
        parse(content)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(list(json.loads(text(FULL)))), json_values)
def test_any_other_value_is_refused_or_read(key: str, value: object) -> None:
    try:
        parse(changed(**{key: value}))
    except UsageError:
        return


@given(st.text(max_size=200))
def test_any_text_is_refused(content: str) -> None:
    with pytest.raises(UsageError):
        parse(content)


def test_what_a_backup_needs() -> None:
    known = {FULL.id: FULL, NEXT.id: NEXT}
    assert lineage(known, NEXT.id) == [FULL, NEXT]
    with pytest.raises(ConflictError, match="not there"):
        lineage({NEXT.id: NEXT}, NEXT.id)


def test_sums_are_as_sha256sum_has_them() -> None:
    assert sums(PARTS[1:]) == f"{SUM}  disks/vda.qcow2\n{SUM}  domain.xml\n"
