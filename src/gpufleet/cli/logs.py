"""`gpufleet logs`: what a pod's container wrote, read through the API server as kubectl reads it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import click

from gpufleet.cli.cluster import choose_cluster, named_pod
from gpufleet.cli.options import cluster_options, everywhere, namespace_option
from gpufleet.cli.watching import until_ctrl_c
from gpufleet.fleet.errors import GpufleetError

if TYPE_CHECKING:
    from gpufleet.kube.config import ClusterConfig

_A_WEEK_S = 7 * 24 * 3600.0
_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"


@click.command(short_help="The output of a pod's container")
@click.argument("pod")
@click.option("-c", "--container", metavar="NAME", help="Which container, when the pod has several.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the container ends.")
@click.option("--tail", type=click.IntRange(min=0), metavar="LINES", help="Only so many lines from the end.")
@click.option("-p", "--previous", is_flag=True, help="Of the container's run before its last restart.")
@click.option("--timestamps", is_flag=True, help="With the time of each line.")
@namespace_option
@cluster_options
@everywhere
def command(
    pod: str,
    container: str | None,
    follow: bool,
    tail: int | None,
    previous: bool,
    timestamps: bool,
    namespace: str | None,
    kubeconfig: str | None,
    context: str | None,
    name: str | None,
) -> None:
    """Print the output of a container of POD (or NAMESPACE/POD)."""
    config = choose_cluster(kubeconfig, context, name)
    params: dict[str, str] = {"container": container or ""}
    params |= {"follow": "true"} if follow else {}
    params |= {"previous": "true"} if previous else {}
    params |= {"timestamps": "true"} if timestamps else {}
    params |= {"tailLines": str(tail)} if tail is not None else {}
    key = named_pod(pod, namespace, config.namespace)
    with until_ctrl_c() if follow else contextlib.nullcontext():
        asyncio.run(_print(config, *key, params))


async def _print(config: ClusterConfig, namespace: str, pod: str, params: dict[str, str]) -> None:
    from gpufleet.kube.kinds import PODS
    from gpufleet.kube.transport import Transport

    if not params["container"]:
        params["container"] = await _default_container(config, namespace, pod)
    transport = Transport(config, user_agent="gpufleet-logs", connections=1)
    await transport.open()
    try:
        target = f"{PODS.path(namespace, pod, 'log')}?{urlencode(params)}"
        async with transport.stream(target, _A_WEEK_S) as chunks:
            async for chunk in chunks:
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
    finally:
        await transport.close()


async def _default_container(config: ClusterConfig, namespace: str, pod: str) -> str:
    """The only container, or the one that the pod names; raises GpufleetError when it must be chosen."""
    from gpufleet.kube.client import Client
    from gpufleet.kube.kinds import PODS
    from gpufleet.kube.objects import Pod

    async with Client(config, user_agent="gpufleet-logs", deadline=5.0) as client:
        found = await client.get(PODS, pod, namespace, type=Pod)
    names = [container.name for container in found.spec.containers]
    marked = found.metadata.annotations.get(_DEFAULT_CONTAINER, "")
    if marked in names:
        return marked
    if len(names) > 1:
        raise GpufleetError(
            reason="ContainerNotChosen",
            message=f"pod {namespace}/{pod} has the containers {', '.join(names)}",
            hint=f"gpufleet logs {pod} -n {namespace} -c {names[0]}",
        )
    return names[0]
