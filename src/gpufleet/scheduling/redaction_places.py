"""What the texts of a recording are, by their place (see `fleet.texts`): words that stay, values, sentences,
names. A test holds that every place is in one of these tables.
"""

from __future__ import annotations

STAYS = frozenset({
    "AttachLimits.limits.keys",              "PodShape.node_selector.0",
    "CSIDriver.name",                        "PodShape.requests.0",
    "Claim.access_modes",                    "Policy.schedulers",
    "Claim.phase",                           "Reason.code",
    "Claim.volume_mode",                     "Reason.evidence.keys",
    "DeviceClaim.resource",                  "Requirement.key",
    "DevicePick.resource",                   "Requirement.operator",
    "GangRef.rule",                          "Snapshot.csi_drivers.keys",
    "HeldDevices.resource",                  "Snapshot.namespaces.values.keys",
    "HostPort.protocol",                     "SpreadConstraint.node_affinity_policy",
    "MigGPU.geometry",                       "SpreadConstraint.node_taints_policy",
    "Node.allocatable.keys",                 "SpreadConstraint.topology_key",
    "Node.labels.keys",                      "StorageClass.provisioner",
    "Node.unhealthy.keys",                   "Taint.effect",
    "NodeDevices.pools.keys",                "Taint.key",
    "NodeGPU.instances.0",                   "Toleration.effect",
    "Placement.profile",                     "Toleration.key",
    "Pod.gates",                             "Toleration.operator",
    "Pod.labels.keys",                       "Volume.access_modes",
    "Pod.owner_kind",                        "Volume.csi_driver",
    "Pod.phase",                             "Volume.labels.keys",
    "Pod.scheduler",                         "Volume.phase",
    "PodAffinityTerm.topology_key",          "Volume.volume_mode",
    "PodShape.inline_csi_drivers",           "Gang.rule",
    "Topology.preferred",                    "Topology.required",
    "Demand.models",                         "Queue.rule",
})  # fmt: skip
"""Words that Kubernetes, NVIDIA and vendors define, and keys of labels and taints."""

VALUES = frozenset({
    "Node.labels.values",                "Snapshot.namespaces.values.values",
    "Pod.labels.values",                 "Taint.value",
    "PodShape.node_selector.1",          "Toleration.value",
    "Requirement.values",                "Volume.labels.values",
})  # fmt: skip
"""Values that stand beside a key, which says whether they stay."""

SENTENCES = frozenset({
    "Fraction.problem", "Gang.problem", "GangRef.problem", "Queue.closed",
    "QueueTree.problems.values", "Reason.message",
})  # fmt: skip
"""Sentences, in which anything may be named."""

NAMES = frozenset({
    "AttachLimits.node",                 "Pod.owner",
    "Claim.name",                        "Pod.owner_name",
    "Claim.namespace",                   "Pod.uid",
    "Claim.selected_node",               "PodAffinityTerm.namespaces",
    "Claim.storage_class",               "PodShape.claims",
    "Claim.uid",                         "Reason.evidence.values",
    "Claim.volume",                      "Reason.subject",
    "DeviceClaim.container",             "Recording.paused.keys",
    "DevicePick.container",              "Snapshot.attach_limits.keys",
    "DevicePick.devices",                "Snapshot.claims.keys",
    "DisruptionBudget.disrupted",        "Snapshot.devices.keys",
    "DisruptionBudget.name",             "Snapshot.gang_successes.keys.0",
    "DisruptionBudget.namespace",        "Snapshot.gang_successes.keys.1",
    "GangRef.name",                      "Snapshot.namespaces.keys",
    "HeldDevices.container",             "Snapshot.nodes.keys",
    "HeldDevices.devices",               "Snapshot.pods_by_node.keys",
    "HeldDevices.pod_uid",               "Snapshot.pods_by_node.values.keys",
    "HostPort.address",                  "Snapshot.storage_classes.keys",
    "MigGPU.uuid",                       "Snapshot.unbound.keys",
    "Node.name",                         "Snapshot.volumes.keys",
    "Node.unread_pods",                  "StorageCapacity.storage_class",
    "Part.gpu",                          "StorageClass.name",
    "Part.uuid",                         "Volume.claim",
    "Pod.name",                          "Volume.claim_uid",
    "Pod.namespace",                     "Volume.csi_handle",
    "Pod.node",                          "Volume.name",
    "Pod.nominated_node",                "Volume.storage_class",
    "Gang.key",                          "Gang.priority_class",
    "Gang.queue",                        "GangRef.described_by",
    "GangRef.subgroup",                  "Snapshot.gang_successes.values.keys",
    "Snapshot.gangs.keys",               "SubGroup.name",
    "SubGroup.parent",                   "Fraction.container",
    "Node.carrying",                     "Node.sick",
    "Pod.queue",                         "Queue.name",
    "Queue.parent",                      "QueueTree.children.keys",
    "QueueTree.children.values",         "QueueTree.guarantees.keys",
    "QueueTree.paths.keys",              "QueueTree.paths.values",
    "QueueTree.problems.keys",           "QueueTree.queues.keys",
})  # fmt: skip
"""Names of somebody's things."""
