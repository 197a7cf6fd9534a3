"""Why a pod is not bound, in words: from the blocks of single nodes to reasons, and from reasons to one line.

The line keeps the form that people and tools know from kube-scheduler (`0/7 nodes are available: 4
Insufficient nvidia.com/gpu, ...`) and ends with our codes, so that it can be looked up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from gpufleet.fleet.quantities import comparable_amounts
from gpufleet.fleet.reasons import Reason
from gpufleet.scheduling.placement import Block

_Amounts = tuple[int, int, int]
"""What is needed, what is there, and of how much, as a block says it."""

LONGEST = 1000
"""Characters of a message; an Event takes 1,024 bytes."""

_KUBERNETES_WORDS: dict[str, str] = {
    "NodeNotReady": "node(s) were not ready",
    "NodeUnschedulable": "node(s) were unschedulable",
    "NodeUnaccounted": "node(s) had pods that cannot be read",
    "UntoleratedTaint": "node(s) had untolerated {detail}",
    "NodeSelectorMismatch": "node(s) didn't match Pod's node affinity/selector",
    "NodeAffinityMismatch": "node(s) didn't match Pod's node affinity/selector",
    "InsufficientResource": "Insufficient {detail}",
    "ExceedsNodeCapacity": "node(s) too small for the requested {detail}",
    "ResourceNotOffered": "node(s) without {detail}",
    "DeviceUnhealthy": "node(s) with too few healthy {detail}",
    "TooManyPods": "Too many pods",
    "HostPortTaken": "node(s) didn't have free ports for the requested pod ports",
    "PodAffinityUnmatched": "node(s) didn't match pod affinity rules",
    "PodAntiAffinityConflict": "node(s) didn't match pod anti-affinity rules",
    "TopologySpreadExceeded": "node(s) didn't match pod topology spread constraints",
    "VolumeNodeConflict": "node(s) didn't match PersistentVolume's node affinity",
    "VolumeInUse": "node(s) unavailable due to volumes in use elsewhere",
    "VolumeLimitExceeded": "node(s) exceed max volume count",
    "StorageCapacityExceeded": "node(s) did not have enough free storage",
}

_SENTENCES: dict[str, str] = {
    "NodeNotReady": "{nodes} not ready",
    "NodeUnschedulable": "{nodes} cordoned",
    "NodeUnaccounted": "{nodes} where nobody knows what is free, as a pod cannot be read{colon_detail}",
    "UntoleratedTaint": "{nodes} with {detail}, which the pod does not tolerate",
    "NodeSelectorMismatch": "{nodes} outside the pod's nodeSelector: {detail}",
    "NodeAffinityMismatch": "{nodes} outside the pod's required node affinity{colon_detail}",
    "InsufficientResource": "{nodes} with too little {detail} free: {need} needed, at most {have} free",
    "ExceedsNodeCapacity": "{nodes} too small: {need} {detail} needed on one node, the largest has {have}",
    "ResourceNotOffered": "{nodes} without any {detail}",
    "DeviceUnhealthy": "{nodes} with too few healthy {detail}: {need} needed, at most {have} of {total}",
    "TooManyPods": "{nodes} already at the maximum number of pods",
    "HostPortTaken": "{nodes} with a host port taken{colon_detail}",
    "PodAffinityUnmatched": "{nodes} without the pods that required pod affinity needs{colon_detail}",
    "PodAntiAffinityConflict": "{nodes} ruled out by pod anti-affinity{colon_detail}",
    "TopologySpreadExceeded": "{nodes} where a topology spread constraint would be exceeded{colon_detail}",
    "VolumeNodeConflict": "{nodes} from which a volume cannot be reached{colon_detail}",
    "VolumeInUse": "{nodes} ruled out because a volume is in use elsewhere{colon_detail}",
    "VolumeLimitExceeded": "{nodes} that cannot attach more volumes{colon_detail}",
    "StorageCapacityExceeded": "{nodes} without enough storage{colon_detail}",
}


class Tally:
    """Nodes that are out, counted by the way in which they are. A node that is short of several resources
    counts for each of them.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], Counter[_Amounts]] = {}

    def count(self, block: Block, by: int = 1) -> None:
        """Count a node that is out, or (by -1) count it no longer."""
        for part in block.parts:
            group = self._groups.setdefault((part.code, part.detail), Counter())
            group[part.need, part.have, part.total] += by

    def reasons(self) -> tuple[Reason, ...]:
        """One reason for each way, the commonest first, with the number of nodes."""
        groups = ((+group, key) for key, group in self._groups.items())
        ordered = sorted((-group.total(), key, group) for group, key in groups if group)
        return tuple(_node_reason(*key, group) for _, key, group in ordered)


def node_reasons(blocks: Iterable[tuple[str, Block]]) -> tuple[Reason, ...]:
    """The reasons for nodes, each with its block."""
    tally = Tally()
    for _, block in blocks:
        tally.count(block)
    return tally.reasons()


def pod_reason(block: Block, subject: str) -> Reason:
    """The reason for a block that holds whatever the node."""
    return Reason(block.code, block.detail, subject)


def condition_message(reasons: Sequence[Reason], nodes: int, longest: int = LONGEST) -> str:
    """One line for the PodScheduled condition and the Event; `nodes` is the size of the cluster.

    A line that would be too long is cut before its codes.
    """
    counts: Counter[str] = Counter()
    for reason in reasons:
        if reason.nodes:
            counts[_kubernetes_words(reason)] += reason.nodes
    others = [_sentence(reason.message) for reason in reasons if not reason.nodes]
    parts = []
    if counts:
        ways = sorted(f"{count} {words}" for words, count in counts.items())
        parts.append(f"0/{nodes} nodes are available: {', '.join(ways)}.")
    if others:
        parts.append(". ".join(others) + ".")
    codes = f"[{', '.join(dict.fromkeys(reason.code for reason in reasons))}]"
    text = " ".join(parts)
    room = longest - len(codes) - 1
    return f"{text if len(text) <= room else text[: room - 3] + '...'} {codes}".lstrip()


def _node_reason(code: str, detail: str, nodes: Counter[_Amounts]) -> Reason:
    count = nodes.total()
    need = max(need for need, _, _ in nodes)
    have, total = max((have, total) for _, have, total in nodes)
    have = max(0, have)
    resource = detail if code in ("InsufficientResource", "ExceedsNodeCapacity", "ResourceNotOffered") else ""
    needed, there = comparable_amounts(resource, need, have)
    text = _SENTENCES[code].format(
        nodes="1 node" if count == 1 else f"{count} nodes",
        detail=detail,
        colon_detail=f": {detail}" if detail else "",
        need=needed,
        have=there,
        total=total,
    )
    evidence: dict[str, int | str] = {"need": need, "have": have} if need else {}
    if total:
        evidence["total"] = total
    return Reason(code, text, detail, count, evidence)


def _sentence(text: str) -> str:
    """The text as the start of a sentence; keys and names stay as they are written."""
    first = text.split(maxsplit=1)[0] if text.strip() else ""
    return text if any(mark in first for mark in "./") else text[:1].upper() + text[1:]


def _kubernetes_words(reason: Reason) -> str:
    return _KUBERNETES_WORDS[reason.code].format(detail=reason.subject)
