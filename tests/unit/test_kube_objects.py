"""Our subset structs against the full models of lightkube, generated from the specification of Kubernetes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from lightkube.models import coordination_v1, core_v1, policy_v1, scheduling_v1, storage_v1
from msgspec import inspect as types

from gpufleet.kube import objects
from gpufleet.kube.times import format_micro_time, format_time, parse_time

PAIRS = [
    (objects.Pod, core_v1.Pod),
    (objects.Node, core_v1.Node),
    (objects.Namespace, core_v1.Namespace),
    (objects.PersistentVolume, core_v1.PersistentVolume),
    (objects.PersistentVolumeClaim, core_v1.PersistentVolumeClaim),
    (objects.StorageClass, storage_v1.StorageClass),
    (objects.CSIDriver, storage_v1.CSIDriver),
    (objects.CSINode, storage_v1.CSINode),
    (objects.CSIStorageCapacity, storage_v1.CSIStorageCapacity),
    (objects.Lease, coordination_v1.Lease),
    (objects.PriorityClass, scheduling_v1.PriorityClass),
    (objects.PodDisruptionBudget, policy_v1.PodDisruptionBudget),
]

# One struct of ours serves all conditions; each kind of condition has its own extra time.
# What only Kubernetes 1.35 has is missing in models of later versions.
SHARED = {
    "Condition": {"lastProbeTime", "lastHeartbeatTime", "observedGeneration"},
    "PodSpec": {"workloadRef"},
}


def bare(found: types.Type) -> types.Type:
    """The type without annotations and without None."""
    if isinstance(found, types.Metadata):
        return bare(found.type)
    if isinstance(found, types.UnionType):
        members = [member for member in found.types if not isinstance(member, types.NoneType)]
        return bare(members[0]) if len(members) == 1 else found
    return found


def differences(ours: types.Type, theirs: types.Type, at: str) -> list[str]:
    """Where our type has a field that theirs lacks, or one of another shape."""
    ours, theirs = bare(ours), bare(theirs)
    match ours, theirs:
        case types.StructType(), types.StructType():
            known = {field.encode_name: field.type for field in theirs.fields}
            found: list[str] = []
            for field in ours.fields:
                if field.encode_name in known:
                    found += differences(field.type, known[field.encode_name], f"{at}.{field.encode_name}")
                elif field.encode_name not in SHARED.get(ours.cls.__name__, ()):
                    found.append(f"{at}.{field.encode_name} does not exist")
            return found
        case types.VarTupleType(), types.ListType():
            return differences(ours.item_type, theirs.item_type, f"{at}[]")
        case types.StructType() | types.VarTupleType(), _:
            return [f"{at} is {type(theirs).__name__}"]
        case types.DictType(), _ if not isinstance(theirs, types.DictType):
            return [f"{at} is {type(theirs).__name__}"]
        case types.IntType() | types.BoolType() | types.StrType(), _ if type(ours) is not type(theirs):
            known_as_text = isinstance(ours, types.StrType) and isinstance(
                theirs, types.DateTimeType | types.CustomType
            )
            return [] if known_as_text else [f"{at} is {type(theirs).__name__}"]
    return []


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda pair: pair.__name__)
def test_every_field_exists_in_the_api_under_that_name_and_form(ours: type, theirs: type) -> None:
    assert differences(types.type_info(ours), types.type_info(theirs), ours.__name__) == []


def test_a_field_that_the_api_lacks_would_be_noticed() -> None:
    class Wrong(msgspec.Struct, rename="camel"):
        node_info: str = ""

    assert differences(types.type_info(Wrong), types.type_info(core_v1.NodeSpec), "x") == [
        "x.nodeInfo does not exist"
    ]


def test_what_go_writes_as_null_decodes() -> None:
    node = msgspec.json.decode(
        b'{"metadata":{"name":"n","creationTimestamp":null},"spec":{"drivers":null}}', type=objects.CSINode
    )
    assert node.metadata.creation_timestamp is None
    assert node.spec.drivers is None


def test_unknown_fields_are_dropped_and_defaults_left_out() -> None:
    document = {
        "metadata": {"name": "p", "managedFields": [1]},
        "spec": {"containers": [{"name": "c"}], "new": {}},
    }
    pod = msgspec.convert(document, type=objects.Pod)
    encoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(pod))
    assert encoded == {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}}


def test_times_are_written_as_the_api_server_insists() -> None:
    assert format_time(1.9) == "1970-01-01T00:00:01Z"
    assert format_micro_time(1.5) == "1970-01-01T00:00:01.500000Z"
    assert parse_time("1970-01-01T00:00:01Z") == 1.0
    assert parse_time("1970-01-01T01:00:01.25+01:00") == 1.25
    assert parse_time(None) == parse_time("") == 0.0
