"""The schedulers that are compared, each as the command line of one process with the same scheduler name.

All have the administrator's rights and a client limit of 5,000 requests a second, and none elects a leader.
kube-scheduler runs with its defaults (percentageOfNodesToScore 0: adaptive).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.fleet import Fleet

from gpufleet.local.ports import free_ports

SCHEDULER_NAME = "bench"
REQUESTS_PER_SECOND = 5000
OURS, PEER = "gpufleet", "kube-scheduler"


def gpufleet(fleet: Fleet) -> list[str]:
    """Gpufleet's scheduling controller."""
    return [
        *(sys.executable, "-P", "-m", "gpufleet.controller", "--rooms=scheduling", "--metrics-port=0"),
        *("--no-leader-election", f"--qps={REQUESTS_PER_SECOND}", f"--burst={REQUESTS_PER_SECOND}"),
        f"--kubeconfig={fleet.kubeconfig}",
        f"--ready-file={fleet.layout.ready_file(OURS)}",
        f"--scheduler-names={SCHEDULER_NAME}",
    ]


def kube_scheduler(fleet: Fleet) -> list[str]:
    """The scheduler of Kubernetes, of the same build as the API server."""
    configuration = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": {
            "kubeconfig": str(fleet.kubeconfig),
            "qps": REQUESTS_PER_SECOND,
            "burst": REQUESTS_PER_SECOND,
        },
        "profiles": [{"schedulerName": SCHEDULER_NAME}],
    }
    path = fleet.layout.run / "kube-scheduler.json"
    path.write_text(json.dumps(configuration))
    [port] = free_ports(1)
    return [
        *fleet.programs[PEER],
        f"--config={path}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--profiling=false",
        "--feature-gates=GenericWorkload=true",
    ]


def null_binder(fleet: Fleet) -> list[str]:
    """No decisions at all: the ceiling of this API server for bindings and Events from one client."""
    return [
        *(sys.executable, str(Path(__file__).with_name("nullbinder.py"))),
        f"--kubeconfig={fleet.kubeconfig}",
        f"--scheduler-name={SCHEDULER_NAME}",
    ]


CONTENDERS: dict[str, Callable[[Fleet], list[str]]] = {
    OURS: gpufleet,
    PEER: kube_scheduler,
    "null binder": null_binder,
}
