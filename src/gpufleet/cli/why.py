"""`gpufleet why POD`: why a pod is pending or where it runs, who holds the GPUs, what would help."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import click

from gpufleet.cli.cluster import choose_cluster, named_pod
from gpufleet.cli.options import cluster_options, everywhere, namespace_option, output_option
from gpufleet.cli.output import Cell, Column, print_data, printable_fields, styled, table
from gpufleet.fleet.errors import GpufleetError

if TYPE_CHECKING:
    from gpufleet.kube.client import Client
    from gpufleet.kube.config import ClusterConfig
    from gpufleet.scheduling.explain import Explanation

VERDICTS = {
    "running": ("runs", "green"),
    "soon": ("starts soon", "cyan"),
    "not-now": ("cannot run now", "yellow"),
    "never": ("can never run on this fleet", "red"),
}
"""Words and style of each verdict."""

HOLDERS = (
    Column("NAMESPACE", drop=2),
    Column("WORKLOAD"),
    Column("RESOURCE", drop=1),
    Column("HOLDS", number=True),
    Column("PODS", number=True),
    Column("PRIORITY", number=True),
    Column("NODES", drop=3),
)


@click.command("why")
@click.argument("pod")
@namespace_option
@output_option("json", "yaml")
@cluster_options
@everywhere
def command(
    pod: str,
    namespace: str | None,
    output: str | None,
    kubeconfig: str | None,
    context: str | None,
    name: str | None,
) -> None:
    """Say why POD (or NAMESPACE/POD) is pending or where it runs.

    Pending pods: what blocks and on how many nodes, who holds the GPUs, and which single changes would make
    it fit; each change was tried on a copy of the cluster's state. Nothing is changed.
    """
    config = choose_cluster(kubeconfig, context, name)
    explanation = asyncio.run(_explain(config, *named_pod(pod, namespace, config.namespace)))
    if output:
        print_data(explanation.as_json(), output)
    else:
        sys.stdout.write(render(printable_fields(explanation)))


async def _explain(config: ClusterConfig, namespace: str, pod: str) -> Explanation:
    from gpufleet.kube.client import Client
    from gpufleet.kube.snapshot import load_snapshot
    from gpufleet.scheduling.explain import explain
    from gpufleet.scheduling.names import AUTOMATIC, SchedulerNames

    key = f"{namespace}/{pod}"
    async with Client(config, user_agent="gpufleet-why") as client:
        names = SchedulerNames(client, AUTOMATIC)
        (snapshot, builder), _ = await asyncio.gather(load_snapshot(client), names.refresh())
        finished = builder.pod(key)
        explanation = explain(snapshot, key, names.policy(), finished)
        if explanation is None:
            raise GpufleetError(
                reason="NotFound",
                message=f"there is no pod {key}",
                hint="kubectl get pods -A, or choose -n NAMESPACE",
            )
        return await _with_story(client, explanation)


async def _with_story(client: Client, explanation: Explanation) -> Explanation:
    """Add what the scheduler said when it bound the pod, as long as the Event is kept."""
    import msgspec

    from gpufleet.fleet.reasons import Reason

    if explanation.verdict != "running":
        return explanation
    path = f"/api/v1/namespaces/{explanation.namespace}/events"
    fields = f"involvedObject.name={explanation.pod},involvedObject.uid={explanation.uid},reason=Scheduled"
    body: Any = msgspec.json.decode(await client.request("GET", path, params={"fieldSelector": fields}))
    told = tuple(Reason("Bound", event["message"], explanation.node) for event in body["items"])
    return msgspec.structs.replace(explanation, reasons=(*explanation.reasons, *told))


def render(explanation: Explanation) -> str:
    """The explanation for people."""
    words, style = VERDICTS[explanation.verdict]
    if any(reason.code == "Finished" for reason in explanation.reasons):
        words = "has ended"
    gang = f"  (gang {explanation.gang})" if explanation.gang else ""
    parts = [f"{explanation.namespace}/{explanation.pod} {styled(words, style)}{gang}\n"]
    if explanation.reasons:
        parts.append(f"\n{styled('Why', 'bold')}\n")
        width = max(len(reason.code) for reason in explanation.reasons)
        parts += [f"  {reason.code:{width}}  {reason.message}\n" for reason in explanation.reasons]
    if explanation.holders:
        parts.append(f"\n{styled('Who holds it', 'bold')}\n")
        rows = [
            [
                Cell(holder.namespace),
                Cell(holder.workload + (" (you may preempt it)" if holder.preemptible else "")),
                Cell(holder.resource),
                Cell(str(holder.amount)),
                Cell(str(holder.pods)),
                Cell(str(holder.priority)),
                Cell(", ".join(holder.nodes)),
            ]
            for holder in explanation.holders
        ]
        parts.append(table(HOLDERS, rows))
    if explanation.changes:
        parts.append(f"\n{styled('What would make it fit, each tried on a copy of the fleet', 'bold')}\n")
        parts += [f"  - {change.message}\n" for change in explanation.changes]
    elif explanation.verdict in ("not-now", "never"):
        parts.append("\nNo single change that gpufleet tried would make it fit.\n")
    return "".join(parts)
