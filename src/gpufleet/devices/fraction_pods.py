"""The pods of a node that have a fraction of a GPU: which GPUs carry fractions, and what is wrong there.

A fraction is nothing that the kubelet hands out. What a pod was given comes with its binding, in an
annotation that nobody else can write, and is the pod's until it is over. As long as a GPU carries fractions,
the device plugin gives it to nobody whole (`resources.Device.carrying`). Whoever was given it before the
agent heard of the fraction has it all the same: a kubelet cannot be asked to take it back, so that is told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from gpufleet.devices.inventory import Inventory
from gpufleet.devices.node_report import Told
from gpufleet.fleet.demands import MILLI
from gpufleet.fleet.fractions import FRACTION_RESOURCE, Fraction
from gpufleet.fleet.reasons import Reason
from gpufleet.kube.conventions.fractions import fraction_of
from gpufleet.kube.conventions.picked_devices import picks_in
from gpufleet.kube.fraction_policies import NAME, VISIBLE_DEVICES, VISIBLE_PATH
from gpufleet.kube.fractions import FRACTIONS_CONDITION, NOT_WITHHELD
from gpufleet.kube.gpunode import GPUAllocation
from gpufleet.kube.objects import Pod


class FractionPod(msgspec.Struct, frozen=True):
    """A pod that has a part of each of `devices` (UUIDs of GPUs); `told` says whether its container gets to
    know them.
    """

    namespace: str
    name: str
    uid: str
    container: str
    devices: tuple[str, ...]
    asked: Fraction | None = None
    told: bool = True

    @property
    def key(self) -> str:
        """Namespace and name."""
        return f"{self.namespace}/{self.name}"

    def milli(self, inventory: Inventory) -> int:
        """Milli-GPU of each of its GPUs; all of them where that cannot be told."""
        gpu = inventory.gpu(self.devices[0])
        part = self.asked.of(gpu.memory_mib if gpu else 0) if self.asked else None
        return part or MILLI


def fraction_pod(pod: Pod) -> FractionPod | None:
    """What a pod of the node has of GPUs; None when it has no fraction, or is over."""
    meta, containers = pod.metadata, pod.spec.containers
    pick = next((one for one in picks_in(meta.annotations) if one.resource == FRACTION_RESOURCE), None)
    if pick is None or not pick.devices or pod.status.phase in ("Succeeded", "Failed"):
        return None
    sources = [
        variable.value_from.field_ref.field_path
        for one in containers
        for variable in one.env
        if one.name == pick.container and variable.name == VISIBLE_DEVICES
        if variable.value_from is not None and variable.value_from.field_ref is not None
    ]
    return FractionPod(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        container=pick.container,
        devices=tuple(dict.fromkeys(pick.devices)),
        asked=fraction_of(meta.annotations, [one.name for one in containers]),
        told=VISIBLE_PATH in sources,
    )


def fraction_pods(pods: Iterable[Pod]) -> tuple[FractionPod, ...]:
    """Those of the pods that have a fraction, by namespace and name."""
    found = (fraction_pod(pod) for pod in pods)
    return tuple(sorted((one for one in found if one is not None), key=lambda one: (one.key, one.uid)))


def carrying(pods: Iterable[FractionPod]) -> frozenset[str]:
    """The GPUs that carry the fractions of these pods."""
    return frozenset(uuid for pod in pods for uuid in pod.devices)


def fraction_allocations(pods: Iterable[FractionPod], inventory: Inventory) -> tuple[GPUAllocation, ...]:
    """What the pods have, as a `GPUNode` records it."""
    return tuple(
        GPUAllocation(
            namespace=pod.namespace,
            pod=pod.name,
            pod_uid=pod.uid,
            container=pod.container,
            resource=FRACTION_RESOURCE,
            devices=pod.devices,
            milli=pod.milli(inventory),
        )
        for pod in pods
    )


def fraction_problems(
    pods: Collection[FractionPod],
    held: Iterable[GPUAllocation],
    inventory: Inventory,
    *,
    withheld: bool = True,
) -> tuple[Reason, ...]:
    """What is wrong with the fractions on a node. `held` is what containers have of the kubelet; `withheld`
    says whether we are who keeps GPUs with fractions from others.
    """
    if not withheld:
        text = "another device plugin hands out the GPUs, so none can be kept for fractions"
        return (Reason(NOT_WITHHELD, text),)
    found = []
    owners = {part.uuid: gpu.uuid for gpu in inventory.gpus for one in gpu.instances for part in one.compute}
    for one in held:
        for uuid in sorted({owners.get(uuid, uuid) for uuid in one.devices} & carrying(pods)):
            names = ", ".join(pod.key for pod in pods if uuid in pod.devices)
            text = f"{one.namespace}/{one.pod} holds GPU {uuid}, which carries fractions of {names}"
            found.append(Reason("FractionConflict", text, uuid))
    for pod in pods:
        if not pod.told:
            text = (
                f"container {pod.container} of {pod.key} takes no {VISIBLE_DEVICES} from {VISIBLE_PATH}; "
                f"policy {NAME}, which adds that, was not there (it needs Kubernetes 1.36)"
            )
            found.append(Reason("FractionNotDelivered", text, pod.key))
    return tuple(found)


def fraction_condition(problems: tuple[Reason, ...]) -> Told:
    """The condition of a `GPUNode` about fractions."""
    text = "; ".join(one.message for one in problems)
    return FRACTIONS_CONDITION, not problems, problems[0].code if problems else "FractionsWithheld", text
