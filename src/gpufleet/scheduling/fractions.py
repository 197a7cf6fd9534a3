"""Fractions of GPUs in placement: which nodes have room for a part, and which of them it suits best.

Only whole GPUs that nothing else shares can carry fractions, and only where an agent says which GPUs there
are: the pod must be told which one it got.
"""

from __future__ import annotations

from gpufleet.fleet.demands import MILLI
from gpufleet.fleet.devices import WHOLE_RESOURCE, NodeDevices
from gpufleet.fleet.pods import Pod, PodShape, is_gpu_resource
from gpufleet.scheduling.ledger import Ledger, NodeAccount
from gpufleet.scheduling.placement import Block, Check, Measure

OFFER = "GPU fractions"
"""What a node is said not to offer."""
_NEW_GPU = 50


def fault(shape: PodShape) -> str | None:
    """What is wrong with how a pod asks for a fraction, or None."""
    if shape.fraction is None:
        return None
    if any(amount and is_gpu_resource(resource) for resource, amount in shape.requests):
        return "the pod asks for a fraction of a GPU and for GPUs as a resource; it can have one of the two"
    return shape.fraction.problem or None


def prepare_room(pod: Pod, ledger: Ledger) -> Check | None:
    """Nodes without room for the pod's fraction."""
    fraction = pod.shape.fraction
    if fraction is None:
        return None
    devices = ledger.snapshot.devices

    def check(account: NodeAccount) -> Block | None:
        milli = fraction.on(account.node)
        if milli is None or not _offered(devices.get(account.name), account):
            return Block("ResourceNotOffered", OFFER, fraction.devices)
        return _shortage(fraction.devices, milli, account)

    return check


def prepare_packing(pod: Pod, ledger: Ledger) -> Measure | None:
    """GPUs that carry fractions and are left the fullest, before any that is whole."""
    fraction = pod.shape.fraction
    if fraction is None:
        return None

    def measure(account: NodeAccount) -> int:
        milli = fraction.on(account.node) or 0
        carried = account.carried
        idle = sorted(MILLI - carried.used[gpu] for gpu in carried.fitting(milli))[: fraction.devices]
        if len(idle) < fraction.devices:
            return max(0, _NEW_GPU - account.free(WHOLE_RESOURCE))
        left = sum(idle) - milli * fraction.devices
        return 100 - left * _NEW_GPU // (MILLI * fraction.devices)

    return measure


def _offered(devices: NodeDevices | None, account: NodeAccount) -> bool:
    pool = devices.pools.get(WHOLE_RESOURCE) if devices is not None else None
    whole = pool is not None and pool.whole and account.node.may_carry
    return whole and account.node.allocatable.get(WHOLE_RESOURCE, 0) > 0


def _shortage(devices: int, milli: int, account: NodeAccount) -> Block | None:
    whole = max(0, account.free(WHOLE_RESOURCE))
    if devices > account.node.allocatable[WHOLE_RESOURCE] or milli > MILLI:
        return Block("ExceedsNodeCapacity", f"GPUs with {milli} milli-GPU", devices, 0)
    have = len(account.carried.fitting(milli)) + whole
    if have >= devices:
        return None
    if devices > 1:
        return Block("InsufficientResource", f"GPUs with {milli} milli-GPU", devices, have)
    most = max((MILLI - account.carried.used[gpu] for gpu in account.carried.fitting(0)), default=0)
    return Block("InsufficientResource", "milli-GPU of one GPU", milli, most)
