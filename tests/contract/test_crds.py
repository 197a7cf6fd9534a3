"""Custom resources generated from Python types, as the real API server takes and enforces them."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import pytest
from msgspec import Meta
from tests.contract.servers import ControlPlane

from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.crds import Column, CustomResource, Rule, crd_manifest, establish
from gpufleet.kube.custom_resources import custom_resources
from gpufleet.kube.gpunode import GPUNode, GPUNodeStatus, GPUResource
from gpufleet.kube.gpunode_writes import write_gpu_node_status
from gpufleet.kube.kinds import CRDS, GPU_NODES, Kind
from gpufleet.kube.objects import ObjectMeta
from gpufleet.kube.objects.meta import APIStruct, Condition

WIDGETS = Kind("contract.gpufleet.dev", "v1alpha1", "widgets", "Widget")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Part(APIStruct, frozen=True, kw_only=True):
    """One part of a widget."""

    name: Annotated[str, Meta(pattern="^[a-z]+$", max_length=20, description="Name of the part.")]
    weight: Annotated[int, Meta(gt=0, le=100)] = 1


class WidgetSpec(APIStruct, frozen=True, kw_only=True):
    """What is wanted of a widget."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(rule="self.low <= self.high", message="low must not exceed high", field_path=".low"),
        Rule(rule="self.colour == oldSelf.colour", message="the colour is for ever"),
    )

    low: Annotated[int, Meta(ge=0, description="The lower bound.")]
    high: Annotated[int, Meta(ge=0, extra_json_schema={"default": 10})] = 10
    colour: Colour
    mode: Literal["fast", "slow"] = "fast"
    share: Annotated[float, Meta(ge=0, le=1)] | None = None
    limit: int | str | None = None
    parts: Annotated[
        tuple[Part, ...],
        Meta(
            max_length=4,
            extra_json_schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = ()
    labels: Annotated[Mapping[str, Annotated[str, Meta(max_length=9)]], Meta(max_length=3)] = {}
    tags: Annotated[frozenset[Annotated[str, Meta(max_length=9)]], Meta(max_length=3)] = frozenset()
    anything: Any = None


class WidgetStatus(APIStruct, frozen=True, kw_only=True):
    """What a widget is."""

    ready: int = 0
    conditions: Annotated[tuple[Condition, ...], Meta(max_length=8)] = ()


class Widget(APIStruct, frozen=True, kw_only=True):
    """A thing to test with."""

    metadata: ObjectMeta
    spec: WidgetSpec
    status: WidgetStatus = WidgetStatus()


WIDGET = CustomResource(
    WIDGETS,
    Widget,
    columns=(
        Column("Colour", "string", ".spec.colour", "Its colour."),
        Column("Ready", "integer", ".status.ready"),
    ),
    short_names=("wdg",),
    selectable=(".spec.colour",),
)


def widget(namespace: str, name: str = "w", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"low": 1, "colour": "red", **spec}}


async def test_every_definition_of_gpufleet_is_established(control_plane: ControlPlane) -> None:
    definitions = custom_resources()
    assert definitions
    async with Client(control_plane.config) as client:
        await establish(client, definitions)
        for definition in definitions:
            served = await client.get(CRDS, definition["metadata"]["name"])
            conditions = {c["type"]: (c["status"], c.get("message")) for c in served["status"]["conditions"]}
            assert conditions["Established"][0] == "True"
            assert conditions["NamesAccepted"][0] == "True"
            assert "NonStructuralSchema" not in conditions
            stored = served["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
            assert stored == definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"], (
                "nothing was pruned"
            )
            names = definition["spec"]["names"]
            kind = Kind(definition["spec"]["group"], "v1alpha1", names["plural"], names["kind"])
            assert await explained(client, kind)


async def test_links_of_gpus_are_kept_as_they_are_and_bounded(control_plane: ControlPlane) -> None:
    links = tuple(tuple(1830 if one // 4 == gpu // 4 else 1810 for one in range(gpu)) for gpu in range(8))
    status = GPUNodeStatus(
        links=links, resources=(GPUResource(name="r", capacity=1, healthy=1, policy="packed"),)
    )
    async with Client(control_plane.config) as client:
        await establish(client, custom_resources())
        await write_gpu_node_status(client, "linked", "uid", status)
        stored = (await client.get(GPU_NODES, "linked", type=GPUNode)).status
        assert (stored.links, stored.resources) == (status.links, status.resources)
        wrongs: tuple[list[list[int]], ...] = ([[-1]], [[0] * 64], [[]] * 65)
        for wrong in wrongs:
            with pytest.raises(ApiError) as refused:
                await client.patch(GPU_NODES, "linked", {"status": {"links": wrong}}, subresource="status")
            assert refused.value.status == 422
        await client.delete(GPU_NODES, "linked")


async def explained(client: Client, kind: Kind) -> str:
    """The description of a kind, from where `kubectl explain` reads it; published a moment after the kind."""
    path = f"/openapi/v3/apis/{kind.group}/{kind.version}"
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(ApiError):
                schemas = msgspec.json.decode(await client.request("GET", path))["components"]["schemas"]
                for name, schema in schemas.items():
                    if name.endswith(f".{kind.kind}"):
                        return str(schema.get("description", ""))
            await asyncio.sleep(0.1)


async def test_a_struct_with_every_kind_of_field_makes_the_round_trip(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        await establish(client, [crd_manifest(WIDGET)])
        wanted = Widget(
            metadata=ObjectMeta(name="w", namespace=namespace),
            spec=WidgetSpec(
                low=1,
                high=3,
                colour=Colour.BLUE,
                mode="slow",
                share=0.5,
                limit="20%",
                parts=(Part(name="a"), Part(name="b", weight=2)),
                labels={"x": "y"},
                tags=frozenset({"t"}),
                anything={"deep": [1, {"er": None}]},
            ),
        )
        made = await client.create(WIDGETS, wanted, type=Widget)
        assert made.spec == wanted.spec
        assert "A thing to test with." in await explained(client, WIDGETS)
        blue = await client.list(WIDGETS, namespace, fields="spec.colour=blue", type=Widget)
        assert [item.metadata.name for item in blue.items] == ["w"]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"low": 5, "high": 4}, "low must not exceed high"),
        ({"low": -1}, "spec.low"),
        ({"low": None}, "spec.low"),
        ({"colour": "green"}, 'supported values: "red", "blue"'),
        ({"mode": "medium"}, "spec.mode"),
        ({"share": 1.5}, "spec.share"),
        ({"limit": True}, "spec.limit"),
        ({"parts": [{"name": "UPPER"}]}, "spec.parts[0].name"),
        ({"parts": [{"name": "a", "weight": 0}]}, "spec.parts[0].weight"),
        ({"parts": [{"name": "a"}, {"name": "a"}]}, "Duplicate value"),
        ({"parts": [{"name": n} for n in "abcde"]}, "must have at most 4 items"),
        ({"labels": dict.fromkeys("abcd", "x")}, "must have at most 3"),
        ({"tags": ["a", "a"]}, "Duplicate value"),
    ],
)
async def test_the_server_enforces_what_the_type_says(
    control_plane: ControlPlane, namespace: str, spec: dict[str, Any], complaint: str
) -> None:
    async with Client(control_plane.config) as client:
        await establish(client, [crd_manifest(WIDGET)])
        with pytest.raises(ApiError) as refused:
            await client.create(WIDGETS, widget(namespace, **spec))
        assert refused.value.status == 422
        assert complaint in refused.value.message


async def test_absent_and_null_optionals_are_accepted_and_defaults_applied(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        await establish(client, [crd_manifest(WIDGET)])
        made = await client.create(WIDGETS, widget(namespace, share=None, limit=None))
        assert made["spec"]["high"] == 10


async def test_a_transition_rule_forbids_the_change(control_plane: ControlPlane, namespace: str) -> None:
    async with Client(control_plane.config) as client:
        await establish(client, [crd_manifest(WIDGET)])
        await client.create(WIDGETS, widget(namespace))
        with pytest.raises(ApiError) as refused:
            await client.patch(WIDGETS, "w", {"spec": {"colour": "blue"}}, namespace)
        assert "the colour is for ever" in refused.value.message


async def test_status_is_written_by_its_subresource_only(control_plane: ControlPlane, namespace: str) -> None:
    async with Client(control_plane.config) as client:
        await establish(client, [crd_manifest(WIDGET)])
        made = await client.create(WIDGETS, {**widget(namespace), "status": {"ready": 7}})
        assert "status" not in made
        await client.patch(WIDGETS, "w", {"status": {"ready": 1}}, namespace)
        found = await client.get(WIDGETS, "w", namespace, type=Widget)
        assert found.status.ready == 0
        patch = {"spec": {"low": 9}, "status": {"ready": 2}}
        patched = await client.patch(WIDGETS, "w", patch, namespace, subresource="status", type=Widget)
        assert (patched.spec.low, patched.status.ready) == (1, 2)
        assert patched.metadata.generation == 1


async def test_lists_with_keys_are_merged_by_server_side_apply(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        await establish(client, [crd_manifest(WIDGET)])
        await client.apply(WIDGETS, widget(namespace, parts=[{"name": "a"}]), field_manager="first")
        other = {
            "metadata": {"name": "w", "namespace": namespace},
            "spec": {"parts": [{"name": "b", "weight": 3}]},
        }
        merged = await client.apply(WIDGETS, other, field_manager="second", type=Widget)
        assert {part.name: part.weight for part in merged.spec.parts} == {"a": 1, "b": 3}
        ready = {**other, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        await client.apply(WIDGETS, ready, field_manager="first", subresource="status")
        sick = {**other, "status": {"conditions": [{"type": "Sick", "status": "False"}]}}
        both = await client.apply(WIDGETS, sick, field_manager="second", subresource="status", type=Widget)
        assert {condition.type for condition in both.status.conditions} == {"Ready", "Sick"}


async def test_columns_names_and_category_are_what_kubectl_shows(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        await establish(client, [crd_manifest(WIDGET)])
        await client.create(WIDGETS, widget(namespace))
        found = msgspec.json.decode(await client.request("GET", "/apis/contract.gpufleet.dev/v1alpha1"))
        (resource,) = [r for r in found["resources"] if r["name"] == "widgets"]
        assert resource["shortNames"] == ["wdg"]
        assert resource["singularName"] == "widget"
        assert resource["categories"] == ["gpufleet"]
        columns = (await client.get(CRDS, "widgets.contract.gpufleet.dev"))["spec"]["versions"][0]
        assert [column["name"] for column in columns["additionalPrinterColumns"]] == [
            "Colour",
            "Ready",
            "Age",
        ]
