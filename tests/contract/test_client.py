"""The client against a real API server: preconditions, conflicts, ownership, pages, refusals and retries."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from aiohttp import web
from tests.contract.fronts import Front, Tunnel
from tests.contract.servers import ControlPlane, free_port

from gpufleet.kube.client import ApiError, Client, Unreachable
from gpufleet.kube.config import ClusterConfig
from gpufleet.kube.kinds import CONFIG_MAPS, NODES, PODS
from gpufleet.kube.objects import Node, ObjectMeta, Pod


def config_map(name: str, namespace: str, **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": data,
    }


def bare_pod(name: str, namespace: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }


async def test_a_replace_with_an_old_version_conflicts(control_plane: ControlPlane, namespace: str) -> None:
    async with Client(control_plane.config) as client:
        old = await client.create(CONFIG_MAPS, config_map("a", namespace, x="1"))
        await client.replace(CONFIG_MAPS, {**old, "data": {"x": "2"}})
        with pytest.raises(ApiError) as refused:
            await client.replace(CONFIG_MAPS, {**old, "data": {"x": "3"}})
        assert refused.value.conflict
        assert refused.value.reason == "Conflict"
        assert (await client.get(CONFIG_MAPS, "a", namespace))["data"] == {"x": "2"}


async def test_a_merge_patch_with_an_old_version_conflicts(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        old = await client.create(CONFIG_MAPS, config_map("a", namespace, x="1"))
        await client.patch(CONFIG_MAPS, "a", {"data": {"x": "2"}}, namespace)
        guarded = {"metadata": {"resourceVersion": old["metadata"]["resourceVersion"]}, "data": {"x": "3"}}
        with pytest.raises(ApiError) as refused:
            await client.patch(CONFIG_MAPS, "a", guarded, namespace)
        assert refused.value.conflict


async def test_all_kinds_of_patches_do_what_they_say(control_plane: ControlPlane, namespace: str) -> None:
    async with Client(control_plane.config) as client:
        await client.create(PODS, bare_pod("p", namespace))
        await client.patch(PODS, "p", {"metadata": {"labels": {"a": "1"}}}, namespace)
        await client.patch(
            PODS, "p", [{"op": "add", "path": "/metadata/labels/b", "value": "2"}], namespace, strategy="json"
        )
        conditions = {"status": {"conditions": [{"type": "Mine", "status": "True"}]}}
        await client.patch(PODS, "p", conditions, namespace, strategy="strategic", subresource="status")
        others = {"status": {"conditions": [{"type": "Other", "status": "False"}]}}
        pod = await client.patch(
            PODS, "p", others, namespace, strategy="strategic", subresource="status", type=Pod
        )
        assert pod.metadata.labels == {"a": "1", "b": "2"}
        assert {condition.type: condition.status for condition in pod.status.conditions} == {
            "Mine": "True",
            "Other": "False",
        }


async def test_apply_without_force_conflicts_and_names_the_owner(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        await client.apply(CONFIG_MAPS, config_map("a", namespace, x="1"), field_manager="first")
        with pytest.raises(ApiError) as refused:
            await client.apply(
                CONFIG_MAPS, config_map("a", namespace, x="2"), field_manager="second", force=False
            )
        assert refused.value.conflict
        assert "first" in refused.value.message
        assert (await client.get(CONFIG_MAPS, "a", namespace))["data"] == {"x": "1"}


async def test_apply_with_force_takes_only_the_fields_it_names(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        await client.apply(CONFIG_MAPS, config_map("a", namespace, x="1", y="1"), field_manager="first")
        applied = await client.apply(CONFIG_MAPS, config_map("a", namespace, x="2"), field_manager="second")
        owned = {
            entry["manager"]: set(entry["fieldsV1"].get("f:data", {})) - {"."}
            for entry in applied["metadata"]["managedFields"]
        }
        assert applied["data"] == {"x": "2", "y": "1"}
        assert owned == {"first": {"f:y"}, "second": {"f:x"}}


async def test_a_bind_is_refused_for_another_pod_of_the_same_name(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        first = await client.create(PODS, bare_pod("p", namespace), type=Pod)
        await client.delete(PODS, "p", namespace, grace=0)
        second = await client.create(PODS, bare_pod("p", namespace), type=Pod)
        with pytest.raises(ApiError) as refused:
            await client.bind(namespace, "p", uid=first.metadata.uid, node="n1")
        assert refused.value.conflict
        await client.bind(
            namespace, "p", uid=second.metadata.uid, node="n1", annotations={"gpufleet.dev/x": "y"}
        )
        bound = await client.get(PODS, "p", namespace, type=Pod)
        assert bound.spec.node_name == "n1"
        assert bound.metadata.annotations["gpufleet.dev/x"] == "y"
        with pytest.raises(ApiError) as again:
            await client.bind(namespace, "p", uid=second.metadata.uid, node="n2")
        assert again.value.conflict


async def test_a_delete_with_a_uid_spares_the_successor(control_plane: ControlPlane, namespace: str) -> None:
    async with Client(control_plane.config) as client:
        first = await client.create(PODS, bare_pod("p", namespace), type=Pod)
        await client.delete(PODS, "p", namespace, uid=first.metadata.uid, grace=0)
        second = await client.create(PODS, bare_pod("p", namespace), type=Pod)
        with pytest.raises(ApiError) as refused:
            await client.delete(PODS, "p", namespace, uid=first.metadata.uid)
        assert refused.value.conflict
        await client.delete(PODS, "p", namespace, uid=first.metadata.uid, missing_ok=True)
        await client.delete(PODS, "absent", namespace, missing_ok=True)
        assert (await client.get(PODS, "p", namespace, type=Pod)).metadata.uid == second.metadata.uid


async def test_structs_are_created_with_their_kind(control_plane: ControlPlane) -> None:
    async with Client(control_plane.config) as client:
        node = await client.create(
            NODES, Node(metadata=ObjectMeta(name="from-a-struct", labels={"a": "b"})), type=Node
        )
        assert node.metadata.labels["a"] == "b"
        assert node.metadata.uid


async def test_refusals_carry_the_servers_reason_and_message(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        with pytest.raises(ApiError) as missing:
            await client.get(PODS, "absent", namespace)
        assert missing.value.not_found
        assert missing.value.message == 'pods "absent" not found'
        with pytest.raises(ApiError) as invalid:
            await client.create(PODS, {"metadata": {"name": "x"}, "spec": {"containers": []}}, namespace)
        assert invalid.value.status == 422
        assert "spec.containers" in invalid.value.message
        assert invalid.value.details is not None
        assert [cause.field for cause in invalid.value.details.causes] == ["spec.containers"]
        await client.create(PODS, bare_pod("twice", namespace))
        with pytest.raises(ApiError) as twice:
            await client.create(PODS, bare_pod("twice", namespace))
        assert twice.value.already_exists
        assert not twice.value.conflict


async def test_a_list_of_1200_comes_whole_in_chunks_also_when_a_chunk_expires(
    control_plane: ControlPlane, namespace: str
) -> None:
    expire = False

    async def compact_before_the_second_chunk(request: web.Request) -> None:
        nonlocal expire
        if expire and "continue" in request.query:
            expire = False
            async with Client(control_plane.config) as direct:
                made = await direct.create(CONFIG_MAPS, config_map("late", namespace, x="1"))
            await asyncio.to_thread(control_plane.compact, made["metadata"]["resourceVersion"])

    async with (
        Client(control_plane.config) as client,
        Front(control_plane.config, compact_before_the_second_chunk) as front,
        Client(front.config) as fronted,
    ):
        names = {f"cm-{number}" for number in range(1200)}
        await asyncio.gather(*(client.create(CONFIG_MAPS, config_map(name, namespace)) for name in names))
        listing = await fronted.list(CONFIG_MAPS, namespace)
        assert {item["metadata"]["name"] for item in listing.items} == names
        assert len(listing.items) == 1200
        assert len(front.requests) == 3

        front.requests.clear()
        expire = True
        listing = await fronted.list(CONFIG_MAPS, namespace)
        assert {item["metadata"]["name"] for item in listing.items} == {*names, "late"}
        assert len(listing.items) == 1201
        assert len(front.requests) == 3


async def test_429_and_503_with_retry_after_are_waited_for_whatever_the_method(
    control_plane: ControlPlane, namespace: str
) -> None:
    refusals = [429, 503]

    async def busy(_: web.Request) -> web.Response | None:
        return web.Response(status=refusals.pop(), headers={"Retry-After": "1"}) if refusals else None

    async with Front(control_plane.config, busy) as front, Client(front.config) as client:
        started = asyncio.get_running_loop().time()
        await client.create(CONFIG_MAPS, config_map("a", namespace))
        assert asyncio.get_running_loop().time() - started >= 2.0
        assert len(front.requests) == 3


async def test_429_beyond_the_deadline_is_an_error_with_the_time_to_wait(control_plane: ControlPlane) -> None:
    async def busy(_: web.Request) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": "30"})

    async with Front(control_plane.config, busy) as front, Client(front.config, deadline=5) as client:
        with pytest.raises(ApiError) as refused:
            await client.list(PODS)
        assert refused.value.too_many_requests
        assert refused.value.retry_after == 30.0
        assert len(front.requests) == 1


async def test_a_500_is_tried_again_for_reads_only(control_plane: ControlPlane, namespace: str) -> None:
    refusals = 2

    async def broken(_: web.Request) -> web.Response | None:
        nonlocal refusals
        refusals -= 1
        return web.Response(status=500) if refusals >= 0 else None

    async with Front(control_plane.config, broken) as front, Client(front.config) as client:
        await client.list(CONFIG_MAPS, namespace)
        assert len(front.requests) == 3
        refusals = 2
        with pytest.raises(ApiError) as refused:
            await client.create(CONFIG_MAPS, config_map("a", namespace))
        assert refused.value.status == 500
        assert len(front.requests) == 4


async def test_a_guarded_write_asks_before_it_leaves(control_plane: ControlPlane, namespace: str) -> None:
    class RefusedError(Exception):
        pass

    def refuse() -> None:
        raise RefusedError

    async with Client(control_plane.config, guard=refuse) as client:
        with pytest.raises(RefusedError):
            await client.create(CONFIG_MAPS, config_map("a", namespace))
        assert (await client.list(CONFIG_MAPS, namespace)).items == []


async def test_nobody_listening_is_an_error_with_a_hint() -> None:
    async with Client(ClusterConfig(server=f"http://127.0.0.1:{free_port()}")) as client:
        with pytest.raises(Unreachable) as refused:
            await client.list(PODS)
        assert refused.value.reason == "ServerUnreachable"
        assert "can it be reached from here?" in refused.value.hint
        assert not refused.value.sent


async def test_an_untrusted_certificate_is_named_as_such(control_plane: ControlPlane) -> None:
    stranger = ControlPlane.stranger(control_plane.config)
    async with Client(stranger) as client:
        with pytest.raises(Unreachable) as refused:
            await client.list(PODS)
        assert refused.value.reason == "CertificateRejected"
    async with Client(ControlPlane.insecure(stranger)) as client:
        assert (await client.list(PODS)).resource_version


async def test_a_proxy_is_asked_for_a_tunnel_and_the_certificate_is_the_servers(
    control_plane: ControlPlane,
) -> None:
    async with Tunnel(control_plane.config) as tunnel, Client(tunnel.config) as client:
        assert (await client.list(PODS)).resource_version
        assert set(tunnel.asked) == {"CONNECT kubernetes:1 HTTP/1.1"}


async def test_the_tls_server_name_is_what_the_certificate_is_checked_against(
    control_plane: ControlPlane,
) -> None:
    named = msgspec.structs.replace(control_plane.config, tls_server_name="kubernetes")
    async with Client(named) as client:
        assert (await client.list(PODS)).resource_version
    misnamed = msgspec.structs.replace(control_plane.config, tls_server_name="other.example")
    async with Client(misnamed) as client:
        with pytest.raises(Unreachable) as refused:
            await client.list(PODS)
        assert refused.value.reason == "CertificateRejected"
