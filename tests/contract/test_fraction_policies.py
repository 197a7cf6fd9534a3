"""How a pod with a fraction of a GPU gets its variable, and what such a pod may not say, as the real API
server has it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from tests.contract.servers import ControlPlane

from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.fraction_policies import (
    AS_CREATED,
    NAME,
    OWN_GPUS,
    VISIBLE_DEVICES,
    VISIBLE_PATH,
    fraction_policies,
)
from gpufleet.kube.kinds import PODS

HALF = {"gpu-fraction": "0.5"}
TAKEN = {
    "name": VISIBLE_DEVICES,
    "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": VISIBLE_PATH}},
}
PORTION = {
    "name": "GPU_PORTION",
    "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.annotations['gpu-fraction']"}},
}
Env = Sequence[Mapping[str, Any]]

_numbers = itertools.count()


def pod(
    name: str,
    annotations: Mapping[str, str],
    env: Env | None = None,
    *,
    second: Env = (),
    init: Env = (),
    scheduler: str = "gpufleet",
) -> dict[str, Any]:
    """A pod of two containers, `main` and `side`, and an init container."""

    def container(named: str, variables: Env | None) -> dict[str, Any]:
        found: dict[str, Any] = {"name": named, "image": "registry.invalid/image:1"}
        return found if variables is None else {**found, "env": list(variables)}

    spec = {
        "schedulerName": scheduler,
        "containers": [container("main", env), container("side", second or None)],
        "initContainers": [container("first", init or None)],
    }
    return {"metadata": {"name": name, "annotations": dict(annotations)}, "spec": spec}


async def enforce(client: Client, namespace: str) -> None:
    """Install the policies and wait until the server has taken notice of them."""
    for kind, policy in fraction_policies(["gpufleet", "kai-scheduler"]):
        await client.apply(kind, policy, field_manager="contract")
    async with asyncio.timeout(30):
        while await created(client, namespace, pod(f"probe-{next(_numbers)}", HALF)) == [None, None]:
            await asyncio.sleep(0.1)
        while await passes(client, namespace):
            await asyncio.sleep(0.1)


async def passes(client: Client, namespace: str) -> str:
    """The name of a new pod that names its GPUs itself; empty where it is refused."""
    name = f"all-{next(_numbers)}"
    try:
        await client.create(PODS, pod(name, HALF, literal("all")), namespace)
    except ApiError:
        return ""
    return name


def literal(value: str) -> Env:
    return [{"name": VISIBLE_DEVICES, "value": value}]


async def created(client: Client, namespace: str, body: dict[str, Any]) -> list[Any]:
    """The variables of each container of a pod as the server has made it."""
    found = await client.create(PODS, body, namespace)
    return [one.get("env") for one in found["spec"]["containers"]]


async def refused(client: Client, namespace: str, body: dict[str, Any]) -> str:
    with pytest.raises(ApiError) as error:
        await client.create(PODS, body, namespace)
    assert error.value.status == 403
    return error.value.message


async def test_the_container_with_the_fraction_gets_the_variables_before_its_own(
    control_plane: ControlPlane, namespace: str
) -> None:
    own = {"name": "SEEN", "value": f"$({VISIBLE_DEVICES})"}
    async with Client(control_plane.config) as client:
        await enforce(client, namespace)
        assert await created(client, namespace, pod("bare", HALF)) == [[PORTION, TAKEN], None]
        assert await created(client, namespace, pod("own", HALF, [own])) == [[PORTION, TAKEN, own], None]
        chosen = {**HALF, "gpu-fraction-container-name": "side"}
        assert await created(client, namespace, pod("side", chosen)) == [None, [PORTION, TAKEN]]
        assert await created(client, namespace, pod("mib", {"gpu-memory": "2000"})) == [[TAKEN], None]
        assert await created(client, namespace, pod("kai", HALF, scheduler="kai-scheduler")) == [
            [PORTION, TAKEN],
            None,
        ]


async def test_others_are_left_alone_and_so_is_what_is_there_already(
    control_plane: ControlPlane, namespace: str
) -> None:
    portion = {"name": "GPU_PORTION", "value": "half"}
    async with Client(control_plane.config) as client:
        await enforce(client, namespace)
        assert await created(client, namespace, pod("plain", {})) == [None, None]
        other = pod("other", HALF, literal("all"), scheduler="volcano")
        assert await created(client, namespace, other) == [list(literal("all")), None]
        nobody = pod("nobody", {**HALF, "gpu-fraction-container-name": "nobody"})
        assert await created(client, namespace, nobody) == [None, None]
        done = pod("done", HALF, [TAKEN, portion])
        assert await created(client, namespace, done) == [[TAKEN, portion], None]
        assert await created(client, namespace, pod("all", {}, literal("all"))) == [
            list(literal("all")),
            None,
        ]


async def test_a_pod_that_says_itself_which_gpus_it_sees_is_refused(
    control_plane: ControlPlane, namespace: str
) -> None:
    keyed: Env = [{"name": VISIBLE_DEVICES, "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]
    async with Client(control_plane.config) as client:
        await enforce(client, namespace)
        for number, env in enumerate((literal("all"), literal("void"), keyed, [TAKEN, *literal("0")])):
            assert OWN_GPUS in await refused(client, namespace, pod(f"main-{number}", HALF, env))
        assert OWN_GPUS in await refused(client, namespace, pod("side", HALF, second=literal("all")))
        assert OWN_GPUS in await refused(client, namespace, pod("init", HALF, init=literal("0")))
        fine = pod("fine", HALF, second=literal("void"), init=literal("none"))
        assert await created(client, namespace, fine) == [[PORTION, TAKEN], list(literal("void"))]


async def test_a_fraction_stays_as_it_was_created(control_plane: ControlPlane, namespace: str) -> None:
    async with Client(control_plane.config) as client:
        await enforce(client, namespace)
        await client.create(PODS, pod("half", HALF), namespace)
        await client.create(PODS, pod("plain", {}), namespace)
        for name, changed in (
            ("half", {"gpu-fraction": None}),
            ("half", {"gpu-fraction": "0.1"}),
            ("half", {"gpu-fraction-num-devices": "2"}),
            ("plain", HALF),
        ):
            for subresource in (None, "status"):
                patch = {"metadata": {"annotations": changed}}
                with pytest.raises(ApiError) as error:
                    await client.patch(PODS, name, patch, namespace, subresource=subresource)
                assert AS_CREATED in error.value.message
        note = {"metadata": {"annotations": {"example.com/note": "mine"}}}
        await client.patch(PODS, "half", note, namespace)
        await client.patch(PODS, "half", {"status": {"phase": "Running"}}, namespace, subresource="status")
        await client.delete(PODS, "half", namespace, grace=0)


async def test_a_pod_from_before_the_policies_goes_on(control_plane: ControlPlane, namespace: str) -> None:
    async with Client(control_plane.config) as client:
        await enforce(client, namespace)
        for kind, _ in fraction_policies([]):
            await client.delete(kind, NAME)
        async with asyncio.timeout(30):
            while not (old := await passes(client, namespace)):
                await asyncio.sleep(0.1)
        await enforce(client, namespace)
        await client.patch(PODS, old, {"status": {"phase": "Failed"}}, namespace, subresource="status")
