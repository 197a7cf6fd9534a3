"""Who may say which devices a pod gets: the policy, as the real API server enforces it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from tests.contract.servers import ControlPlane

from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.conventions.picked_devices import DEVICES_ANNOTATION, annotated, picks_in
from gpufleet.kube.kinds import NODES, PODS, VALIDATING_POLICIES, VALIDATING_POLICY_BINDINGS
from gpufleet.kube.objects import Pod
from gpufleet.kube.picks_policy import MESSAGE, picks_policy, picks_policy_binding

FORGED = {DEVICES_ANNOTATION: '{"main": {"nvidia.com/gpu": ["GPU-2"]}}'}


def pod(name: str, **metadata: Any) -> dict[str, Any]:
    """A pod that nobody runs."""
    containers = [{"name": "main", "image": "registry.invalid/image:1"}]
    return {"metadata": {"name": name, **metadata}, "spec": {"containers": containers}}


async def enforce(client: Client, namespace: str) -> None:
    """Install the policy and wait until the server has taken notice of it."""
    await client.apply(VALIDATING_POLICIES, picks_policy(), field_manager="contract")
    await client.apply(VALIDATING_POLICY_BINDINGS, picks_policy_binding(), field_manager="contract")
    async with asyncio.timeout(30):
        for number in range(1000):
            try:
                await client.create(PODS, pod(f"probe-{number}", annotations=FORGED), namespace)
            except ApiError as error:
                if error.status != 403:
                    raise
                return
            await asyncio.sleep(0.1)


async def bound(client: Client, name: str, namespace: str) -> Mapping[str, str]:
    """The annotations of a pod after it was bound with a pick."""
    created = await client.create(PODS, pod(name), namespace, type=Pod)
    picks = picks_in({DEVICES_ANNOTATION: '{"main": {"nvidia.com/gpu": ["GPU-1"]}}'})
    await client.bind(namespace, name, uid=created.metadata.uid, node="nowhere", annotations=annotated(picks))
    found = await client.get(PODS, name, namespace, type=Pod)
    assert found.spec.node_name == "nowhere"
    return found.metadata.annotations


async def test_only_a_binding_says_which_devices_a_pod_gets(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        await enforce(client, namespace)
        with pytest.raises(ApiError) as refused:
            await client.create(PODS, pod("forged", annotations=FORGED), namespace)
        assert refused.value.status == 403
        assert MESSAGE in refused.value.message
        annotations = await bound(client, "picked", namespace)
        assert annotations[DEVICES_ANNOTATION] == '{"main":{"nvidia.com/gpu":["GPU-1"]}}'


async def test_nobody_changes_or_removes_what_was_picked(control_plane: ControlPlane, namespace: str) -> None:
    async with Client(control_plane.config) as client:
        await enforce(client, namespace)
        before = await bound(client, "p", namespace)
        for value in (FORGED[DEVICES_ANNOTATION], None):
            patch = {"metadata": {"annotations": {DEVICES_ANNOTATION: value}}}
            for subresource in (None, "status"):
                with pytest.raises(ApiError) as refused:
                    await client.patch(PODS, "p", patch, namespace, subresource=subresource)
                assert refused.value.status == 403
                assert MESSAGE in refused.value.message
        found = await client.get(PODS, "p", namespace, type=Pod)
        assert found.metadata.annotations == before


async def test_a_pod_without_a_pick_gets_none_later(control_plane: ControlPlane, namespace: str) -> None:
    async with Client(control_plane.config) as client:
        await enforce(client, namespace)
        await client.create(PODS, pod("p"), namespace)
        with pytest.raises(ApiError) as refused:
            await client.patch(PODS, "p", {"metadata": {"annotations": FORGED}}, namespace)
        assert refused.value.status == 403


async def test_everything_else_about_pods_and_other_objects_is_left_to_their_owners(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        await enforce(client, namespace)
        await bound(client, "p", namespace)
        note = {"metadata": {"annotations": {"example.com/note": "mine"}, "labels": {"a": "b"}}}
        await client.patch(PODS, "p", note, namespace)
        await client.patch(PODS, "p", {"status": {"phase": "Running"}}, namespace, subresource="status")
        await client.create(PODS, pod("plain", annotations={"example.com/note": "mine"}), namespace)
        node = {"metadata": {"name": f"node-{namespace}", "annotations": FORGED}}
        await client.create(NODES, node)
        await client.delete(PODS, "p", namespace, grace=0)
