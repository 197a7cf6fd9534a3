"""Kueue: groups of plain pods, and what labels of jobs and annotations of pod templates say.

Pods with the label `pod-group-name` form a group of exactly `pod-group-total-count`. A Job that names a
queue is admitted as a whole, so it is a gang of its parallelism, or elastic down to `job-min-parallelism`.
Source: kueue pkg/controller/constants, pkg/controller/jobs/pod/constants, apis/kueue/v1beta2.
"""

from __future__ import annotations

from gpufleet.fleet.gangs import Gang, Segment, Topology
from gpufleet.fleet.pods import GangRef
from gpufleet.kube import objects
from gpufleet.kube.conventions.stated import filled, number_in, ref_of, said, size_in
from gpufleet.kube.objects.meta import ObjectMeta

RULE = "Kueue pod group"
JOB_RULE = "Kueue job"

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
GROUP_LABEL = "kueue.x-k8s.io/pod-group-name"
COUNT_ANNOTATION = "kueue.x-k8s.io/pod-group-total-count"
MIN_PARALLELISM_ANNOTATION = "kueue.x-k8s.io/job-min-parallelism"


def pod_gang(pod: objects.Pod) -> GangRef | None:
    """The gang that the pod's label names."""
    meta = pod.metadata
    name = said(meta, GROUP_LABEL)
    if name is None:
        return None
    key = f"{meta.namespace}/{name}"
    count = said(meta, COUNT_ANNOTATION)
    if count is None:
        return ref_of(name, Gang(key, RULE, problem=f"{COUNT_ANNOTATION} is missing beside {GROUP_LABEL}"))
    minimum, problem = size_in(count, COUNT_ANNOTATION)
    return ref_of(name, with_labels(Gang(key, RULE, minimum, problem), meta))


def job_gang(meta: ObjectMeta, key: str, at_once: int) -> Gang:
    """The gang of a Job that names a queue and runs `at_once` pods at the same time."""
    fewest = said(meta, MIN_PARALLELISM_ANNOTATION)
    if fewest is None:
        return Gang(key, JOB_RULE, at_once)
    minimum, problem = size_in(fewest, MIN_PARALLELISM_ANNOTATION)
    return Gang(key, JOB_RULE, minimum, problem, maximum=at_once)


def with_labels(gang: Gang, meta: ObjectMeta) -> Gang:
    """What Kueue's labels of a job, or of a pod, add to a gang."""
    found = meta.annotations
    size = number_in(found.get("kueue.x-k8s.io/podset-slice-size"))
    slices = found.get("kueue.x-k8s.io/podset-slice-required-topology", "")
    return filled(
        gang,
        queue=meta.labels.get(QUEUE_LABEL),
        priority_class=meta.labels.get("kueue.x-k8s.io/priority-class"),
        time_limit_s=number_in(said(meta, "kueue.x-k8s.io/max-exec-time-seconds")),
        topology=topology_of(meta),
        segment=Segment(size, Topology(required=slices)) if size and slices else None,
    )


def topology_of(meta: ObjectMeta) -> Topology:
    """The topology that annotations of a pod template ask for."""
    return Topology(
        meta.annotations.get("kueue.x-k8s.io/podset-required-topology", ""),
        meta.annotations.get("kueue.x-k8s.io/podset-preferred-topology", ""),
    )
