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
    "GangIncomplete": "Fewer pods of the gang, or of a part of it, exist than it needs, or the object that "
    "says how many it needs cannot be found.",
    "GangUnplaceable": "Not all pods that the gang, or a part of it, needs fit at once, so none is bound.",
    "GangInvalid": "What is said of the gang makes no sense: its pods disagree about its size, the size is "
    "not a positive number, its parts form no tree, or it has no name.",
    "FractionInvalid": "What the pod states about the fraction of a GPU that it needs cannot be understood.",
    "TopologyUnsatisfied": "No domain of the level that pods of the gang must share has room for them.",
    "FractionConflict": "A pod holds a whole GPU that carries fractions: another scheduler's pod got it in "
    "the moment between the binding of the first fraction and its agent's knowledge of that.",
    "FractionNotDelivered": "The container that has a fraction of a GPU does not learn which: the admission "
    "policy that adds the variable was not there when the pod was created.",
    "FractionsNotWithheld": "GPUs of the node carry no fractions, because another device plugin than "
    "gpufleet's hands them out whole.",
    "DynamicResources": "The pod uses ResourceClaims; gpufleet leaves it to kube-scheduler, where that runs.",
    "ResourceClaimNotFound": "A ResourceClaim of the pod, or the template of one, does not exist.",
    "QueueOverLimit": "The pod's queue, or one above it, would hold more than its limit.",
    "QueueNotFound": "The pod names a queue that does not exist.",
    "QueueInvalid": "The pod's queue cannot be used: its parent does not exist, it is above itself, its name "
    "is taken twice, or pods wait in the queues below it.",
    "QueueClosed": "The pod's queue, or one above it, takes nobody in.",
    "Terminating": "The pod is being deleted: it ends, or is not placed any more.",
    "NoNodes": "The cluster has no nodes.",
    # what happens instead of a placement
    "WaitingForVictims": "Victims were evicted for this pod and have not ended yet.",
    "PreemptionNever": "The pod's preemptionPolicy is Never.",
    "NoVictims": "No set of lower-priority pods would make room.",
    "WaitingForDevices": "Another pod is being given devices of the node; once it is known which, the pod is "
    "bound, so that nobody gets what was picked for somebody else.",
    "BindFailed": "The API server refused what was decided for the pod; it is tried again after a pause.",
    # why a placement or an eviction was chosen
    "BestFit": "The node leaves the fewest GPUs stranded (best-fit packing).",
    "SpreadReplicas": "Replicas of one owner are kept on different nodes.",
    "TopologyMatched": "The node is near to those of the other pods of the gang.",
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
    # why a GPU is or is not cut by MIG as wanted
    "WaitingForCut": "A GPU is being cut for the pod; it is bound once the instance exists.",
    "MigMerged": "A GPU that was cut and that nobody has used for a while is made whole again.",
    "MigCut": "A GPU is cut, or made whole, for a pod that fits on no GPU as it is.",
    "MigRoomFree": "The wanted MIG instances fit beside those that the GPU has.",
    "MigIdleDestroyed": "Idle MIG instances are destroyed, the fewest that make the wanted layout possible.",
    "MigInstanceBusy": "A MIG instance that a pod uses stands in the way of the wanted layout.",
    "MigDoesNotFit": "The wanted MIG instances do not fit, not even on GPUs without instances.",
    # what the MIG manager of a node did not do, and why
    "UnknownMigConfig": "The label nvidia.com/mig.config names a config that does not exist.",
    "InvalidMigConfig": "The file of MIG configs has a mistake, or the config cannot be applied.",
    "UnknownMigProfile": "The GPU has no MIG profile of this name; the names differ between products.",
    "MigModeSwitchNotAllowed": "MIG mode would have to be switched, and the pool does not allow it.",
    "MigResetRequired": "The switch of MIG mode takes effect only when the GPU is reset.",
    "MigGpuBusy": "The GPU as a whole is in use, so its MIG mode is not switched.",
    "MigGpuLost": "The GPU does not answer, so it is not cut.",
    "MigLayoutChanged": "Somebody changed the GPU after the plan was made, so it is planned again.",
    "MigCallFailed": "The driver refused a step; what had been changed was put back.",
    "MigNotRestored": "The driver refused a step, and then not everything could be put back.",
    "MigDeadlinePassed": "The wanted MIG instances could not be made in time.",
    # what is amiss with the CDI specs of a node
    "CdiToolkitMissing": "CDI is configured and the host has no nvidia-ctk, so devices are named otherwise.",
    "CdiSpecFailed": "The CDI spec could not be made anew; devices that no spec names are given to nobody.",
    "CdiSpecConflict": "Two CDI specs name one device, which container runtimes then do not find.",
    "CdiDeviceUnnamed": "No CDI spec names the device, although the spec was made anew.",
    # who owns a part of a GPU node
    "RegisteredByOther": "The node has a GPU resource that our agent did not register.",
    "RegisteredByUs": "Our agent registered the node's GPU resources, and nobody else may.",
    "StaleRegistration": "A GPU resource went to zero a short while ago, so its registrar may come back.",
    "WorkloadOwnsPart": "A pod or DaemonSet runs the part on the node, or may start there.",
    "OperatorOwnsPart": "The GPU operator's custom resource covers the part on this node.",
    "HostServiceOwnsPart": "A service of the host runs the part; no pod shows it.",
    "ProviderOwnsPart": "The part comes with the cloud's node or its image.",
    "DynamicResourcesOwnDevices": "A DRA driver hands out the node's GPUs, or its class serves the resource.",
    "FoundOnHost": "The part was found on the host.",
    "NobodyOwnsPart": "Nobody has the part, and nothing says that somebody may come for it.",
    "OwnershipUnknown": "Not everything could be read, so somebody may have the part; it is left alone.",
    "NotNeeded": "The node works without the part.",
    "FollowsPlugin": "The part changes devices under a device plugin that is somebody else's, so it is left.",
    "DriverMissing": "The node has a GPU and no NVIDIA driver is loaded.",
    "NoGpu": "The node has no NVIDIA GPU.",
    "MigUnsupported": "The GPU cannot be cut by MIG.",
    # whether a GPU pool has its nodes, and whether they are as it asks
    "PoolSettled": "Every node of the pool is as the pool asks.",
    "PoolEmpty": "No node matches the pool's selector.",
    "PoolUndisputed": "No other pool claims a node of the pool.",
    "PoolConflict": "Several pools claim the node, so it is left as it is until only one does.",
    "PoolDrift": "A node of the pool is not as the pool asks; the node's own reasons say how.",
    "PoolLabelDrift": "Somebody changed a label of the node after the pool had set it; it stays so.",
    "PoolTaintDrift": "Somebody changed a taint of the node after the pool had set it; it stays so.",
    "PoolMigDrift": "GPUs of the node are not cut as the pool asks; their agent is asked to cut them.",
    "PoolMigAdvised": "GPUs would be cut anew, and the pool's disruption is advise.",
    "PoolMigModeSwitch": "GPUs need a switch of MIG mode, which the pool does not allow.",
    "PoolMigImpossible": "The product of a GPU cannot be cut as the pool asks.",
    "PoolSharingDrift": "The devices of the node are not shared as the pool asks.",
    "PoolNodeUnreported": "No agent has reported the GPUs of the node.",
    "PoolRecordUnreadable": "What a pool changed on the node cannot be read, so the node is left as it is.",
    "PoolApplied": "Labels and taints of the node were set as its pool asks; what they replaced is recorded.",
    "PoolUndone": "The node left its pool, and what the pool had changed was taken back.",
    # how a GPU should be shared for a workload
    "WholeForSeveralGpus": "Pods with several GPUs, or that exchange data between GPUs, get whole ones.",
    "WholeForOneJob": "A job that may fill a GPU gets it whole.",
    "WholeWhenUnsure": "Nothing says what the workload is for; a whole GPU is right for everything.",
    "IsolationForService": "Inference for production needs memory and failures of its own (MIG).",
    "PartForSmallJobs": "Small jobs each get a part of a GPU (MIG, or MPS with limits).",
    "TurnsForInteractive": "Notebooks and development need a GPU now and then, so several take turns.",
    "LimitsForTeam": "Small processes that one team trusts run at the same time, each with limits (MPS).",
    "NextBestSharing": "The way of sharing that suits best cannot be used here; this is the next one.",
    "ShareFitsMemory": "The share is the smallest that holds the memory that the workload needs.",
    "MemoryNeedUnknown": "Nothing says how much GPU memory the workload needs; the size is a first choice.",
    "EngineTakesMemory": "The engine claims most of a GPU's memory at its start unless it is told not to.",
    "ExceedsGpuMemory": "The workload needs more memory than its GPUs have.",
    "SharesCannotTalk": "Instances and replicas of GPUs exchange no data with each other.",
    "MpsUnsupported": "The GPU or the workload cannot be used with MPS.",
    "FaultsAreShared": "A fatal fault of one MPS client ends all clients of the GPU.",
    "NoMemoryLimit": "With time-slicing nothing limits the memory that one process takes.",
    "NeedsMostOfGpu": "The workload needs more memory than a share of the GPU has.",
    "SharingNotPreferred": "This way of sharing would work, but suits the workload less.",
    "NoGpuRequested": "The object has no pods that ask for a GPU.",
    "NoWorkload": "The object has no pods of its own.",
    "ProductAssumed": "Nothing says which GPU the workload runs on, so a common one was assumed.",
}
