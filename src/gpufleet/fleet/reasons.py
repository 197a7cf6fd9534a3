"""Reasons: why a decision was taken, in a closed vocabulary.

The same code stands in the pod's condition, the Event, `gpufleet why`, the metrics and the simulator. `CODES`
is the whole vocabulary and the source of docs/reference/reasons.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Reason(msgspec.Struct, frozen=True, omit_defaults=True):
    """One reason: a code of `CODES`, a sentence for people, the object it is about, and the numbers behind
    it.

    `nodes` counts the nodes that the reason blocks (0 where it is not about nodes). `evidence` maps names to
    integers or text, for example {"need": 8, "free": 3}.
    """

    code: str
    message: str
    subject: str = ""
    nodes: int = 0
    evidence: Mapping[str, int | str] = {}


CODES: dict[str, str] = {
    # where a pod does not fit on a node
    "NodeNotReady": "The node's Ready condition is not True, or its agent stopped renewing its Lease.",
    "NodeUnschedulable": "The node is cordoned (spec.unschedulable).",
    "NodeUnaccounted": "A pod on the node cannot be read, so what is free there is unknown.",
    "UntoleratedTaint": "The node has a taint that the pod does not tolerate.",
    "NodeSelectorMismatch": "The pod's nodeSelector does not match the node's labels.",
    "NodeAffinityMismatch": "The pod's required node affinity does not match the node.",
    "InsufficientResource": "The node has the resource, but too little of it is free now.",
    "ExceedsNodeCapacity": "The pod asks for more of a resource than the node has when it is empty.",
    "ResourceNotOffered": "The node does not offer the resource at all.",
    "DeviceUnhealthy": "The node has enough of the resource when it is empty, but too much of it is sick.",
    "TooManyPods": "The node runs as many pods as it may.",
    "HostPortTaken": "Another pod on the node holds a host port that the pod asks for.",
    "PodAffinityUnmatched": "Required pod affinity finds no matching pod in the node's topology domain.",
    "PodAntiAffinityConflict": "Required anti-affinity of the pod, or of a pod there, forbids the node.",
    "TopologySpreadExceeded": "A topology spread constraint (DoNotSchedule) would exceed its maxSkew.",
    "VolumeNodeConflict": "A volume of the pod cannot be used from the node (node affinity, zone).",
    "VolumeInUse": "A ReadWriteOncePod volume, or a ReadWriteOnce volume that is attached, is in use "
    "elsewhere.",
    "VolumeLimitExceeded": "The node cannot attach more volumes of this CSI driver.",
    "StorageCapacityExceeded": "The storage class has too little capacity left that the node can reach.",
    # where a pod cannot be placed whatever the node
    "ClaimNotFound": "A PersistentVolumeClaim of the pod does not exist.",
    "ClaimUnbound": "A claim with immediate binding is not bound yet.",
    "ClaimLost": "The claim lost its volume.",
    "ClaimTerminating": "The claim is being deleted; only the pods that use it already go on.",
    "StorageClassNotFound": "The claim names a storage class that does not exist.",
    "WaitingForVolume": "A node was chosen for the claim; its provisioner has not bound it yet.",
    "SchedulingGated": "The pod has scheduling gates; whoever set them must remove them.",
    "GangIncomplete": "Fewer pods of the gang exist than it needs.",
    "GangUnplaceable": "Not all pods that the gang needs fit at once, so none is bound.",
    "GangInvalid": "The pods of the gang disagree about its size, the size is not a positive number, or the "
    "gang has no name.",
    "DynamicResources": "The pod uses ResourceClaims; gpufleet leaves it to kube-scheduler, where that runs.",
    "ResourceClaimNotFound": "A ResourceClaim of the pod, or the template of one, does not exist.",
    "Terminating": "The pod is being deleted: it ends, or is not placed any more.",
    "NoNodes": "The cluster has no nodes.",
    # what happens instead of a placement
    "WaitingForVictims": "Victims were evicted for this pod and have not ended yet.",
    "PreemptionNever": "The pod's preemptionPolicy is Never.",
    "NoVictims": "No set of lower-priority pods would make room.",
    "BindFailed": "The API server refused what was decided for the pod; it is tried again after a pause.",
    # why a placement or an eviction was chosen
    "BestFit": "The node leaves the fewest GPUs stranded (best-fit packing).",
    "SpreadReplicas": "Replicas of one owner are kept on different nodes.",
    "PreferenceMatched": "The node matches preferred affinity or spread of the pod.",
    "OnlyFit": "No other node fits.",
    "RoomMade": "Others were evicted from the node, or ended there, for this pod.",
    "GangPlaced": "All pods that the gang needs were placed together.",
    "Preempted": "The pod was evicted so that a pod of higher priority can run.",
    "HeldForNominated": "The free capacity is held for a pod that comes first, or for which victims were "
    "evicted, or which waits for its volume or for its binding to be tried again.",
    "Bound": "The pod is bound: its containers run, start or wait.",
    "ContainerWaiting": "The pod is bound, but a container of it waits, for example for its image.",
    "NotReady": "A container of the pod runs and its probe does not pass, or a readiness gate is not open.",
    "NodeNotFound": "The pod is bound to a node that does not exist.",
    "Finished": "The pod has ended.",
    "Schedulable": "The pod fits now; the next decision binds it.",
    "OtherScheduler": "Another scheduler is responsible for the pod.",
}
