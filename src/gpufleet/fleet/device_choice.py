"""Which of the free devices of a resource a container should get, where they are not whole GPUs.

The device plugin that answers a kubelet and the scheduler that picks devices beforehand go by these rules,
so that both name the same devices. Whole GPUs: `links.best_set`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

SharePolicy = Literal["distributed", "packed"]
"""Shares go to the least used device, or to the most used one."""


def shares(
    free: Mapping[str, int],
    used: Mapping[str, int],
    chosen: Mapping[str, int],
    size: int,
    policy: SharePolicy,
) -> list[str]:
    """`size` shares one by one, each named by its device: of one of which the container has the fewest
    shares, then as the policy says, then in the order of `free`. Fewer when there are not enough.

    `free` and `used` count the shares of each device, `chosen` those that the container has already.
    """
    left, taken, here = dict(free), Counter(used), Counter(chosen)
    order = {device: place for place, device in enumerate(free)}
    sign = -1 if policy == "packed" else 1
    found = []
    for _ in range(min(size, sum(left.values()))):
        device = min(
            (device for device, amount in left.items() if amount > 0),
            key=lambda one: (here[one], sign * taken[one], order[one]),
        )
        found.append(device)
        left[device] -= 1
        taken[device] += 1
        here[device] += 1
    return found


def packed(
    candidates: Sequence[tuple[str, str]], total: Mapping[str, int], busy: Collection[str], size: int
) -> list[str]:
    """`size` instances of `candidates`, which are (instance, its GPU): of GPUs in use, those with the fewest
    free instances first, before those of idle GPUs, so that whole GPUs stay free to be cut again.

    `total` counts the instances of each GPU, `busy` are GPUs on which anything of any resource is in use.
    """
    free = Counter(gpu for _, gpu in candidates)
    idle = {gpu for gpu in free if gpu not in busy and free[gpu] == total[gpu]}
    ranked = sorted(candidates, key=lambda one: (one[1] in idle, free[one[1]]))
    return [instance for instance, _ in ranked[:size]]
