"""The table of conventions: manifests as their vendors document them, and the gang that each of them means.

The YAML files beside this one are the table: objects that are `given`, of which one is a pod, and what is
`expected` of its gang. What is not expected must not be said.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from gpufleet.fleet.gangs import Gang, SubGroup, Topology
from gpufleet.fleet.pods import Pod
from gpufleet.kube.conventions.gangs import GANG_KINDS
from gpufleet.kube.informers import Change
from gpufleet.kube.snapshot import SnapshotBuilder
from gpufleet.scheduling.gangs import described

Manifest = dict[str, Any]
LEAST = 60


class Form(msgspec.Struct, frozen=True):
    """One row of the table."""

    case: str
    given: list[Manifest]
    expect: dict[str, Any] | str


def table() -> Iterator[tuple[str, Form]]:
    for path in sorted(Path(__file__).parent.glob("*.yaml")):
        for form in msgspec.convert(yaml.safe_load(path.read_text()), list[Form]):
            yield f"{path.stem}: {form.case}", form


FORMS = dict(table())


def told(builder: SnapshotBuilder, manifest: Manifest) -> str:
    """Tell the builder of an object as its informer would; the object's key."""
    for source in builder.sources:
        if (source.kind.api_version, source.kind.kind) == (
            manifest.get("apiVersion", "v1"),
            manifest["kind"],
        ):
            item = msgspec.convert(manifest, source.type)
            source.handler(Change(item.metadata.key, None, item))
            return str(item.metadata.key)
    raise AssertionError(f"nobody watches {manifest['kind']}")


def gone(builder: SnapshotBuilder, manifest: Manifest) -> None:
    for source in builder.sources:
        if (source.kind.api_version, source.kind.kind) == (
            manifest.get("apiVersion", "v1"),
            manifest["kind"],
        ):
            item = msgspec.convert(manifest, source.type)
            source.handler(Change(item.metadata.key, item, None))


def in_words(pod: Pod, gang: Gang | None) -> dict[str, Any] | str:
    """A pod's gang as the table writes it."""
    if pod.gang is None:
        return "none"
    words: dict[str, Any] = {"gang": pod.gang_key, "minimum": "unknown", "rule": pod.gang.rule}
    if pod.gang.subgroup:
        words["subgroup"] = pod.gang.subgroup
    if gang is None:
        return words
    if gang.minimum is not None:
        words["minimum"] = gang.minimum
    assert gang.rule == pod.gang.rule
    words |= {
        field: value
        for field in msgspec.structs.asdict(gang)
        if field not in ("key", "rule", "minimum", "subgroups", "topology", "segment")
        and (value := getattr(gang, field)) not in (None, "")
    }
    words |= {level: name for level in ("required", "preferred") if (name := getattr(gang.topology, level))}
    if gang.subgroups:
        words["subgroups"] = [part(group) for group in gang.subgroups]
    if gang.segment is not None:
        words["segment"] = f"{gang.segment.size}{near(gang.segment.topology)}"
    return words


def part(group: SubGroup) -> str:
    above = f" in {group.parent}" if group.parent else ""
    return f"{group.name} {group.minimum}{above}{near(group.topology)}"


def near(topology: Topology) -> str:
    levels = {"required": topology.required, "preferred": topology.preferred}
    return "".join(f" {level}={name}" for level, name in levels.items() if name)


def meaning(builder: SnapshotBuilder, key: str) -> dict[str, Any] | str:
    pod = builder.pod(key)
    assert pod is not None
    return in_words(pod, described(pod.gang_key, [pod], builder.snapshot().gangs) if pod.gang else None)


def pod_of(form: Form) -> Manifest:
    (pod,) = (one for one in form.given if one["kind"] == "Pod")
    return pod


def test_the_table_is_long_enough() -> None:
    assert len(FORMS) >= LEAST


@pytest.mark.parametrize("name", FORMS)
def test_an_upstream_form_means_the_gang_that_its_vendor_means(name: str) -> None:
    form = FORMS[name]
    builder = SnapshotBuilder()
    keys = [told(builder, manifest) for manifest in form.given]
    assert meaning(builder, keys[-1]) == form.expect


@pytest.mark.parametrize("name", FORMS)
def test_the_order_in_which_objects_come_makes_no_difference(name: str) -> None:
    form = FORMS[name]
    builder = SnapshotBuilder()
    keys = [told(builder, manifest) for manifest in reversed(form.given)]
    found = meaning(builder, keys[0])
    if isinstance(found, dict) and "subgroups" in found and isinstance(form.expect, dict):
        assert sorted(found["subgroups"]) == sorted(form.expect["subgroups"])
        found["subgroups"] = form.expect["subgroups"]
    assert found == form.expect


@pytest.mark.parametrize("name", FORMS)
def test_what_objects_said_is_forgotten_with_them(name: str) -> None:
    form = FORMS[name]
    alone, builder = SnapshotBuilder(), SnapshotBuilder()
    key = told(alone, pod_of(form))
    for manifest in form.given:
        told(builder, manifest)
    for manifest in form.given:
        if manifest["kind"] != "Pod":
            gone(builder, manifest)
    assert builder.snapshot() == alone.snapshot()
    assert builder.pod(key) == alone.pod(key)


def test_an_object_that_does_not_decode_is_told_to_the_pods_that_name_it() -> None:
    builder = SnapshotBuilder()
    pod = {
        "kind": "Pod",
        "metadata": {"name": "w", "namespace": "ml", "annotations": {"pod-group-name": "g"}},
    }
    key = told(builder, pod)
    (source,) = (one for one in builder.sources if one.kind.resource == "podgroups.scheduling.run.ai")
    assert source.unread is not None
    source.unread("ml/g", "")
    assert builder.snapshot().gangs["ml/g"].problem == (
        "the PodGroup ml/g of scheduling.run.ai cannot be read"
    )
    source.unread("ml/g", None)
    assert meaning(builder, key) == {"gang": "ml/g", "minimum": "unknown", "rule": "KAI PodGroup"}


def test_every_kind_that_is_read_has_a_form_in_the_table() -> None:
    given = {(one.get("apiVersion"), one["kind"]) for form in FORMS.values() for one in form.given}
    assert {(one.kind.api_version, one.kind.kind) for one in GANG_KINDS} <= given


def test_a_pod_of_a_job_that_is_made_anew_is_of_the_new_jobs_gang() -> None:
    builder = SnapshotBuilder()
    job = {"apiVersion": "batch/v1", "kind": "Job", "spec": {"parallelism": 2}}
    queue = {"kueue.x-k8s.io/queue-name": "q"}
    told(builder, {**job, "metadata": {"name": "j", "namespace": "ml", "uid": "old", "labels": queue}})
    owner = {"kind": "Job", "name": "j", "uid": "new", "controller": True}
    key = told(
        builder, {"kind": "Pod", "metadata": {"name": "p", "namespace": "ml", "ownerReferences": [owner]}}
    )
    assert meaning(builder, key) == "none"
    told(builder, {**job, "metadata": {"name": "j", "namespace": "ml", "uid": "new", "labels": queue}})
    assert meaning(builder, key) == {
        "gang": "ml/job/j", "minimum": 2, "rule": "Kueue job", "queue": "q"
    }  # fmt: skip
