"""The mix: which pods usually come, learned from those that are there.

It is known once enough pods with GPUs have been seen, and is taken anew only when their number has changed by
a tenth: decisions that lean on it should not sway with each pod.
"""

from __future__ import annotations

from collections import Counter

from gpufleet.fleet.demands import MILLI, Demand, TypicalPod, typical_pods
from gpufleet.fleet.devices import WHOLE_RESOURCE
from gpufleet.fleet.pods import PodShape, is_gpu_resource
from gpufleet.fleet.selectors import NodeSelector

PRODUCT_LABEL = "nvidia.com/gpu.product"
ENOUGH = 100
"""So many pods with GPUs make a mix."""
_SWAY = 10


def demand_of(shape: PodShape) -> Demand | None:
    """The pod as a mix counts it: CPU, GPUs or parts of them, and the products that it insists on. None for
    one without GPUs, with devices that are neither, or whose part is an amount of memory.
    """
    requests = dict(shape.requests)
    if any(amount and is_gpu_resource(name) and name != WHOLE_RESOURCE for name, amount in shape.requests):
        return None
    cpu, products = requests.get("cpu", 0), _products(shape)
    if shape.fraction is None:
        gpus = requests.get(WHOLE_RESOURCE, 0)
        return Demand(cpu, gpus, MILLI, products) if gpus else None
    return (
        Demand(cpu, shape.fraction.devices, shape.fraction.milli, products) if shape.fraction.milli else None
    )


class MixCounter:
    """The mix of pods that come and go."""

    def __init__(self) -> None:
        self._counts: Counter[Demand] = Counter()
        self._pods = 0
        self._taken_at = 0
        self._mix: tuple[TypicalPod, ...] = ()

    def add(self, shape: PodShape, by: int = 1) -> None:
        """Count a pod, or (by -1) count it no longer."""
        demand = demand_of(shape)
        if demand is None:
            return
        self._counts[demand] += by
        if not self._counts[demand]:
            del self._counts[demand]
        self._pods += by

    def mix(self) -> tuple[TypicalPod, ...]:
        """The mix; the same object until it is taken anew. Empty while there are too few pods."""
        changed = abs(self._pods - self._taken_at)
        if changed * _SWAY >= max(ENOUGH, self._taken_at):
            self._taken_at = self._pods
            self._mix = typical_pods(self._counts.elements()) if self._pods >= ENOUGH else ()
        return self._mix


def _products(shape: PodShape) -> tuple[str, ...]:
    named = dict(shape.node_selector).get(PRODUCT_LABEL)
    if named is not None:
        return (named,)
    return _products_in(shape.node_affinity) if shape.node_affinity is not None else ()


def _products_in(affinity: NodeSelector) -> tuple[str, ...]:
    """The products that every term names; none where one of them leaves others open."""
    found: set[str] = set()
    for term in affinity.terms:
        named = [r.values for r in term.expressions if r.key == PRODUCT_LABEL and r.operator == "In"]
        if not named:
            return ()
        found.update(*named)
    return tuple(sorted(found))
