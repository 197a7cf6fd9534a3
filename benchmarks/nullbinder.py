"""A scheduler that decides nothing: it binds each pod that it sees to the next node, round and round.

It shows how fast this API server can take what every scheduler has to write (a binding and an Event for each
pod), so it is the ceiling that any scheduler is measured against. Right only for pods that fit anywhere.

    python benchmarks/nullbinder.py --kubeconfig FILE --scheduler-name NAME
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
from itertools import cycle

import msgspec
import uvloop

from gpufleet.kube.client import Client
from gpufleet.kube.config import load_config
from gpufleet.kube.kinds import EVENTS, NODES, PODS
from gpufleet.kube.objects.meta import ObjectMeta, PartialObject

BINDERS = 48
TELLERS = 16


class PodSpec(msgspec.Struct, frozen=True, rename="camel"):
    """Where a pod runs."""

    node_name: str = ""


class Pod(msgspec.Struct, frozen=True):
    """As much of a pod as a binding needs."""

    metadata: ObjectMeta
    spec: PodSpec


def scheduled_event(pod: ObjectMeta, node: str) -> dict[str, object]:
    """The Event that a scheduler writes for a binding."""
    now = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{pod.name}.{pod.uid}", "namespace": pod.namespace},
        "eventTime": now,
        "reportingController": "null-binder",
        "reportingInstance": "null-binder",
        "action": "Binding",
        "reason": "Scheduled",
        "type": "Normal",
        "regarding": {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": pod.name,
            "namespace": pod.namespace,
            "uid": pod.uid,
            "resourceVersion": pod.resource_version,
        },
        "note": f"Successfully assigned {pod.namespace}/{pod.name} to {node}",
    }


Bindings = asyncio.Queue[tuple[ObjectMeta, str]]


async def bind_all(client: Client, queue: Bindings, bound: Bindings) -> None:
    """Bind what comes, one pod at a time; many of these run side by side."""
    while True:
        pod, node = await queue.get()
        await client.bind(pod.namespace, pod.name, uid=pod.uid, node=node)
        bound.put_nowait((pod, node))


async def tell_all(client: Client, bound: Bindings) -> None:
    """Write the Events of what was bound, behind the bindings, as schedulers do."""
    while True:
        pod, node = await bound.get()
        await client.create(EVENTS, scheduled_event(pod, node))


async def run(kubeconfig: str, scheduler_name: str) -> None:
    """Watch the pods of `scheduler_name` and bind them until cancelled."""
    async with Client(
        load_config(kubeconfig), user_agent="null-binder", connections=BINDERS + TELLERS
    ) as client:
        nodes = cycle([one.metadata.name for one in (await client.list(NODES, type=PartialObject)).items])
        queue, bound = Bindings(), Bindings()
        chosen = f"spec.schedulerName={scheduler_name}"
        async with asyncio.TaskGroup() as tasks:
            for _ in range(BINDERS):
                tasks.create_task(bind_all(client, queue, bound))
            for _ in range(TELLERS):
                tasks.create_task(tell_all(client, bound))
            listing = await client.list(PODS, fields=chosen, type=Pod)
            for pod in listing.items:
                if not pod.spec.node_name:
                    queue.put_nowait((pod.metadata, next(nodes)))
            version = listing.resource_version
            while True:
                stream = client.watch(PODS, resource_version=version, fields=chosen, type=Pod)
                async for event in stream:
                    version = event.resource_version or version
                    if event.type == "ADDED" and event.object and not event.object.spec.node_name:
                        queue.put_nowait((event.object.metadata, next(nodes)))


def main() -> None:
    """Run until a signal ends the process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--scheduler-name", required=True)
    arguments = parser.parse_args()
    uvloop.run(run(arguments.kubeconfig, arguments.scheduler_name))


if __name__ == "__main__":
    main()
