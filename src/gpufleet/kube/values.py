"""From Kubernetes objects to the values that decisions read (`gpufleet.fleet`).

Each function takes one decoded object and returns one value; nothing is looked up elsewhere. Shapes are
interned, so that the pods of one template share one `PodShape`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from gpufleet.fleet import pods, selectors
from gpufleet.fleet.cuts import counted
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.quantities import resource_amount
from gpufleet.fleet.snapshot import DisruptionBudget
from gpufleet.kube import objects
from gpufleet.kube.conventions.fractions import fraction_of
from gpufleet.kube.conventions.gangs import gang_of
from gpufleet.kube.conventions.picked_devices import picks_in
from gpufleet.kube.conventions.queue_names import queue_of
from gpufleet.kube.cuts import cuttable_gpus
from gpufleet.kube.fractions import carrying_gpus, may_carry, sick_gpus, withheld_shares
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.requests import device_claims, effective_requests
from gpufleet.kube.times import parse_time

DECISION_CONDITION = "gpufleet.dev/Decision"
"""The condition that says what gpufleet decided about a pod: False with a reason code, or True once it is
bound.
"""


@lru_cache(maxsize=8192)
def _interned(shape: pods.PodShape) -> pods.PodShape:
    return shape


def pod_value(pod: objects.Pod) -> pods.Pod:
    """The scheduling view of a pod."""
    meta, spec = pod.metadata, pod.spec
    owner = meta.controller
    return pods.Pod(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        shape=_interned(pod_shape(pod)),
        labels=meta.labels,
        priority=spec.priority,
        created=parse_time(meta.creation_timestamp),
        scheduler=spec.scheduler_name,
        node=spec.node_name,
        nominated_node=pod.status.nominated_node_name,
        phase=pod.status.phase,
        terminating=meta.deletion_timestamp is not None,
        gates=tuple(gate.name for gate in spec.scheduling_gates),
        preempts=spec.preemption_policy != "Never",
        owner=owner.uid if owner else "",
        owner_kind=owner.kind if owner else "",
        owner_name=owner.name if owner else "",
        gang=gang_of(pod),
        reported=any(c.type == DECISION_CONDITION and c.status == "False" for c in pod.status.conditions),
        device_claims=device_claims(pod),
        picks=picks_in(meta.annotations),
        queue=queue_of(meta),
    )


def pod_shape(pod: objects.Pod) -> pods.PodShape:
    """What decides where the pod fits. Generated claims of ephemeral volumes get their names by the API's
    rule.
    """
    spec = pod.spec
    affinity = spec.affinity or objects.Affinity()
    near = affinity.pod_affinity or objects.PodAffinity()
    away = affinity.pod_anti_affinity or objects.PodAffinity()
    node = affinity.node_affinity or objects.NodeAffinity()
    required = node.required_during_scheduling_ignored_during_execution
    own = pod.metadata.namespace
    return pods.PodShape(
        requests=effective_requests(pod),
        node_selector=tuple(sorted(spec.node_selector.items())),
        node_affinity=node_selector(required) if required else None,
        preferred_nodes=tuple(
            pods.PreferredNodes(term.weight, _term(term.preference))
            for term in node.preferred_during_scheduling_ignored_during_execution
        ),
        tolerations=tuple(
            selectors.Toleration(t.key, t.operator, t.value, t.effect) for t in spec.tolerations
        ),
        affinity=_terms(near.required_during_scheduling_ignored_during_execution, own),
        anti_affinity=_terms(away.required_during_scheduling_ignored_during_execution, own),
        preferred_pods=(
            *_weighted(near.preferred_during_scheduling_ignored_during_execution, own, 1),
            *_weighted(away.preferred_during_scheduling_ignored_during_execution, own, -1),
        ),
        spread=tuple(_spread(c, pod.metadata.labels) for c in spec.topology_spread_constraints),
        host_ports=_host_ports(spec),
        claims=_claims(pod),
        inline_csi_drivers=tuple(volume.csi.driver for volume in spec.volumes if volume.csi),
        resource_claims=bool(spec.resource_claims),
        fraction=fraction_of(pod.metadata.annotations, [container.name for container in spec.containers]),
    )


def node_value(node: objects.Node, gpu_node: GPUNode | None = None) -> Node:
    """The scheduling view of a node; a `GPUNode` with resources replaces the kubelet's counts of those."""
    allocatable = {name: resource_amount(name, text) for name, text in node.status.allocatable.items()}
    if gpu_node is not None and gpu_node.status.resources:
        devices = {resource.name: resource.capacity for resource in gpu_node.status.resources}
        allocatable.update((resource.name, resource.healthy) for resource in gpu_node.status.resources)
    else:
        capacity = node.status.capacity.items()
        devices = {name: resource_amount(name, text) for name, text in capacity if pods.is_gpu_resource(name)}
    sick = {name: count - allocatable.get(name, 0) for name, count in devices.items()}
    gpus = cuttable_gpus(gpu_node) if gpu_node is not None else ()
    for name, count in counted(gpus, going=True).items():
        allocatable[name] = allocatable.get(name, 0) - count
    for name, count in withheld_shares(gpu_node).items() if gpu_node is not None else ():
        allocatable[name] -= count
    ready = next((c.status for c in node.status.conditions if c.type == "Ready"), "Unknown")
    return Node(
        name=node.metadata.name,
        labels=node.metadata.labels,
        allocatable=allocatable,
        taints=tuple(selectors.Taint(t.key, t.effect, t.value) for t in node.spec.taints),
        unschedulable=node.spec.unschedulable,
        ready=ready == "True",
        unhealthy={name: count for name, count in sick.items() if count > 0},
        gpus=gpus,
        may_switch=bool(gpus) and gpu_node is not None and gpu_node.spec.desired.allow_mode_switch,
        sick=sick_gpus(gpu_node) if gpu_node is not None else (),
        carrying=carrying_gpus(gpu_node) if gpu_node is not None else (),
        may_carry=gpu_node is None or may_carry(gpu_node),
    )


def budget_value(budget: objects.PodDisruptionBudget) -> DisruptionBudget:
    """What a disruption budget still allows. A status that lags behind the spec allows nothing."""
    meta, status = budget.metadata, budget.status
    current = status.observed_generation >= meta.generation
    selector = budget.spec.selector
    return DisruptionBudget(
        meta.namespace,
        meta.name,
        label_selector(selector) if selector is not None else None,
        status.disruptions_allowed if current else 0,
        frozenset(f"{meta.namespace}/{name}" for name in status.disrupted_pods),
    )


def label_selector(selector: objects.LabelSelector) -> selectors.LabelSelector:
    """A label selector; matchLabels become In requirements."""
    labels = tuple(selectors.Requirement(k, "In", (v,)) for k, v in sorted(selector.match_labels.items()))
    rest = tuple(selectors.Requirement(e.key, e.operator, e.values) for e in selector.match_expressions)
    return selectors.LabelSelector(labels + rest)


def node_selector(selector: objects.NodeSelector) -> selectors.NodeSelector:
    """A node selector."""
    return selectors.NodeSelector(tuple(_term(term) for term in selector.node_selector_terms))


def _term(term: objects.NodeSelectorTerm) -> selectors.NodeSelectorTerm:
    return selectors.NodeSelectorTerm(_requirements(term.match_expressions), _requirements(term.match_fields))


def _requirements(parts: Sequence[objects.NodeSelectorRequirement]) -> tuple[selectors.Requirement, ...]:
    return tuple(selectors.Requirement(part.key, part.operator, part.values) for part in parts)


def _terms(terms: Sequence[objects.PodAffinityTerm], own: str) -> tuple[pods.PodAffinityTerm, ...]:
    return tuple(_affinity_term(term, own) for term in terms)


def _affinity_term(term: objects.PodAffinityTerm, own: str) -> pods.PodAffinityTerm:
    selector = label_selector(term.label_selector) if term.label_selector is not None else None
    namespaces = term.namespaces or (() if term.namespace_selector is not None else (own,))
    others = label_selector(term.namespace_selector) if term.namespace_selector is not None else None
    return pods.PodAffinityTerm(term.topology_key, selector, namespaces, others)


def _weighted(
    terms: Sequence[objects.WeightedPodAffinityTerm], own: str, sign: int
) -> tuple[pods.WeightedPodAffinityTerm, ...]:
    return tuple(
        pods.WeightedPodAffinityTerm(sign * term.weight, _affinity_term(term.pod_affinity_term, own))
        for term in terms
    )


def _spread(constraint: objects.TopologySpreadConstraint, labels: Mapping[str, str]) -> pods.SpreadConstraint:
    selector = label_selector(constraint.label_selector) if constraint.label_selector is not None else None
    if selector is not None:
        stated = {requirement.key for requirement in selector.requirements}
        keys = [key for key in constraint.match_label_keys if key in labels and key not in stated]
        same = tuple(selectors.Requirement(key, "In", (labels[key],)) for key in keys)
        selector = selectors.LabelSelector(selector.requirements + same)
    return pods.SpreadConstraint(
        constraint.max_skew,
        constraint.topology_key,
        constraint.when_unsatisfiable != "ScheduleAnyway",
        selector,
        constraint.min_domains or 1,
        constraint.node_affinity_policy,
        constraint.node_taints_policy,
    )


def _host_ports(spec: objects.PodSpec) -> tuple[pods.HostPort, ...]:
    sidecars = [c for c in spec.init_containers if c.restart_policy == "Always"]
    return tuple(
        pods.HostPort(port.host_port, port.protocol, port.host_ip)
        for container in (*spec.containers, *sidecars)
        for port in container.ports
        if port.host_port
    )


def _claims(pod: objects.Pod) -> tuple[str, ...]:
    named = [v.persistent_volume_claim.claim_name for v in pod.spec.volumes if v.persistent_volume_claim]
    generated = [f"{pod.metadata.name}-{v.name}" for v in pod.spec.volumes if v.ephemeral]
    return tuple(dict.fromkeys(named + generated))
