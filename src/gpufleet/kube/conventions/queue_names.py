"""Which queue a pod names: gpufleet's label, or what people wrote for KAI, Volcano, Kueue or YuniKorn.

The first that is there wins, in this order. Kueue's names a LocalQueue of the pod's namespace, so it reads as
`namespace/name`; YuniKorn's is a path from `root`, and what is below root is the name.
"""

from __future__ import annotations

from gpufleet.fleet.queues import QUEUE_LABEL
from gpufleet.kube.objects import ObjectMeta

KAI_LABEL = "kai.scheduler/queue"
VOLCANO_ANNOTATION = "scheduling.volcano.sh/queue-name"
KUEUE_LABEL = "kueue.x-k8s.io/queue-name"
YUNIKORN_KEY = "yunikorn.apache.org/queue"


def queue_of(metadata: ObjectMeta) -> str:
    """The name of the pod's queue; empty when it names none."""
    labels, annotations = metadata.labels, metadata.annotations
    plain = (
        labels.get(QUEUE_LABEL)
        or annotations.get(QUEUE_LABEL)
        or labels.get(KAI_LABEL)
        or annotations.get(VOLCANO_ANNOTATION)
    )
    if plain:
        return plain
    if local := labels.get(KUEUE_LABEL):
        return f"{metadata.namespace}/{local}"
    return (labels.get(YUNIKORN_KEY) or annotations.get(YUNIKORN_KEY) or "").removeprefix("root.")
