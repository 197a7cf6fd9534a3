"""Where a pod may run: node selectors, affinity, tolerations and topology spread, as the API writes them."""

from __future__ import annotations

from gpufleet.kube.objects.meta import APIStruct, LabelSelector


class NodeSelectorRequirement(APIStruct, frozen=True, kw_only=True):
    """One expression over a node; `operator` is In, NotIn, Exists, DoesNotExist, Gt or Lt."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


class NodeSelectorTerm(APIStruct, frozen=True, kw_only=True):
    """A conjunction over labels and fields; an empty term matches no node."""

    match_expressions: tuple[NodeSelectorRequirement, ...] = ()
    match_fields: tuple[NodeSelectorRequirement, ...] = ()


class NodeSelector(APIStruct, frozen=True, kw_only=True):
    """A disjunction of terms."""

    node_selector_terms: tuple[NodeSelectorTerm, ...] = ()


class PreferredSchedulingTerm(APIStruct, frozen=True, kw_only=True):
    """A preferred node term; `weight` is 1..100."""

    weight: int
    preference: NodeSelectorTerm


class NodeAffinity(APIStruct, frozen=True, kw_only=True):
    """Required and preferred nodes."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    preferred_during_scheduling_ignored_during_execution: tuple[PreferredSchedulingTerm, ...] = ()


class PodAffinityTerm(APIStruct, frozen=True, kw_only=True):
    """Pods near which (or away from which) to run, per value of `topology_key`."""

    topology_key: str
    label_selector: LabelSelector | None = None
    namespaces: tuple[str, ...] = ()
    namespace_selector: LabelSelector | None = None
    match_label_keys: tuple[str, ...] = ()
    mismatch_label_keys: tuple[str, ...] = ()


class WeightedPodAffinityTerm(APIStruct, frozen=True, kw_only=True):
    """A preferred term; `weight` is 1..100."""

    weight: int
    pod_affinity_term: PodAffinityTerm


class PodAffinity(APIStruct, frozen=True, kw_only=True):
    """Required and preferred terms; the same type serves affinity and anti-affinity."""

    required_during_scheduling_ignored_during_execution: tuple[PodAffinityTerm, ...] = ()
    preferred_during_scheduling_ignored_during_execution: tuple[WeightedPodAffinityTerm, ...] = ()


class Affinity(APIStruct, frozen=True, kw_only=True):
    """All affinity of a pod."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None


class Toleration(APIStruct, frozen=True, kw_only=True):
    """A toleration; an empty key with Exists tolerates all, an empty effect every effect."""

    key: str = ""
    operator: str = ""
    value: str = ""
    effect: str = ""
    toleration_seconds: int | None = None


class TopologySpreadConstraint(APIStruct, frozen=True, kw_only=True):
    """How evenly matching pods spread over the values of `topology_key`."""

    max_skew: int
    topology_key: str
    when_unsatisfiable: str
    label_selector: LabelSelector | None = None
    match_label_keys: tuple[str, ...] = ()
    min_domains: int | None = None
    node_affinity_policy: str = "Honor"
    node_taints_policy: str = "Ignore"
