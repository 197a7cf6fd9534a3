"""Leader election against a real API server, with processes that are really stopped and killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.contract.servers import ControlPlane

from gpufleet.kube.client import Client, NotLeader
from gpufleet.kube.kinds import CONFIG_MAPS, LEASES
from gpufleet.kube.leases import LeaderElector, steady_clock
from gpufleet.kube.objects import Lease
from gpufleet.kube.times import parse_time

LEASE_SECONDS = 3.0
RENEW_SECONDS = 2.0
PROGRAM = Path(__file__).with_name("leader_process.py")


def elector(control_plane: ControlPlane, namespace: str, identity: str) -> LeaderElector:
    return LeaderElector(
        control_plane.config,
        namespace=namespace,
        name="leader",
        identity=identity,
        lease_seconds=int(LEASE_SECONDS),
        renew_seconds=RENEW_SECONDS,
        retry_seconds=0.4,
    )


async def lease_of(client: Client, namespace: str) -> Lease:
    return await client.get(LEASES, "leader", namespace, type=Lease)


@asynccontextmanager
async def leader_process(
    control_plane: ControlPlane, namespace: str, folder: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    kubeconfig = control_plane.write_kubeconfig(
        folder / "kubeconfig", {"token": next(iter(control_plane.tokens))}
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROGRAM),
        str(kubeconfig),
        namespace,
        "leader",
        "child",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert await line_from(process) == "leading"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line_from(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        return (await process.stdout.readline()).decode().strip()


async def tell(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"write\n")
    await process.stdin.drain()


async def test_a_leader_that_was_stopped_past_its_lease_writes_nothing_more(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    async with Client(control_plane.config) as client:
        await client.create(CONFIG_MAPS, {"metadata": {"name": "written", "namespace": namespace}})
        async with leader_process(control_plane, namespace, tmp_path) as child:
            await tell(child)
            assert await line_from(child) == "wrote"

            os.kill(child.pid, signal.SIGSTOP)
            await tell(child)
            second = elector(control_plane, namespace, "second")
            second.start()
            await asyncio.wait_for(second.wait_leading(), 20)
            lease = await lease_of(client, namespace)
            assert lease.spec.holder_identity == second.identity
            assert lease.spec.lease_transitions == 2
            await client.patch(CONFIG_MAPS, "written", {"data": {"by": "second"}}, namespace)
            version = (await client.get(CONFIG_MAPS, "written", namespace))["metadata"]["resourceVersion"]

            os.kill(child.pid, signal.SIGCONT)
            said = {await line_from(child), await line_from(child)}
            assert said == {"refused NotLeader", "lost"}
            await tell(child)
            assert await line_from(child) == "refused NotLeader"
            written = await client.get(CONFIG_MAPS, "written", namespace)
            assert written["metadata"]["resourceVersion"] == version
            assert second.leading()
            assert (await lease_of(client, namespace)).spec.holder_identity == second.identity
            await asyncio.to_thread(second.stop)


async def test_the_next_leader_waits_until_the_lease_of_a_killed_one_has_run_out(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    async with leader_process(control_plane, namespace, tmp_path) as child:
        second = elector(control_plane, namespace, "second")
        second.start()
        await asyncio.sleep(1.0)
        child.kill()
        await child.wait()
        async with Client(control_plane.config) as client:
            left = await lease_of(client, namespace)
            await asyncio.wait_for(second.wait_leading(), 20)
            taken = await lease_of(client, namespace)
        assert left.spec.holder_identity != taken.spec.holder_identity == second.identity
        assert parse_time(taken.spec.acquire_time) - parse_time(left.spec.renew_time) >= LEASE_SECONDS
        await asyncio.to_thread(second.stop)


async def test_a_leader_that_stops_gives_its_lease_back_for_the_next(
    control_plane: ControlPlane, namespace: str
) -> None:
    first, second = elector(control_plane, namespace, "first"), elector(control_plane, namespace, "second")
    first.start()
    await asyncio.wait_for(first.wait_leading(), 20)
    second.start()
    await asyncio.sleep(0.6)
    assert first.leading()
    assert not second.leading()
    with pytest.raises(NotLeader):
        second.guard()

    await asyncio.to_thread(first.stop)
    with pytest.raises(NotLeader):
        first.guard()
    await asyncio.wait_for(first.wait_lost(), 5)
    async with Client(control_plane.config) as client:
        assert (await lease_of(client, namespace)).spec.holder_identity in ("", second.identity)
        await asyncio.wait_for(second.wait_leading(), 20)
        assert second.transitions == first.transitions + 1
        await asyncio.to_thread(second.stop)
        assert (await lease_of(client, namespace)).spec.holder_identity == ""


async def test_a_decision_that_blocks_the_main_thread_does_not_cost_the_lease(
    control_plane: ControlPlane, namespace: str
) -> None:
    leader = elector(control_plane, namespace, "busy")
    leader.start()
    await asyncio.wait_for(leader.wait_leading(), 20)
    until = time.monotonic() + LEASE_SECONDS + 0.5
    while time.monotonic() < until:
        sum(range(1000))
    leader.guard()
    await asyncio.to_thread(leader.stop)


async def test_a_leader_without_its_server_stops_writing_before_its_lease_runs_out(
    control_plane: ControlPlane, namespace: str
) -> None:
    leader = elector(control_plane, namespace, "cut-off")
    leader.start()
    await asyncio.wait_for(leader.wait_leading(), 20)
    await asyncio.to_thread(control_plane.kill_server)
    try:
        assert leader._leads_until <= steady_clock() + RENEW_SECONDS < steady_clock() + LEASE_SECONDS
        await asyncio.wait_for(leader.wait_lost(), 20)
        with pytest.raises(NotLeader):
            leader.guard()
        with pytest.raises(NotLeader):
            await leader.wait_leading()
    finally:
        await asyncio.to_thread(control_plane.start_server)


async def test_a_lease_taken_away_ends_the_term(control_plane: ControlPlane, namespace: str) -> None:
    leader = elector(control_plane, namespace, "robbed")
    leader.start()
    await asyncio.wait_for(leader.wait_leading(), 20)
    async with Client(control_plane.config) as client:
        now = (await lease_of(client, namespace)).spec.renew_time
        spec = {"holderIdentity": "thief", "renewTime": now, "leaseDurationSeconds": 30}
        await client.patch(LEASES, "leader", {"spec": spec}, namespace)
        await asyncio.wait_for(leader.wait_lost(), 5)
        with pytest.raises(NotLeader):
            leader.guard()
        assert (await lease_of(client, namespace)).spec.holder_identity == "thief"
