"""Worth: what the idle GPUs of a node are good for, so that each pod goes where it takes least of that.

Three estimates for the mix of pods that usually come, in milli-GPU: what its pods could use at once
(fragmentation gradient descent); what each idle part of a GPU is worth at the prices at which all parts of
the fleet would sell out together (`fleet.gpu_prices`); less what stays idle for ever because the node's CPU
runs out first. A pod takes from a node what the node is worth less with it than without. Losses that differ
by less than a tenth of a GPU are equal: then the order of nodes decides, which fills one node before the
next.

The weights were found on the openb trace, on other arrivals than the benchmark's (benchmarks/openb.py);
docs/concepts/simulator.md has what each of them gains.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from gpufleet.fleet.demands import MILLI, TypicalPod
from gpufleet.fleet.devices import WHOLE_RESOURCE
from gpufleet.fleet.fractions import best_parts
from gpufleet.fleet.fragmentation import Fragmentation, FreeNode
from gpufleet.fleet.gpu_prices import Values, part_values, value_of
from gpufleet.fleet.mixes import PRODUCT_LABEL
from gpufleet.fleet.pods import Pod, PodShape, is_gpu_resource
from gpufleet.scheduling.ledger import Ledger, NodeAccount
from gpufleet.scheduling.placement import Measure

_PARTS = 10
"""Weight of what idle parts are worth."""
_STRANDED = (3, 2)
"""Weight of what CPU leaves stranded, as a fraction."""
_SPARE_CPU = (3, 2)
"""So many times as much GPU as the mix runs on average is reckoned for a core."""
_GRAIN = 100
_EQUAL = 50
"""The measure of a node that loses nothing."""


class Worth:
    """The worth of nodes for one mix of pods; `products` are the GPU products of the nodes."""

    def __init__(self, mix: tuple[TypicalPod, ...], products: tuple[str, ...]) -> None:
        self._useful = Fragmentation(mix, products)
        self.values = part_values(mix)
        wanting = [one for one in mix if one.shape.total_milli]
        gpu = sum(one.weight * one.shape.total_milli for one in wanting)
        cpu = sum(one.weight * one.shape.cpu_milli for one in wanting)
        self._per_cpu = gpu * _SPARE_CPU[0], max(1, cpu * _SPARE_CPU[1])
        self._of = lru_cache(maxsize=1 << 16)(self._worth)

    def of(self, node: FreeNode) -> int:
        """What a node is worth, in milli-GPU."""
        return self._of(node)

    def _worth(self, node: FreeNode) -> int:
        idle = sum(node.gpus_milli)
        used_at_once = idle - self._useful.amount(node) // self._useful.weight
        parts = sum(value_of(self.values, part) for part in node.gpus_milli)
        gpu, cpu = self._per_cpu
        stranded = max(0, idle - node.cpu_milli * gpu // cpu)
        return used_at_once + _PARTS * parts - stranded * _STRANDED[0] // _STRANDED[1]


@lru_cache(maxsize=16)
def worth_of(mix: tuple[TypicalPod, ...], products: tuple[str, ...]) -> Worth:
    """The worth for a mix; kept from one decision to the next."""
    return Worth(mix, products)


def prepare_worth(pod: Pod, ledger: Ledger) -> Measure | None:
    """Nodes that lose least of what they are worth to the pods that usually come, where that is known."""
    mix = ledger.snapshot.mix
    asked = _asked(pod.shape)
    if not mix or asked is None:
        return None
    products = sorted({_product(account) for account in ledger.accounts.values()})
    worth = worth_of(mix, tuple(products))
    cpu, gpus = asked
    fraction = pod.shape.fraction

    def measure(account: NodeAccount) -> int:
        before = free_node(account)
        milli = (fraction.on(account.node) or 0) if fraction else MILLI
        left = _without(before.gpus_milli, gpus, milli, worth.values)
        after = FreeNode(before.model, before.cpu_milli - cpu, left)
        own = gpus * (milli + _PARTS * (milli if fraction else worth.values[-1]))
        lost = worth.of(before) - worth.of(after) - own
        return max(0, min(100, _EQUAL - -(-lost // _GRAIN)))

    return measure


def packed_otherwise(prepare: Callable[[Pod, Ledger], Measure | None]) -> Callable[..., Measure | None]:
    """A score of packing that has nothing to say where the worth of nodes is known."""

    def prepare_otherwise(pod: Pod, ledger: Ledger) -> Measure | None:
        if ledger.snapshot.mix and _asked(pod.shape) is not None:
            return None
        return prepare(pod, ledger)

    return prepare_otherwise


def free_node(account: NodeAccount) -> FreeNode:
    """What is idle on a node, as far as whole GPUs and parts of them go; the emptiest last."""
    carried = account.carried
    parts = sorted(MILLI - carried.used[gpu] for gpu in carried.fitting(1))
    whole = max(0, account.free(WHOLE_RESOURCE))
    return FreeNode(_product(account), account.free("cpu"), (*parts, *(MILLI,) * whole))


def _without(gpus: tuple[int, ...], count: int, milli: int, values: Values) -> tuple[int, ...]:
    """What is left of idle GPUs (the emptiest last) when a pod takes `milli` of `count` of them."""
    if milli == MILLI:
        return gpus[: len(gpus) - count]
    left = list(gpus)
    for idle, _ in best_parts([(idle, "") for idle in gpus if idle >= milli], milli, count, values):
        left.remove(idle)
        left.append(idle - milli)
    return tuple(sorted(idle for idle in left if idle))


def _asked(shape: PodShape) -> tuple[int, int] | None:
    """Milli-CPU and GPUs of a shape; None for devices that are neither whole GPUs nor parts of them."""
    requests = dict(shape.requests)
    if any(amount and is_gpu_resource(name) and name != WHOLE_RESOURCE for name, amount in shape.requests):
        return None
    gpus = shape.fraction.devices if shape.fraction else requests.get(WHOLE_RESOURCE, 0)
    return requests.get("cpu", 0), gpus


def _product(account: NodeAccount) -> str:
    return account.node.labels.get(PRODUCT_LABEL, "")
