"""Scores: which of the nodes that fit is best, in one table.

Four tiers, each decisive over all below it: what the pod's author prefers; GPUs kept for pods that use them;
replicas of one owner on different nodes; and best-fit packing, so that whole nodes stay free for large jobs.
A tier is decisive because its weight exceeds everything the tiers below can add up to (a measure is at most
100). Preferences are the author's word, so they come first; a pod without GPUs on a GPU node strands devices
for as long as it runs, so it goes there only when nothing else fits; losing a node should cost a service one
replica, so spreading beats packing. Jobs, bare pods and members of a gang have no replicas to protect and are
packed.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import Pod, is_gpu_resource, uses_gpus
from gpufleet.fleet.selectors import Taint
from gpufleet.scheduling import affinity, fractions, nodeaffinity, spread
from gpufleet.scheduling.ledger import Ledger, NodeAccount
from gpufleet.scheduling.placement import Measure, Score
from gpufleet.scheduling.worth import packed_otherwise, prepare_worth

REPLICATED_KINDS = ("ReplicaSet", "StatefulSet", "LeaderWorkerSet", "ReplicationController")
"""Kinds of owner whose pods are replicas of one service."""


def prepare_soft_taints(pod: Pod, ledger: Ledger) -> Measure | None:
    """Fewer PreferNoSchedule taints that the pod does not tolerate; none anywhere says nothing."""
    tolerations = pod.shape.tolerations
    if not any(_soft_taints(account.node) for account in ledger.accounts.values()):
        return None

    def measure(account: NodeAccount) -> int:
        disliked = sum(
            1 for taint in _soft_taints(account.node) if not any(t.tolerates(taint) for t in tolerations)
        )
        return 100 // (1 + disliked)

    return measure


def prepare_gpu_free_nodes(pod: Pod, ledger: Ledger) -> Measure | None:
    """Nodes without GPUs, for pods that ask for none, where the fleet has both kinds of node."""
    if uses_gpus(pod.shape):
        return None
    if len({_has_gpus(account.node) for account in ledger.accounts.values()}) < 2:
        return None
    return lambda account: 0 if _has_gpus(account.node) else 100


def prepare_replica_spread(pod: Pod, ledger: Ledger) -> Measure | None:
    """Fewer pods of the same owner on the node; those that are ending do not count."""
    owner = pod.owner
    if not owner or pod.owner_kind not in REPLICATED_KINDS or pod.gang is not None:
        return None

    def measure(account: NodeAccount) -> int:
        mates = 0
        for other in account.pods.values():
            if other.owner == owner and not other.terminating:
                mates += 1
        return max(0, 100 - mates)

    return measure


def prepare_gpu_packing(pod: Pod, ledger: Ledger) -> Measure | None:
    """Fewer GPUs left over: of the kinds that the pod asks for, or of any kind when it asks for none."""
    if pod.shape.fraction:
        return None
    wanted = {resource: n for resource, n in pod.shape.requests if n and is_gpu_resource(resource)}
    if not wanted:
        return lambda account: max(0, 100 - _free_gpus(account))
    asked = sum(wanted.values())

    def measure(account: NodeAccount) -> int:
        allocatable, used = account.node.allocatable, account.used
        left = -asked
        for resource in wanted:
            left += allocatable.get(resource, 0) - used.get(resource, 0)
        return 100 - min(100, max(0, left))

    return measure


def prepare_packing(pod: Pod, ledger: Ledger) -> Measure | None:
    """Fuller nodes by CPU and memory once the pod runs there, in percent."""
    requests = dict(pod.shape.requests)
    cpu, memory = requests.get("cpu", 0), requests.get("memory", 0)

    def measure(account: NodeAccount) -> int:
        allocatable, used = account.node.allocatable, account.used
        return (
            _percent(used.get("cpu", 0) + cpu, allocatable.get("cpu", 0))
            + _percent(used.get("memory", 0) + memory, allocatable.get("memory", 0))
        ) // 2

    return measure


_TIER = 101
_PACK_REST, _PACK_GPUS, _SPREAD, _KEEP_GPUS, _PREFER = (_TIER**tier for tier in range(5))

SCORES: tuple[Score, ...] = (
    Score("preferred nodes",    _PREFER,     nodeaffinity.prepare_preferred,  True,   "PreferenceMatched"),
    Score("preferred pods",     _PREFER,     affinity.prepare_preferred,      False,  "PreferenceMatched"),
    Score("soft spread",        _PREFER,     spread.prepare_soft,             False,  "PreferenceMatched"),
    Score("soft taints",        _PREFER,     prepare_soft_taints,             True,   "PreferenceMatched"),
    Score("GPU-free nodes",     _KEEP_GPUS,  prepare_gpu_free_nodes,          True,   "BestFit"),
    Score("replica spread",     _SPREAD,     prepare_replica_spread,          True,   "SpreadReplicas"),
    Score("worth",              _PACK_GPUS,  prepare_worth,                   True,   "BestFit"),
    Score("GPU packing",        _PACK_GPUS,  packed_otherwise(prepare_gpu_packing), True,   "BestFit"),
    Score("fraction packing",   _PACK_GPUS,  packed_otherwise(fractions.prepare_packing), True,   "BestFit"),
    Score("packing",            _PACK_REST,  packed_otherwise(prepare_packing), True,   "BestFit"),
)  # fmt: skip


def _soft_taints(node: Node) -> list[Taint]:
    return [taint for taint in node.taints if taint.effect == "PreferNoSchedule"]


def _has_gpus(node: Node) -> bool:
    return any(amount > 0 and is_gpu_resource(resource) for resource, amount in node.allocatable.items())


def _free_gpus(account: NodeAccount) -> int:
    allocatable: Mapping[str, int] = account.node.allocatable
    return sum(max(0, account.free(resource)) for resource in allocatable if is_gpu_resource(resource))


def _percent(part: int, whole: int) -> int:
    return min(100, 100 * part // whole) if whole > 0 else 100
