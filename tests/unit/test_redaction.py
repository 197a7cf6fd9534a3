"""Redaction: no name is left, and the plan is the same with the names replaced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.clusters import FOCUSES
from tests.unit.device_fleets import in_flight
from tests.unit.fleets import gang, node, pod
from tests.unit.mig_fleets import MigFleet
from tests.unit.random_fleets import examples, fleets, pods_of
from tests.unit.test_recording import cluster_recording

from gpufleet.fleet.plans import Bind, BindVolume, Cut, Evict, Nominate, Plan, SelectNode, Unschedulable
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.fleet.texts import text_places, with_texts
from gpufleet.scheduling.recording import Recording, from_bytes, to_bytes
from gpufleet.scheduling.redaction import Redaction
from gpufleet.scheduling.redaction_places import NAMES, SENTENCES, STAYS, VALUES


def acts(plan: Plan, redaction: Redaction | None = None) -> list[tuple[object, ...]]:
    """What a plan does, in order, with the names of a redaction where one is given."""

    def name(text: str) -> str:
        return redaction.pseudonym(text) if redaction is not None else text

    told: list[tuple[object, ...]] = []
    for action in plan.actions:
        codes = tuple(reason.code for reason in action.reasons)
        what: tuple[object, ...]
        match action:
            case Bind():
                picks = [(name(p.container), p.resource, *map(name, p.devices)) for p in action.picks]
                what = (name(action.node), picks)
            case SelectNode():
                what = (name(action.claim), name(action.node))
            case BindVolume():
                what = (name(action.claim), name(action.volume))
            case Evict():
                what = (name(action.node), name(action.beneficiary))
            case Nominate():
                what = (name(action.node),)
            case Cut():
                what = (name(action.node), name(action.gpu), action.profile, action.start, action.layout)
            case Unschedulable():
                what = (action.helped_by_capacity,)
        told.append((type(action).__name__, name(action.pod.key), *what, codes))
    return told


def decides_alike(recording: Recording) -> Redaction:
    """Whether a recording decides the same without its names; the redaction."""
    redaction = Redaction(recording)
    assert from_bytes(to_bytes(redaction.recording), "x") == redaction.recording
    assert acts(redaction.recording.decide()) == acts(recording.decide(), redaction)
    return redaction


NAMES_IN_USE = ("team", "team-a", "a", "a-", "web", "web-2", "web-10", "x1", "z", "job", "job-1-long")
"""Names whose order depends on what follows them, and on their length."""


def named(snapshot: Snapshot, draw: st.DataObject) -> Snapshot:
    """The snapshot with other names of nodes, namespaces and pods."""
    texts = sorted({*snapshot.nodes, *(p.name for p in pods_of(snapshot)), "default"})
    made = [f"{one}{two}" for one in NAMES_IN_USE for two in ("", "-1", "5")]
    chosen = draw.draw(st.lists(st.sampled_from(made), min_size=len(texts), max_size=len(texts), unique=True))
    new = dict(zip(texts, chosen, strict=True))

    def rename(place: str, text: str, key: str) -> str:
        return "/".join(new.get(part, part) for part in text.split("/")) if place not in STAYS else text

    return with_texts(snapshot, rename)


@given(fleets(most_pods=4), st.data())
@examples(150)
def test_a_crowded_fleet_with_any_names(snapshot: Snapshot, data: st.DataObject) -> None:
    changed = named(snapshot, data)
    keys = sorted(p.key for p in pods_of(changed))
    paused = {key: Reason("BindFailed", f"{key} may not", key) for key in keys[:1]}
    decides_alike(Recording(changed, paused=paused))


def test_ties_go_to_the_first_by_name_as_before() -> None:
    """`team-a/x` comes before `team/x`, though `team` comes before `team-a`."""
    pods = (pod("x", gpus=1, namespace="team"), pod("x", gpus=1, namespace="team-a"))
    recording = Recording(snapshot_of((node("a", gpus=1),), pods))
    (bind,) = [action for action in recording.decide().actions if isinstance(action, Bind)]
    assert bind.pod.namespace == "team-a"
    decides_alike(recording)


def test_members_of_a_gang_are_placed_in_the_order_of_their_numbers() -> None:
    pods = tuple(pod(f"w-{number}", gpus=1, gang=gang("g", 2)) for number in (10, 2, 9))
    recording = Recording(snapshot_of((node("a", gpus=1), node("b", gpus=1)), pods))
    assert [action.pod.name for action in recording.decide().actions if isinstance(action, Bind)] == [
        "w-2",
        "w-9",
    ]
    decides_alike(recording)


@given(in_flight())
@examples(60)
def test_a_node_whose_devices_are_being_given(snapshot: Snapshot) -> None:
    decides_alike(Recording(snapshot))


@pytest.mark.parametrize("focus", FOCUSES)
def test_clusters_with_every_stock_constraint(focus: str) -> None:
    for seed in range(100, 160):
        decides_alike(cluster_recording(focus, seed))


def test_gpus_that_are_cut() -> None:
    fleet = MigFleet(2, 2)
    fleet.add(pod(f"p{i}", resources={f"nvidia.com/mig-{name}": 1}) for i, name in enumerate(["3g.40gb"] * 5))
    decides_alike(Recording(fleet.snapshot()))


def test_no_name_is_left_and_what_says_what_a_machine_is_stays() -> None:
    labels = {"nvidia.com/gpu.product": "NVIDIA-H100", "rack": "secret-rack", "team": "secret-team"}
    snapshot = snapshot_of(
        (node("secret-node", gpus=2, labels=labels, taints=("nvidia.com/gpu=present:NoSchedule",)),),
        (
            pod("secret-pod", gpus=2, node="secret-node", owner="secret-owner", namespace="secret-space"),
            pod("secret-wait", gpus=1, gang=gang("secret-gang", 2), labels={"app": "secret-app"}),
        ),
        namespaces={"secret-space": {"kubernetes.io/metadata.name": "secret-space"}},
    )
    reason = Reason(
        "BindFailed", "secret-pod may not", "secret-space/secret-pod", evidence={"who": "secret-x"}
    )
    redaction = decides_alike(Recording(snapshot, paused={"secret-space/secret-pod": reason}))
    data = to_bytes(redaction.recording)
    assert b"secret" not in data
    for word in (b"NVIDIA-H100", b"nvidia.com/gpu", b"present", b"rack", b"BindFailed"):
        assert word in data
    (space,) = redaction.recording.snapshot.namespaces
    assert redaction.recording.snapshot.namespaces[space] == {"kubernetes.io/metadata.name": space}
    assert redaction.pseudonym("secret-space/secret-pod").startswith(f"{space}/")


def test_the_same_recording_is_redacted_the_same_way() -> None:
    recording = cluster_recording("everything", 7)
    assert to_bytes(Redaction(recording).recording) == to_bytes(Redaction(recording).recording)


def test_every_text_of_a_recording_has_been_judged() -> None:
    places = set(text_places(Recording))
    judged = [STAYS, VALUES, SENTENCES, NAMES]
    unjudged = places - frozenset().union(*judged)
    assert not unjudged, (
        "a recorded value has a new text; it is redacted as a name until redaction_places.py says what it "
        f"is: add to STAYS, VALUES, SENTENCES or NAMES: {', '.join(sorted(unjudged))}"
    )
    assert sum(map(len, judged)) == len(places), "a place is in two tables, or is no place any more"
