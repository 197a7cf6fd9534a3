"""Placing pods one by one with a policy.

A score is kept for each request and node, and is made again only for the nodes that changed since the request
was last seen: that is what makes a run of 10,000 pods take less than a second.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gpufleet.fleet.fragmentation import Ints
from gpufleet.simulator.books import Placement
from gpufleet.simulator.columns import Columns, models_of
from gpufleet.simulator.policies import Policy
from gpufleet.simulator.replay import Decision
from gpufleet.simulator.traces import Request, TraceNode, TracePod

_IMPOSSIBLE = -1


class PolicyPlacer:
    """A `Placer` that follows a policy. Equal scores go to the earlier node of `nodes`."""

    def __init__(self, nodes: Sequence[TraceNode], policy: Policy) -> None:
        self.columns = Columns.empty(nodes)
        self._policy = policy
        self._models = models_of(nodes)
        self._scores: dict[Request, Ints] = {}
        self._scored_at: dict[Request, int] = {}
        self._changed_at = np.zeros(len(nodes), dtype=np.int64)
        self._changes = 0

    def place(self, pod: TracePod) -> Decision:
        """Place a pod where the policy says, or not where it fits nowhere."""
        request = pod.request
        scores = self._scores_of(request)
        node = self._policy.pick(scores) if len(scores) and scores.max() >= 0 else None
        if node is None:
            return Decision(None)
        devices = self._policy.devices(request.shape, self.columns, node)
        self.columns.take(node, request, devices)
        self._changes += 1
        self._changed_at[node] = self._changes
        return Decision(Placement(node, devices))

    def _scores_of(self, request: Request) -> Ints:
        scores = self._scores.get(request)
        if scores is None:
            scores = self._scores[request] = np.full(len(self._changed_at), _IMPOSSIBLE, dtype=np.int64)
            stale = np.arange(len(scores))
        else:
            stale = np.flatnonzero(self._changed_at > self._scored_at[request])
        if len(stale):
            self._score(request, scores, stale)
        self._scored_at[request] = self._changes
        return scores

    def _score(self, request: Request, scores: Ints, stale: Ints) -> None:
        """Bring the scores of the stale nodes up to date."""
        nodes = self.columns.at(stale)
        fits = self._fits(request, nodes)
        scores[stale] = _IMPOSSIBLE
        if fits.any():
            scores[stale[fits]] = self._policy.scores(request.shape, nodes.at(fits))

    def _fits(self, request: Request, nodes: Columns) -> NDArray[np.bool_]:
        shape = request.shape
        fits = (nodes.cpu_milli >= shape.cpu_milli) & (nodes.memory_mib >= request.memory_mib)
        if shape.gpus:
            fits &= (nodes.gpus_milli >= shape.gpu_milli).sum(axis=1) >= shape.gpus
        if shape.models:
            fits &= np.array([shape.allows(model) for model in self._models])[nodes.model]
        return fits
