"""gpufleet's own labels: `gpufleet.dev/gang` of a bare pod names the gang, `gpufleet.dev/gang-size` its
minimum.

Both may be labels or annotations of the pod; the label wins. A gang lives in its namespace. On nodes,
`gpufleet.dev/pool` names the pool and `gpufleet.dev/purpose` what it is for.
"""

from __future__ import annotations

from gpufleet.fleet.pods import GANG_LABEL, GANG_LABELS_RULE, GANG_SIZE_LABEL, GangRef
from gpufleet.kube.conventions.stated import shown, size_in
from gpufleet.kube.objects import ObjectMeta

RULE = GANG_LABELS_RULE
POOL_LABEL = "gpufleet.dev/pool"
PURPOSE_LABEL = "gpufleet.dev/purpose"


def gang_of(metadata: ObjectMeta) -> GangRef | None:
    """The gang that the pod's own labels or annotations name, or None when they name none.

    A size without a name is a slip of a template: a gang that cannot be understood, and no pod on its own.
    """
    name = metadata.labels.get(GANG_LABEL) or metadata.annotations.get(GANG_LABEL)
    size = metadata.labels.get(GANG_SIZE_LABEL) or metadata.annotations.get(GANG_SIZE_LABEL)
    if not name:
        slip = f"{GANG_SIZE_LABEL} is {shown(size)} and {GANG_LABEL} names no gang" if size else ""
        return GangRef("", None, RULE, slip) if slip else None
    if size is None:
        return GangRef(name, None, RULE, f"{GANG_SIZE_LABEL} is missing beside {GANG_LABEL}={name}")
    minimum, problem = size_in(size, GANG_SIZE_LABEL)
    return GangRef(name, minimum, RULE, problem)
