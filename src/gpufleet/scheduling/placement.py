"""The vocabulary of placement: what a filter, a score and a block are.

A filter is prepared once for a pod against a ledger and then asked about one node after the other; preparing
may look at the whole fleet, asking costs about a microsecond. Where the answer depends on other nodes, the
prepared filter is told of every pod that the same decision places (`placed`) or evicts (`ended`, where it
matters that a pod is terminating) and then answers as if it had been prepared anew. It never forgets: after a
removal it must be prepared again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from gpufleet.fleet.pods import Pod
from gpufleet.scheduling.ledger import Ledger, NodeAccount


class Block(msgspec.Struct, frozen=True):
    """Why one node is out for one pod.

    `code` is one of `fleet.reasons.CODES`. `detail` says what exactly, in equal words on every node that is
    blocked in the same way, so that nodes can be counted by it. For resources, `need` is what the pod asks
    and `have` what is free (InsufficientResource, TooManyPods), what there is (ExceedsNodeCapacity) or what
    is healthy of `total` (DeviceUnhealthy), as in `fleet.quantities`; `more` are the other resources that are
    short, in the same words.
    """

    code: str
    detail: str
    need: int = 0
    have: int = 0
    total: int = 0
    more: tuple[Block, ...] = ()

    @property
    def parts(self) -> tuple[Block, ...]:
        """This block and those beside it."""
        return (self, *self.more)


Check = Callable[[NodeAccount], Block | None]
"""Why the node is out, or None when this filter lets the pod run there."""

Measure = Callable[[NodeAccount], int]
"""How good a node is, 0..100, higher is better."""


class Prepared(Protocol):
    """A check that counts over the fleet."""

    def __call__(self, account: NodeAccount) -> Block | None:
        """Why the node is out, or None."""

    def placed(self, pod: Pod, account: NodeAccount) -> None:
        """`pod` was placed on the node of `account` by the same decision."""


class PreparedScore(Protocol):
    """A measure that counts over the fleet."""

    def __call__(self, account: NodeAccount) -> int:
        """How good the node is, 0..100."""

    def placed(self, pod: Pod, account: NodeAccount) -> None:
        """`pod` was placed on the node of `account` by the same decision."""


class Filter(msgspec.Struct, frozen=True):
    """One reason for which a node can be out. `prepare` gives None when it has nothing to say about the pod.

    `local`: the answer depends on the node's own account alone, so it holds until something changes there.
    """

    name: str
    prepare: Callable[[Pod, Ledger], Prepared | Check | None]
    local: bool


class Score(msgspec.Struct, frozen=True):
    """One wish about where a pod runs. The node with the highest sum of `weight` times measure wins.

    `reason` is the code shown when this score decided; `prepare` and `local` are as in `Filter`.
    """

    name: str
    weight: int
    prepare: Callable[[Pod, Ledger], PreparedScore | Measure | None]
    local: bool
    reason: str
