"""`gpufleet logs`: which container is meant, and what is said where there is no output."""

from __future__ import annotations

import msgspec
import pytest

from gpufleet.cli.logs import chosen_container
from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.objects import Pod


def pod(*containers: str, default: str = "", init: str = "") -> Pod:
    annotations = {"kubectl.kubernetes.io/default-container": default} if default else {}
    return msgspec.convert(
        {
            "metadata": {"name": "p", "namespace": "ns", "annotations": annotations},
            "spec": {
                "nodeName": "a",
                "containers": [{"name": name} for name in containers],
                "initContainers": [{"name": init}] if init else [],
            },
        },
        Pod,
    )


def test_the_only_container_the_named_one_and_the_one_that_is_asked_for_are_chosen() -> None:
    assert chosen_container(pod("main"), "") == "main"
    assert chosen_container(pod("main", init="setup"), "") == "main"
    assert chosen_container(pod("main", "side", default="side"), "") == "side"
    assert chosen_container(pod("main", "side", init="setup"), "setup") == "setup"


@pytest.mark.parametrize(
    ("asked", "reason", "says"),
    [
        ("", "ContainerNotChosen", "pod ns/p has the containers main, side, setup"),
        ("mian", "ContainerNotFound", "pod ns/p has no container 'mian', only main, side, setup"),
    ],
)
def test_a_container_that_is_not_clear_is_told_with_those_that_there_are(
    asked: str, reason: str, says: str
) -> None:
    with pytest.raises(GpufleetError) as raised:
        chosen_container(pod("main", "side", init="setup"), asked)
    assert (raised.value.reason, raised.value.message) == (reason, says)
    assert raised.value.hint == "gpufleet logs p -n ns -c main"
