"""gpufleet's own labels: `gpufleet.dev/gang` of a bare pod names the gang, `gpufleet.dev/gang-size` its
minimum.

Both may be labels or annotations of the pod; the label wins. A gang lives in its namespace. On nodes,
`gpufleet.dev/pool` names the pool and `gpufleet.dev/purpose` what it is for.
"""

from __future__ import annotations

from gpufleet.fleet.pods import GANG_LABEL, GANG_LABELS_RULE, GANG_SIZE_LABEL, GangRef
from gpufleet.kube.objects import ObjectMeta

RULE = GANG_LABELS_RULE
POOL_LABEL = "gpufleet.dev/pool"
PURPOSE_LABEL = "gpufleet.dev/purpose"

MAX_DIGITS = 6
"""No cluster has a million pods; an annotation may hold 256 KiB, and `int` refuses numbers of that length."""

_SIZES = f"a whole number from 1 to {10**MAX_DIGITS - 1}"

SHOWN = 40
"""How much of a size that is none is repeated in the message."""


def gang_of(metadata: ObjectMeta) -> GangRef | None:
    """The gang that the pod's own labels or annotations name, or None when they name none.

    A size without a name is a slip of a template: a gang that cannot be understood, and no pod on its own.
    """
    name = metadata.labels.get(GANG_LABEL) or metadata.annotations.get(GANG_LABEL)
    size = metadata.labels.get(GANG_SIZE_LABEL) or metadata.annotations.get(GANG_SIZE_LABEL)
    if not name:
        slip = f"{GANG_SIZE_LABEL} is {_shown(size)} and {GANG_LABEL} names no gang" if size else ""
        return GangRef("", None, RULE, slip) if slip else None
    if size is None:
        return GangRef(name, None, RULE, f"{GANG_SIZE_LABEL} is missing beside {GANG_LABEL}={name}")
    if not size.isdecimal() or len(size) > MAX_DIGITS or int(size) < 1:
        return GangRef(name, None, RULE, f"{GANG_SIZE_LABEL} must be {_SIZES}, not {_shown(size)}")
    return GangRef(name, int(size), RULE)


def _shown(size: str) -> str:
    return repr(size if len(size) <= SHOWN else f"{size[:SHOWN]}...")
