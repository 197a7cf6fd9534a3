"""`gpufleet logs`: what a pod's container wrote, read through the API server as kubectl reads it."""

from __future__ import annotations

import asyncio
import contextlib
import http
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import click

from gpufleet.cli.cluster import choose_cluster, client_for, name_flag, named_pod, no_pod
from gpufleet.cli.options import cluster_options, everywhere, namespace_option
from gpufleet.cli.watching import until_ctrl_c
from gpufleet.fleet.errors import GpufleetError

if TYPE_CHECKING:
    from gpufleet.kube.config import ClusterConfig
    from gpufleet.kube.objects import Pod

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
    from gpufleet.kube.errors import ApiError
    from gpufleet.kube.kinds import PODS
    from gpufleet.kube.transport import Transport

    found = await _existing(config, namespace, pod)
    params["container"] = chosen_container(found, params["container"])
    transport = Transport(config, user_agent="gpufleet-logs", connections=1)
    await transport.open()
    try:
        target = f"{PODS.path(namespace, pod, 'log')}?{urlencode(params)}"
        async with transport.stream(target, _A_WEEK_S) as chunks:
            async for chunk in chunks:
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
    except ApiError as error:
        hint = f"gpufleet why {pod} -n {namespace}"
        if "previous" in params and error.status == http.HTTPStatus.BAD_REQUEST:
            hint = f"without --previous: gpufleet logs {pod} -n {namespace} -c {params['container']}"
        raise GpufleetError(
            reason=error.reason, message=error.message, hint=error.hint or hint + name_flag(config)
        ) from error
    finally:
        await transport.close()


async def _existing(config: ClusterConfig, namespace: str, pod: str) -> Pod:
    """The pod, which a node has; raises GpufleetError when there is none, or no node has it yet."""
    from gpufleet.kube.errors import ApiError
    from gpufleet.kube.kinds import PODS
    from gpufleet.kube.objects import Pod

    async with client_for(config, "logs") as client:
        try:
            found = await client.get(PODS, pod, namespace, type=Pod)
        except ApiError as error:
            if error.not_found:
                raise no_pod(namespace, pod) from None
            raise
    if not found.spec.node_name:
        raise GpufleetError(
            reason="NotStarted",
            message=f"pod {namespace}/{pod} has no output: it is not bound to a node yet",
            hint=f"gpufleet why {pod} -n {namespace}" + name_flag(config),
        )
    return found


def chosen_container(pod: Pod, asked: str) -> str:
    """The container that was asked for, the only one, or the one that the pod names.

    Raises GpufleetError when there is none of that name, or it must be chosen.
    """
    spec, meta = pod.spec, pod.metadata
    names = [container.name for container in spec.containers]
    known = [*names, *(container.name for container in spec.init_containers)]
    marked = meta.annotations.get(_DEFAULT_CONTAINER, "")
    choice = asked or (marked if marked in known else "") or (names[0] if len(names) == 1 else "")
    if choice in known:
        return choice
    what = f"has no container {asked!r}, only" if asked else "has the containers"
    raise GpufleetError(
        reason="ContainerNotFound" if asked else "ContainerNotChosen",
        message=f"pod {meta.key} {what} {', '.join(known)}",
        hint=f"gpufleet logs {meta.name} -n {meta.namespace} -c {names[0]}",
    )
