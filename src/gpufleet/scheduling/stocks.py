"""Stocks: what is free of one resource of a node in the course of a decision, and the best of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Protocol

from gpufleet.fleet.device_choice import packed, shares
from gpufleet.fleet.devices import HeldDevices, NodeDevices, Pool
from gpufleet.fleet.links import best_set, table_of


class Stock(Protocol):
    """What is free of one resource of a node. `certain` says whether that is known."""

    certain: bool

    def take(self, size: int, chosen: Sequence[str]) -> list[str] | None:
        """The best `size` devices beside those that a container has already; None when it is not certain
        that there are so many.
        """

    def remove(self, devices: Mapping[str, int]) -> None:
        """So many shares of these devices (of an unshared one: 1) are somebody's."""

    def matters(self, count: int) -> bool:
        """Whether it can make a difference which of the devices a container gets that asks for so many."""

    def kind(self, devices: Sequence[str]) -> Hashable:
        """Devices of equal kinds are as good as each other."""


class WholeGPUs:
    """Whole GPUs: the best linked set of those that are free."""

    def __init__(self, devices: NodeDevices, pool: Pool, held: Sequence[HeldDevices], used: set[str]) -> None:
        self.certain = True
        self._uuids = [gpu.whole.uuid for gpu in devices.gpus]
        self._table = table_of(devices.links, len(self._uuids))
        self._matters = 0 if self._table.alike else len(pool.parts)
        self._free = self._mask(pool.free(held))
        self._used = used

    def take(self, size: int, chosen: Sequence[str]) -> list[str] | None:
        if not self.certain or self._free.bit_count() < size:
            return None
        include = self._mask(chosen)
        found = best_set(self._table, self._free, include, size + len(chosen)) & ~include
        self._free &= ~found
        uuids = [self._uuids[place] for place in self._table.places(found)]
        self._used.update(uuids)
        return uuids

    def remove(self, devices: Mapping[str, int]) -> None:
        self._free &= ~self._mask(devices)
        self._used.update(devices)

    def matters(self, count: int) -> bool:
        return 1 < count < self._matters

    def kind(self, devices: Sequence[str]) -> Hashable:
        return self._table.score(self._table.places(self._mask(devices)))

    def _mask(self, uuids: Collection[str]) -> int:
        if not uuids:
            return 0
        return self._table.mask([place for place, uuid in enumerate(self._uuids) if uuid in uuids])


class Parts:
    """MIG instances of the fullest GPU in use, and shares of devices as their policy says."""

    def __init__(self, devices: NodeDevices, pool: Pool, held: Sequence[HeldDevices], used: set[str]) -> None:
        self.certain = True
        self._pool = pool
        self._free = pool.free(held)
        self._gpus = {part.uuid: part.gpu for part in pool.parts}
        self._total = Counter(self._gpus.values())
        self._owners = {part.uuid: part.gpu for gpu in devices.gpus for _, part in gpu.instances}
        self._used = used

    def take(self, size: int, chosen: Sequence[str]) -> list[str] | None:
        if not self.certain or sum(self._free.values()) < size:
            return None
        found = self._best(size, chosen)
        self.remove(Counter(found))
        return found

    def _best(self, size: int, chosen: Sequence[str]) -> list[str]:
        if self._pool.replicas > 1:
            taken = {uuid: self._pool.replicas - amount for uuid, amount in self._free.items()}
            return shares(self._free, taken, Counter(chosen), size, self._pool.policy)
        busy = {self._owners.get(uuid, uuid) for uuid in self._used}
        return packed([(uuid, self._gpus[uuid]) for uuid in self._free], self._total, busy, size)

    def remove(self, devices: Mapping[str, int]) -> None:
        self._used.update(devices)
        for uuid, amount in devices.items():
            left = self._free.pop(uuid, 0) - amount
            if left > 0:
                self._free[uuid] = left

    def matters(self, count: int) -> bool:
        return len(self._total) > 1

    def kind(self, devices: Sequence[str]) -> Hashable:
        return tuple(sorted(self._gpus.get(uuid, uuid) for uuid in devices))


def stock_of(resource: str, devices: NodeDevices, held: Sequence[HeldDevices], used: set[str]) -> Stock:
    """The stock of a resource. `used` has every device of the node that is somebody's, of any resource; what
    is taken from the stock is added.
    """
    pool = devices.pools.get(resource)
    make = WholeGPUs if pool is not None and pool.whole else Parts
    stock = make(devices, pool or Pool(()), held, used)
    stock.certain = pool is not None
    return stock
