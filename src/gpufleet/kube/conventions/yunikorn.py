"""YuniKorn: an application is a gang of its task groups, which pods state themselves.

The application's id is a label; `task-group-name` says of which group a pod is, and `task-groups`, a JSON
list, how many pods each group needs. It may stand on the first pod only: pods without it say nothing of the
size. YuniKorn's placeholder pods are not needed here. `gangSchedulingStyle=Soft`, which gives the gang up
after a timeout, is not followed: the gang waits.
Source: yunikorn-k8shim pkg/common/constants, docs user_guide/gang_scheduling.
"""

from __future__ import annotations

import re

import msgspec

from gpufleet.fleet.gangs import Gang, SubGroup
from gpufleet.fleet.pods import GangRef
from gpufleet.kube import objects
from gpufleet.kube.conventions.stated import checked, filled, number_in, ref_of, said, truth_in
from gpufleet.kube.objects.meta import APIStruct, ObjectMeta

RULE = "YuniKorn task groups"

APPLICATION_KEYS = ("yunikorn.apache.org/app-id", "applicationId", "spark-app-selector")
GROUP_NAME = "yunikorn.apache.org/task-group-name"
GROUPS = "yunikorn.apache.org/task-groups"
PARAMETERS = "yunikorn.apache.org/schedulingPolicyParameters"


class TaskGroup(APIStruct, frozen=True, kw_only=True):
    """A group of an application and how many pods it needs."""

    name: str
    min_member: int


_DECODER = msgspec.json.Decoder(tuple[TaskGroup, ...])


def pod_gang(pod: objects.Pod) -> GangRef | None:
    """The gang of the pod's application, if the pod is of a task group."""
    meta = pod.metadata
    group, groups = said(meta, GROUP_NAME), said(meta, GROUPS)
    if group is None and groups is None:
        return None
    name = said(meta, *APPLICATION_KEYS)
    if name is None:
        owner = meta.controller
        if owner is None:
            return GangRef(
                "", None, RULE, f"{GROUP_NAME} names a task group and {APPLICATION_KEYS[0]} is not set"
            )
        name = f"{owner.kind.lower()}/{owner.name}"
    if groups is None:
        return GangRef(name, None, RULE, subgroup=group or "")
    return ref_of(name, with_labels(_stated(f"{meta.namespace}/{name}", groups), meta), group or "")


def with_labels(gang: Gang, meta: ObjectMeta) -> Gang:
    """What YuniKorn's annotations add to a gang."""
    timeout = re.search(r"placeholderTimeoutInSeconds=(\d+)", said(meta, PARAMETERS) or "")
    return filled(
        gang,
        queue=said(meta, "yunikorn.apache.org/queue"),
        preemptible=truth_in(said(meta, "yunikorn.apache.org/allow-preemption")),
        schedule_timeout_s=number_in(timeout[1]) if timeout else None,
    )


def _stated(key: str, groups: str) -> Gang:
    try:
        found = _DECODER.decode(groups)
    except msgspec.DecodeError as error:
        return Gang(key, RULE, problem=f"{GROUPS} is not what it should be: {error}")
    subgroups = tuple(SubGroup(one.name, minimum=one.min_member) for one in found)
    return checked(Gang(key, RULE, subgroups=subgroups), f"minMember in {GROUPS}")
