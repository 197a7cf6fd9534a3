"""`gpufleet why POD`: why a pod is pending or where it runs, who holds the GPUs, what would help."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import click

from gpufleet.cli.cluster import choose_cluster, client_for, named_pod, no_pod
from gpufleet.cli.options import cluster_options, everywhere, namespace_option, output_option
from gpufleet.cli.output import Cell, Column, is_terminal, print_data, printable_fields, styled, table
from gpufleet.cli.recordings import no_cluster_beside, read_recording, snapshot_option
from gpufleet.fleet.errors import GpufleetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gpufleet.fleet.reasons import Reason
    from gpufleet.kube import objects
    from gpufleet.kube.client import Client
    from gpufleet.kube.config import ClusterConfig
    from gpufleet.kube.gpunode import GPUNode
    from gpufleet.scheduling.explain import Explanation
    from gpufleet.scheduling.holders import Holder

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

SHOWN = 10
"""How many holders a terminal shows."""

NODES = 4
"""How many nodes of a holder a terminal names."""


@click.command("why")
@click.argument("pod")
@namespace_option
@output_option("json", "yaml")
@snapshot_option
@cluster_options
@everywhere
def command(
    pod: str,
    namespace: str | None,
    output: str | None,
    saved: str | None,
    kubeconfig: str | None,
    context: str | None,
    name: str | None,
) -> None:
    """Say why POD (or NAMESPACE/POD) is pending or where it runs.

    Pending pods: what blocks and on how many nodes, who holds what it needs, and which single changes would
    make it fit; each change was tried on a copy of the cluster's state. Nothing is changed. A saved snapshot
    does not have pods that have ended, or what containers do.
    """
    if saved is not None:
        no_cluster_beside(saved, kubeconfig, context, name)
        explanation = _explain_saved(saved, *named_pod(pod, namespace, "default"))
    else:
        config = choose_cluster(kubeconfig, context, name)
        explanation = asyncio.run(_explain(config, *named_pod(pod, namespace, config.namespace)))
    if output:
        print_data(explanation.as_json(), output)
    else:
        sys.stdout.write(render(printable_fields(explanation)))


def _explain_saved(file: str, namespace: str, pod: str) -> Explanation:
    from gpufleet.scheduling.explain import explain

    recording = read_recording(file)
    explanation = explain(recording.snapshot, f"{namespace}/{pod}", recording.policy)
    if explanation is None:
        raise GpufleetError(
            reason="NotFound",
            message=f"there is no pod {namespace}/{pod} in {file}",
            hint="choose -n NAMESPACE; pods that had ended are not saved",
        )
    return explanation


async def _explain(config: ClusterConfig, namespace: str, pod: str) -> Explanation:
    from gpufleet.kube.snapshot import load_snapshot
    from gpufleet.scheduling.explain import explain
    from gpufleet.scheduling.names import AUTOMATIC, SchedulerNames

    key = f"{namespace}/{pod}"
    async with client_for(config, "why") as client:
        names = SchedulerNames(client, AUTOMATIC)
        (snapshot, builder), _ = await asyncio.gather(load_snapshot(client), names.refresh())
        finished = builder.pod(key)
        explanation = explain(snapshot, key, names.policy(), finished)
        if explanation is None:
            raise no_pod(namespace, pod)
        return await _with_story(client, explanation)


async def _with_story(client: Client, explanation: Explanation) -> Explanation:
    """Add the ResourceClaims that a pod lacks, how far a bound pod got, and what the scheduler said when it
    bound it, as long as the Event is kept.
    """
    import msgspec

    from gpufleet.fleet.reasons import Reason
    from gpufleet.kube import kinds, objects
    from gpufleet.kube.gpunode import GPUNode

    if any(reason.code == "DeviceUnhealthy" for reason in explanation.reasons):
        nodes = await client.list(kinds.GPU_NODES, type=GPUNode, resource_version="0")
        return msgspec.structs.replace(explanation, reasons=with_faults(explanation.reasons, nodes.items))
    if any(reason.code == "DynamicResources" for reason in explanation.reasons):
        missing = await _missing_resource_claims(client, explanation.namespace, explanation.pod)
        return msgspec.structs.replace(explanation, reasons=(*explanation.reasons, *missing))
    if explanation.verdict != "running":
        return explanation
    path = f"/api/v1/namespaces/{explanation.namespace}/events"
    fields = f"involvedObject.name={explanation.pod},involvedObject.uid={explanation.uid},reason=Scheduled"
    events, pod = await asyncio.gather(
        client.request("GET", path, params={"fieldSelector": fields}),
        client.get(kinds.PODS, explanation.pod, explanation.namespace, type=objects.Pod),
    )
    body: Any = msgspec.json.decode(events)
    told = tuple(Reason("Bound", event["message"], explanation.node) for event in body["items"])
    reasons = (*disruption(pod), *explanation.reasons, *progress(pod), *told)
    return msgspec.structs.replace(explanation, reasons=reasons)


def with_faults(reasons: tuple[Reason, ...], nodes: Iterable[GPUNode]) -> tuple[Reason, ...]:
    """The reasons, those about sick devices with the GPUs that are sick and their faults."""
    import msgspec

    sick = [
        f"GPU {device.index} of {node.metadata.name} ({device.reason or 'no reason given'})"
        for node in sorted(nodes, key=lambda node: node.metadata.name)
        for device in node.status.devices
        if not device.healthy
    ]
    shown = ", ".join(sick[:NODES]) + (f" and {len(sick) - NODES} more" if len(sick) > NODES else "")
    return tuple(
        msgspec.structs.replace(reason, message=f"{reason.message}; sick: {shown}")
        if sick and reason.code == "DeviceUnhealthy"
        else reason
        for reason in reasons
    )


async def _missing_resource_claims(client: Client, namespace: str, name: str) -> tuple[Reason, ...]:
    """The ResourceClaims of a pod, and the templates of some, that do not exist as far as we may look."""
    from gpufleet.fleet.reasons import Reason
    from gpufleet.kube import kinds, objects
    from gpufleet.kube.errors import ApiError

    pod = await client.get(kinds.PODS, name, namespace, type=objects.Pod)
    missing = []
    for claim in pod.spec.resource_claims:
        kind, wanted = kinds.RESOURCE_CLAIMS, claim.resource_claim_name
        if claim.resource_claim_template_name:
            kind, wanted = kinds.RESOURCE_CLAIM_TEMPLATES, claim.resource_claim_template_name
        try:
            await client.get(kind, wanted or claim.name, namespace)
        except ApiError as error:
            if error.not_found:
                key = kinds.key_of(wanted or claim.name, namespace)
                missing.append(Reason("ResourceClaimNotFound", f"{kind.kind} {key} does not exist", key))
    return tuple(missing)


def disruption(pod: objects.Pod) -> tuple[Reason, ...]:
    """Why a pod that is being deleted has to end, as whoever ends it says: for a victim of preemption, for
    whom.
    """
    from gpufleet.fleet.reasons import Reason

    if pod.metadata.deletion_timestamp is None:
        return ()
    return tuple(
        Reason(
            "Preempted" if condition.reason == "PreemptionByScheduler" else "Terminating",
            condition.message or condition.reason,
            pod.metadata.key,
        )
        for condition in pod.status.conditions
        if condition.type == "DisruptionTarget" and condition.status == "True"
    )


def progress(pod: objects.Pod) -> tuple[Reason, ...]:
    """Why a bound pod does not run, or has failed, as its node says."""
    from gpufleet.fleet.reasons import Reason

    status, name = pod.status, pod.metadata.key
    if status.phase in ("Succeeded", "Failed"):
        text = ": ".join(part for part in (status.reason, status.message) if part)
        return (Reason("Finished", text, name),) if text else ()
    containers = (*status.init_container_statuses, *status.container_statuses)
    if status.phase == "Pending" and not containers:
        return (Reason("ContainerWaiting", f"{pod.spec.node_name} has not started it yet", name),)
    waiting = [(container.name, container.state.waiting) for container in containers]
    waits = tuple(
        Reason("ContainerWaiting", f"container {container} waits: {_said(state)}", name)
        for container, state in waiting
        if state is not None and state.reason != "PodInitializing"
    )
    return waits + tuple(Reason("NotReady", text, name) for text in _not_ready(pod))


def _not_ready(pod: objects.Pod) -> Iterator[str]:
    """Which containers run and are not ready, and the probe that has not passed; which readiness gates are
    not open.
    """
    spec = {container.name: container for container in (*pod.spec.containers, *pod.spec.init_containers)}
    statuses = (*pod.status.container_statuses, *pod.status.init_container_statuses)
    for status in statuses:
        container = spec.get(status.name)
        if container is None or status.ready or status.state.running is None:
            continue
        starting = container.startup_probe is not None and not status.started
        probe = container.startup_probe if starting else container.readiness_probe
        if probe is not None:
            kind = "startup" if starting else "readiness"
            yield f"container {status.name} runs, but its {kind} probe ({_asked(probe)}) does not pass"
    open_gates = {c.type for c in pod.status.conditions if c.status == "True"}
    for gate in pod.spec.readiness_gates:
        if pod.status.phase == "Running" and gate.condition_type not in open_gates:
            yield f"readiness gate {gate.condition_type} is not True; whoever set it must make it so"


def _asked(probe: objects.Probe) -> str:
    """What a probe does, in a few words."""
    if probe.exec is not None:
        return f"exec {' '.join(probe.exec.command)}"
    if probe.http_get is not None:
        return f"GET {probe.http_get.path or '/'} on port {probe.http_get.port}"
    if probe.tcp_socket is not None:
        return f"TCP port {probe.tcp_socket.port}"
    return f"gRPC port {probe.grpc.port}" if probe.grpc is not None else "of an unknown kind"


def _said(waiting: objects.ContainerStateWaiting) -> str:
    return (
        ": ".join(part for part in (waiting.reason, waiting.message) if part) or "its node does not say why"
    )


def render(explanation: Explanation) -> str:
    """The explanation for people."""
    words, style = _headline(explanation)
    gang = f"  (gang {explanation.gang}, by {explanation.gang_rule})" if explanation.gang else ""
    parts = [f"{explanation.namespace}/{explanation.pod} {styled(words, style)}{gang}\n"]
    if explanation.reasons:
        parts.append(f"\n{styled('Why', 'bold')}\n")
        width = max(len(reason.code) for reason in explanation.reasons)
        parts += [f"  {reason.code:{width}}  {reason.message}\n" for reason in explanation.reasons]
    for title, holders in (("Who holds it", explanation.holders), ("Room is held for", explanation.held_for)):
        if holders:
            shown = holders[:SHOWN] if is_terminal(sys.stdout) else holders
            parts.append(f"\n{styled(title, 'bold')}\n{table(HOLDERS, _rows(shown))}")
            if len(shown) < len(holders):
                parts.append(f"and {len(holders) - len(shown)} more, all of them with -o json\n")
    if explanation.changes:
        parts.append(f"\n{styled('What would make it fit, each tried on a copy of the fleet', 'bold')}\n")
        parts += [f"  - {change.message}\n" for change in explanation.changes]
    elif explanation.verdict in ("not-now", "never") and explanation.reasons[0].code != "Terminating":
        parts.append("\nNo single change that gpufleet tried would make it fit.\n")
    return "".join(parts)


def _headline(explanation: Explanation) -> tuple[str, str]:
    codes = {reason.code for reason in explanation.reasons}
    if "Finished" in codes:
        return "has ended", "green"
    if "Terminating" in codes:
        return (f"is ending on {explanation.node}" if explanation.node else "is being deleted"), "yellow"
    if codes & {"ContainerWaiting", "NodeNotFound"}:
        return f"is bound to {explanation.node}, but does not run", "yellow"
    if "NotReady" in codes:
        return "runs, but is not ready", "yellow"
    if "WaitingForVolume" in codes:
        return "waits for its volume", "yellow"
    return VERDICTS[explanation.verdict]


def _rows(holders: Sequence[Holder]) -> list[list[Cell]]:
    from gpufleet.fleet.quantities import comparable_amounts

    amounts: dict[str, list[int]] = {}
    for holder in holders:
        amounts.setdefault(holder.resource, []).append(holder.amount)
    told = {resource: iter(comparable_amounts(resource, *held)) for resource, held in amounts.items()}
    return [
        [
            Cell(holder.namespace),
            Cell(holder.workload + _note(holder)),
            Cell(holder.resource),
            Cell(next(told[holder.resource])),
            Cell(str(holder.pods)),
            Cell(str(holder.priority)),
            Cell(_names(holder.nodes)),
        ]
        for holder in holders
    ]


def _names(nodes: Sequence[str]) -> str:
    if len(nodes) <= NODES or not is_terminal(sys.stdout):
        return ", ".join(nodes)
    return f"{', '.join(nodes[:NODES])} and {len(nodes) - NODES} more"


def _note(holder: Holder) -> str:
    if holder.ending:
        return " (ending)"
    return " (you may preempt it)" if holder.preemptible else ""
