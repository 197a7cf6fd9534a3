"""Recordings: what is read back is what was written, and decides the same to the last byte."""

from __future__ import annotations

import inspect
import random
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.clusters import FOCUSES, cluster
from tests.unit.device_fleets import in_flight
from tests.unit.fleets import gang, node, pod
from tests.unit.mig_fleets import MigFleet
from tests.unit.random_fleets import examples, fleets, pods_of
from tests.unit.test_kube_scheduler import storage_of, typed

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.plan_text import plan_bytes
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.kube import objects
from gpufleet.kube.values import node_value, pod_value
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.scheduling.recording import Recording, from_bytes, to_bytes

SMALL = Recording(snapshot_of((node("a", gpus=2),), (pod("p", gpus=1), pod("q", gpus=4))))
DATA = to_bytes(SMALL)


def shuffled(value: Any, draw: random.Random) -> Any:
    """The same value with every mapping in another order."""
    if isinstance(value, Mapping):
        items = [(key, shuffled(part, draw)) for key, part in value.items()]
        draw.shuffle(items)
        return dict(items)
    if isinstance(value, Snapshot):
        fields = msgspec.structs.asdict(value)
        return Snapshot(**{name: shuffled(part, draw) for name, part in fields.items()})
    return value


def cluster_recording(focus: str, seed: int) -> Recording:
    """A random cluster of manifests whose pods are all gpufleet's to decide."""
    asked = cluster(focus, seed)
    things = [*asked["pods"], asked["incoming"]]
    snapshot = snapshot_of(
        tuple(node_value(one) for one in typed(asked["nodes"], objects.Node)),
        tuple(pod_value(one) for one in typed(things, objects.Pod)),
        namespaces={n["metadata"]["name"]: n["metadata"]["labels"] for n in asked["namespaces"]},
        **storage_of(asked),
    )
    return Recording(snapshot, Policy(frozenset(one.scheduler for one in pods_of(snapshot))))


def decides_the_same(recording: Recording, seed: int = 0) -> None:
    """The recording comes back as it was, and its plan is that of the live snapshot, whatever the order in
    which the live one came about.
    """
    data = to_bytes(recording)
    back = from_bytes(data, "test")
    assert back == recording
    assert to_bytes(back) == data
    live = shuffled(recording.snapshot, random.Random(seed))
    assert to_bytes(msgspec.structs.replace(recording, snapshot=live)) == data
    plan = decide(live, recording.policy, None, recording.paused)
    assert plan_bytes(back.decide()) == plan_bytes(plan)


@given(fleets(), st.integers(0, 1000), st.data())
@examples(200)
def test_a_crowded_fleet(snapshot: Snapshot, seed: int, data: st.DataObject) -> None:
    keys = sorted(p.key for p in pods_of(snapshot))
    chosen = data.draw(st.sets(st.sampled_from(keys), max_size=2))
    paused = {key: Reason("BindFailed", "may not", key, evidence={"status": 409}) for key in chosen}
    decides_the_same(Recording(snapshot, Policy(), paused), seed)


@given(in_flight(), st.integers(0, 1000))
@examples(100)
def test_a_node_whose_devices_are_being_given(snapshot: Snapshot, seed: int) -> None:
    decides_the_same(Recording(snapshot), seed)


@pytest.mark.parametrize("focus", FOCUSES)
def test_clusters_with_every_stock_constraint(focus: str) -> None:
    for seed in range(40):
        decides_the_same(cluster_recording(focus, seed), seed)


def test_gpus_that_are_cut() -> None:
    fleet = MigFleet(2, 2)
    profiles = ("3g.40gb", "1g.10gb", "1g.10gb", "2g.20gb", "7g.80gb")
    fleet.add(pod(f"p{i}", resources={f"nvidia.com/mig-{name}": 1}) for i, name in enumerate(profiles))
    for step in range(6):
        decides_the_same(Recording(fleet.snapshot()), step)
        fleet.decide()
        fleet.start()
        fleet.cut()


def test_gangs_that_have_succeeded_in_part() -> None:
    members = [pod(f"g{i}", gpus=1, gang=gang("g", 3), owner="job") for i in range(3)]
    done = msgspec.structs.replace(members[0], phase="Succeeded", node="a")
    snapshot = snapshot_of((node("a", gpus=1), node("b", gpus=1)), (done, *members[1:]))
    assert snapshot.gang_successes
    decides_the_same(Recording(snapshot))


def test_a_recording_has_everything_that_a_decision_reads() -> None:
    reads = set(inspect.signature(decide).parameters) - {"ledger"}
    assert set(Recording.__struct_fields__) == reads, (
        "`decide` reads something that a recording does not keep, so what is recorded could not be replayed: "
        "add a field to Recording, and give it to `decide` there and in `SchedulingController`"
    )


def test_a_compressed_file_is_the_same_each_time_and_is_known_by_its_content() -> None:
    packed = to_bytes(SMALL, compressed=True)
    assert packed == to_bytes(SMALL, compressed=True)
    assert len(packed) < len(DATA)
    assert from_bytes(packed, "x") == SMALL


def refusal(data: bytes) -> GpufleetError:
    with pytest.raises(GpufleetError) as caught:
        from_bytes(data, "f.json")
    assert caught.value.message.startswith("f.json ")
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nodes: []\n",
        b"{}",
        b"[1]",
        b"\xff\xfe\x00",
        DATA.replace(b"gpufleet.dev/snapshot", b"gpufleet.dev/else"),
        b'{"kind":"List","items":[]}',
    ],
)
def test_a_file_that_is_no_snapshot_says_so(data: bytes) -> None:
    assert refusal(data).reason == "NotASnapshot"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"version":1', b'"version":2', "version 2"),
        (b'"may_switch"', b'"may_fly"', "Node.may_fly"),
        (b'"fields":{', b'"fields":{"Cohort":["name"],', "Cohort.name"),
    ],
)
def test_a_file_of_a_newer_gpufleet_says_so(old: bytes, new: bytes, words: str) -> None:
    error = refusal(DATA.replace(old, new, 1))
    assert error.reason == "SnapshotTooNew"
    assert words in error.message


def test_a_file_that_lacks_later_fields_is_read_with_their_defaults() -> None:
    older = DATA.replace(b'"may_switch"', b'"name"', 1).replace(b',"may_switch":false', b"", 1)
    assert b"may_switch" not in older
    assert from_bytes(older, "x") == SMALL


def test_a_file_that_was_cut_off_anywhere_is_refused() -> None:
    packed = to_bytes(SMALL, compressed=True)
    for whole in (DATA.rstrip(), packed):
        for length in range(0, len(whole), 7):
            assert refusal(whole[:length]).reason in ("SnapshotDamaged", "NotASnapshot")
    assert refusal(DATA[:-10]).reason == "SnapshotDamaged"
    assert refusal(packed[:-10]).reason == "SnapshotDamaged"


@given(st.integers(0, len(DATA) - 1), st.integers(0, 20), st.binary(max_size=8))
@examples(300)
def test_whatever_happened_to_a_file_it_is_read_or_refused(place: int, cut: int, new: bytes) -> None:
    try:
        from_bytes(DATA[:place] + new + DATA[place + cut :], "f.json").decide()
        reason = ""
    except GpufleetError as error:
        reason = error.reason
    assert reason in ("", "NotASnapshot", "SnapshotDamaged", "SnapshotTooNew")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"name":"a"', b'"name":"b"'),
        (b'"default/p":', b'"default/x":'),
        (b'"node":""', b'"node":"a"'),
    ],
)
def test_a_file_that_was_edited_into_nonsense_is_refused(old: bytes, new: bytes) -> None:
    assert refusal(DATA.replace(old, new, 1)).reason == "SnapshotDamaged"


@pytest.mark.parametrize("start", [b"", DATA[: DATA.index(b'"content":') + 10]])
def test_a_file_that_is_nested_without_end_is_refused(start: bytes) -> None:
    assert refusal(start + b'{"a":' * 200_000).hint


def test_a_compressed_file_with_a_wrong_byte_is_refused() -> None:
    packed = bytearray(to_bytes(SMALL, compressed=True))
    packed[len(packed) // 2] ^= 0xFF
    assert refusal(bytes(packed)).reason == "SnapshotDamaged"


def test_a_value_of_the_wrong_type_is_refused_with_its_place() -> None:
    error = refusal(DATA.replace(b'"name":"a"', b'"name":7', 1))
    assert error.reason == "SnapshotDamaged"
    assert "snapshot.nodes" in error.message
