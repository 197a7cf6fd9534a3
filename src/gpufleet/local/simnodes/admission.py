"""Admission: whether a node takes a pod that was bound to it, by the checks of a kubelet.

The scheduler has decided, but from a view that may be old, and anyone may bind a pod: a kubelet checks
again, and a pod that it refuses has failed for good. Extended resources that the node does not offer are
ignored, as a kubelet ignores them, except GPUs: those are claimed from the devices.
Source: pkg/kubelet/lifecycle/predicate.go and the device manager.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import Pod, PodShape
from gpufleet.fleet.selectors import untolerated
from gpufleet.local.simnodes.device_manager import Shortage


class Rejection(msgspec.Struct, frozen=True):
    """Why a kubelet refuses a pod: the reason and message of the failed pod's status."""

    reason: str
    message: str


def refuses(pod: Pod, node: Node, others: Iterable[Pod]) -> Rejection | None:
    """Why `node` refuses `pod` beside the `others` that it runs (finished ones not among them), or None."""
    running = list(others)
    return _out_of_resource(pod.shape, node, running) or _wrong_node(pod, node, running)


def _out_of_resource(shape: PodShape, node: Node, others: list[Pod]) -> Rejection | None:
    for resource, amount in shape.requests:
        if resource not in node.allocatable:
            continue
        used = sum(value for pod in others for name, value in pod.shape.requests if name == resource)
        if used + amount > node.allocatable[resource]:
            capacity = node.allocatable[resource]
            numbers = f"requested: {amount}, used: {used}, capacity: {capacity}"
            text = f"Pod was rejected: Node didn't have enough resource: {resource}, {numbers}"
            return Rejection(f"OutOf{resource}", text)
    return None


def _wrong_node(pod: Pod, node: Node, others: list[Pod]) -> Rejection | None:
    shape = pod.shape
    selected = all(node.labels.get(key) == value for key, value in shape.node_selector)
    if not selected or (shape.node_affinity and not shape.node_affinity.matches(node.name, node.labels)):
        text = "node(s) didn't match Pod's node affinity/selector"
        return Rejection("NodeAffinity", f"Pod was rejected: Predicate NodeAffinity failed: {text}")
    taken = [port for other in others for port in other.shape.host_ports]
    if any(port.conflicts(other) for port in shape.host_ports for other in taken):
        text = "node(s) didn't have free ports for the requested pod ports"
        return Rejection("NodePorts", f"Pod was rejected: Predicate NodePorts failed: {text}")
    taint = untolerated(node.taints, shape.tolerations, ("NoExecute",))
    if taint is not None:
        text = f"node(s) had taint {taint} that the pod didn't tolerate"
        return Rejection("TaintToleration", f"Pod was rejected: Predicate TaintToleration failed: {text}")
    return None


def device_rejection(shortage: Shortage) -> Rejection:
    """The refusal for devices that the node counts but cannot hand out, or does not have at all."""
    resource = shortage.resource
    if shortage.available is None:
        why = f"cannot allocate unregistered device {resource}"
    else:
        numbers = f"Requested: {shortage.wanted}, Available: {shortage.available}"
        why = f"requested number of devices unavailable for {resource}. {numbers}"
    return Rejection(
        "UnexpectedAdmissionError", f"Pod was rejected: Allocate failed due to {why}, which is unexpected"
    )
