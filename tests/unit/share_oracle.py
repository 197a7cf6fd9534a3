"""The division rule of docs/concepts/fair-share.md once more, as plainly as it is written there: the oracle.

One resource at a time, from the top down. It shares no code with `scheduling.fairshare` and is slow.
"""

from __future__ import annotations

from fractions import Fraction
from math import floor

from gpufleet.fleet.queues import Queue


class Oracle:
    """The shares of one resource (0: GPUs, 1: CPU, 2: memory) among queues that fit together."""

    def __init__(
        self,
        queues: list[Queue],
        asked: dict[str, int],
        usage: dict[str, Fraction],
        k: Fraction,
        resource: int,
    ) -> None:
        self.queues = {queue.name: queue for queue in queues}
        self.quota = {queue.name: queue.quotas[resource] for queue in queues}
        self.own = asked
        self.usage = usage
        self.k = k
        self.unit = (1000, 1, 1)[resource]
        self.share: dict[str, int] = {}

    def divide(self, capacity: int) -> dict[str, int]:
        self.level("", capacity)
        return self.share

    def level(self, parent: str, total: int) -> None:
        siblings = [name for name, queue in self.queues.items() if queue.parent == parent]
        self.share_out(siblings, total)
        for name in siblings:
            self.level(name, self.share[name])

    def request(self, name: str) -> int:
        wanted = self.own.get(name, 0)
        for child, queue in self.queues.items():
            if queue.parent == name:
                wanted += self.request(child)
        limit = self.quota[name].limit
        return wanted if limit is None or wanted < limit else limit

    def guaranteed(self, name: str) -> int | None:
        amounts = [self.quota[name].guarantee]
        if self.quota[name].includes_children:
            amounts += [self.guaranteed(c) for c, queue in self.queues.items() if queue.parent == name]
        known = [amount for amount in amounts if amount is not None]
        return sum(known) if len(known) == len(amounts) else None

    def share_out(self, names: list[str], total: int) -> None:
        request = {name: self.request(name) for name in names}
        deserved: dict[str, int] = {}
        for name in names:
            guarantee = self.guaranteed(name)
            deserved[name] = total if guarantee is None or guarantee > total else guarantee
        in_quota = {name: min(deserved[name], request[name]) for name in names}
        if sum(in_quota.values()) > total:
            # Guarantees are scaled.
            for name in names:
                self.share[name] = 0
            scaled = {name: deserved[name] * (self.quota[name].weight or 1000) for name in names}
            self.hand_out(names, total, in_quota, scaled, usage=False)
            return
        rest = total
        for name in names:
            self.share[name] = in_quota[name]
            rest -= in_quota[name]
            lending = self.quota[name].lending_limit
            if lending is not None and deserved[name] - in_quota[name] > lending:
                rest -= deserved[name] - in_quota[name] - lending
        more = {name: request[name] - in_quota[name] for name in names}
        weights = {name: self.quota[name].weight for name in names}
        self.hand_out(names, rest, more, weights, usage=True)

    def hand_out(
        self, names: list[str], rest: int, more: dict[str, int], weights: dict[str, int], *, usage: bool
    ) -> None:
        fractions: dict[str, Fraction] = {}
        priorities = sorted({self.queues[name].priority for name in names}, reverse=True)
        for priority in priorities:
            group = [name for name in names if self.queues[name].priority == priority]
            while rest > 0:
                unsatisfied = [name for name in group if more[name] > 0 and weights[name] > 0]
                sum_of_weights = sum(weights[name] for name in unsatisfied)
                s = {}
                for name in unsatisfied:
                    n = Fraction(weights[name], sum_of_weights)
                    s[name] = max(Fraction(0), n + self.k * (n - self.usage.get(name, 0))) if usage else n
                if sum(s.values()) == 0:
                    break
                start_of_round = rest
                asked_for_less = False
                for name in unsatisfied:
                    give = start_of_round * s[name] / sum(s.values())
                    if more[name] <= give:
                        asked_for_less = asked_for_less or more[name] < give
                        got = more[name]
                        fractions.pop(name, None)
                    else:
                        got = floor(give / self.unit) * self.unit
                        fractions[name] = give - got
                    self.share[name] += got
                    more[name] -= got
                    rest -= got
                if not asked_for_less:
                    break
        for priority in priorities:
            group = [name for name in fractions if self.queues[name].priority == priority]
            group.sort(key=lambda name: (-fractions[name], self.queues[name].created, name))
            for name in group:
                if rest > 0:
                    got = min(self.unit, rest)
                    self.share[name] += got
                    rest -= got
