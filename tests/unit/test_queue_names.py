"""Which queue a pod names, by whichever convention."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from gpufleet.kube import objects
from gpufleet.kube.conventions.queue_names import queue_of
from gpufleet.kube.objects import ObjectMeta
from gpufleet.kube.values import pod_value

OURS, KAI = {"gpufleet.dev/queue": "ours"}, {"kai.scheduler/queue": "kai"}
VOLCANO = {"scheduling.volcano.sh/queue-name": "volcano"}
KUEUE = {"kueue.x-k8s.io/queue-name": "local"}
YUNIKORN = {"yunikorn.apache.org/queue": "root.org.team"}


@pytest.mark.parametrize(
    ("labels", "annotations", "name"),
    [
        (OURS, {}, "ours"),
        ({}, OURS, "ours"),
        (KAI, {}, "kai"),
        ({}, KAI, ""),
        ({}, VOLCANO, "volcano"),
        (KUEUE, {}, "ns/local"),
        (YUNIKORN, {}, "org.team"),
        ({}, YUNIKORN, "org.team"),
        ({}, {}, ""),
        ({**YUNIKORN, **KUEUE, **KAI, **OURS}, VOLCANO, "ours"),
        ({**YUNIKORN, **KUEUE, **KAI}, VOLCANO, "kai"),
        ({**YUNIKORN, **KUEUE}, VOLCANO, "volcano"),
        ({**YUNIKORN, **KUEUE}, {}, "ns/local"),
    ],
)
def test_the_first_convention_that_names_a_queue_counts(
    labels: Mapping[str, str], annotations: Mapping[str, str], name: str
) -> None:
    meta = ObjectMeta(name="p", namespace="ns", labels=labels, annotations=annotations)
    assert queue_of(meta) == name


def test_a_pod_carries_its_queue() -> None:
    body = {"metadata": {"name": "p", "namespace": "ns", "labels": KAI}}
    assert pod_value(msgspec.convert(body, objects.Pod)).queue == "kai"
