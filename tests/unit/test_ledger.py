"""The ledger: the kubelet's account of devices, with what it does not say for a moment."""

from __future__ import annotations

from gpufleet.devices.ledger import BoundPod, allocations, holders
from gpufleet.kube.gpunode import GPUAllocation
from gpufleet.kube.kubelet.pod_resources import ContainerDevices, HeldDevices, PodDevices

GPU = "nvidia.com/gpu"
SHARED = "nvidia.com/gpu.shared"
OURS = frozenset({GPU, SHARED})
A = BoundPod("team", "a", "uid-a")
B = BoundPod("team", "b", "uid-b")


def account(pod: BoundPod, *ids: str, resource: str = GPU) -> PodDevices:
    return PodDevices(pod.namespace, pod.name, (ContainerDevices("main", (HeldDevices(resource, ids),)),))


def entry(pod: BoundPod, *devices: str, resource: str = GPU, ids: tuple[str, ...] = ()) -> GPUAllocation:
    return GPUAllocation(
        namespace=pod.namespace,
        pod=pod.name,
        pod_uid=pod.uid,
        container="main",
        resource=resource,
        devices=devices,
        ids=ids,
    )


def test_the_kubelets_account_is_told_with_the_uids_of_pods() -> None:
    listed = [account(B, "GPU-2"), account(A, "GPU-0", "GPU-1")]
    found = allocations(listed, [A, B], (), OURS)
    assert found == (entry(A, "GPU-0", "GPU-1"), entry(B, "GPU-2"))


def test_replicas_are_told_by_their_gpu_and_by_their_id() -> None:
    listed = [account(A, "GPU-0::1", "GPU-0::2", resource=SHARED)]
    found = allocations(listed, [A], (), OURS)
    assert found == (entry(A, "GPU-0", resource=SHARED, ids=("GPU-0::1", "GPU-0::2")),)


def test_what_others_issue_is_not_ours_to_tell() -> None:
    assert allocations([account(A, "rdma0", resource="rdma/hca")], [A], (), OURS) == ()


def test_a_pod_that_the_kubelet_does_not_list_yet_keeps_its_record_while_it_lives() -> None:
    before = (entry(A, "GPU-0"), entry(B, "GPU-1"))
    assert allocations([], [A, B], before, OURS) == before
    assert allocations([PodDevices("team", "a")], [A, B], before, OURS) == before
    assert allocations([], [A], before, OURS) == before[:1]


def test_a_pod_that_is_over_or_unknown_holds_nothing() -> None:
    over = BoundPod("team", "a", "uid-a", over=True)
    listed = [account(A, "GPU-0"), account(B, "GPU-1")]
    assert allocations(listed, [over], (entry(A, "GPU-0"),), OURS) == ()


def test_a_pod_of_the_same_name_is_another_pod() -> None:
    again = BoundPod("team", "a", "uid-again")
    before = (entry(A, "GPU-0"),)
    assert allocations([], [again], before, OURS) == ()
    assert allocations([account(again, "GPU-3")], [again], before, OURS) == (entry(again, "GPU-3"),)


def test_a_swap_is_followed() -> None:
    before = (entry(A, "GPU-0"),)
    assert allocations([account(A, "GPU-5")], [A], before, OURS) == (entry(A, "GPU-5"),)


def test_a_shared_gpu_has_several_holders() -> None:
    both = (entry(A, "GPU-0", resource=SHARED), entry(B, "GPU-0", resource=SHARED))
    assert holders(both) == {"GPU-0": both}
