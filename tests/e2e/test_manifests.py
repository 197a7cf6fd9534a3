"""Public GPU manifests, unchanged, on a local fleet: every pod ends Running, or says truly why it does not.

Each file gets a namespace of its own unless it names one. Kinds that are not installed are skipped with a
note. A table of what became of every workload is printed. Reasons are judged by an oracle that works them out
anew.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml
from tests.e2e.cluster import Cluster, Object, condition
from tests.e2e.conftest import NewFleet
from tests.e2e.oracle import blocks, missing_claims

from gpufleet.fleet.reasons import CODES
from gpufleet.kube.client import ApiError
from gpufleet.kube.kinds import (
    EVENTS,
    JOBS,
    NAMESPACES,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PODS,
    REPLICA_SETS,
)
from gpufleet.kube.manifests import Discovery
from gpufleet.kube.values import DECISION_CONDITION

SHARED = Path(os.environ.get("GPUFLEET_SHARED", Path(__file__).parents[3] / "shared")) / "manifests"
SETTLED_WITHIN_S = 90.0
WORKLOADS = ("Pod", "Deployment", "StatefulSet", "DaemonSet", "Job")

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not SHARED.is_dir(), reason=f"no public manifests in {SHARED}; name their parent: GPUFLEET_SHARED"
    ),
]


class Row(msgspec.Struct):
    """What became of one object of a file."""

    file: str
    what: str
    namespace: str = ""
    uid: str = ""
    note: str = ""
    pods: list[Object] = []
    events: list[Object] = []

    @property
    def phases(self) -> list[str]:
        """The phases of its pods."""
        return [pod["status"]["phase"] for pod in self.pods]

    @property
    def outcome(self) -> str:
        """One word for the table."""
        if self.note:
            return "skipped"
        phases = sorted(set(self.phases))
        return "+".join(phases) if phases else "no pods"

    @property
    def reason(self) -> str:
        """Why its pods do not run: our words, the kubelet's, or those of the controller that made none."""
        if self.note or self.pods:
            return self.note or "; ".join(sorted({reason_of(pod) for pod in self.pods} - {""}))
        told = {event["note"] for event in self.events if event["type"] == "Warning"}
        told |= {event["note"] for event in self.events if event["reason"] == "Suspended"}
        return "; ".join(sorted(told))

    @property
    def settled(self) -> bool:
        """Whether nothing more will happen to it without somebody's help."""
        if self.note or not self.what.startswith(WORKLOADS):
            return True
        if not self.pods:
            return self.reason != ""
        return all(pod["status"]["phase"] != "Pending" or reason_of(pod) for pod in self.pods)


class Outcome(msgspec.Struct, frozen=True):
    """All manifests on the fleet."""

    cluster: Cluster
    rows: list[Row]

    def waiting(self) -> list[Object]:
        """The pods that no node has."""
        return [pod for row in self.rows for pod in row.pods if "nodeName" not in pod["spec"]]


def reason_of(pod: Object) -> str:
    """Why a pod does not run, in the words of whoever knows; empty when it runs."""
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return str(scheduled["message"])
    for status in pod["status"].get("containerStatuses", []):
        waits = status["state"].get("waiting", {})
        if waits.get("message"):
            return f"{waits['reason']}: {waits['message']}"
    return str(pod["status"].get("message", "")) if pod["status"]["phase"] == "Failed" else ""


def documents(path: Path) -> list[Object]:
    """The documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def namespace_for(path: Path) -> str:
    """A namespace of its own for a file."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{path.parent.name.rpartition('_')[2]}-{path.stem}".lower())
    return name[:63].strip("-")


def apply_file(cluster: Cluster, path: Path) -> Iterator[Row]:
    """Apply the objects of a file as they are; a row for each."""
    file, own = str(path.relative_to(SHARED)), namespace_for(path)
    discovery = Discovery(cluster.client)
    for document in documents(path):
        if "kind" not in document:
            yield Row(file, "-", note="no Kubernetes object, but values of a chart")
            continue
        what = (
            f"{document['kind']} {document['metadata'].get('name') or document['metadata']['generateName']}"
        )
        kind = cluster.run(discovery.kind_of(document))
        if kind is None:
            yield Row(file, what, note=f"{document['apiVersion']} is not installed")
            continue
        namespace = document["metadata"].get("namespace", own) if kind.namespaced else None
        if namespace is not None:
            ensure_namespace(cluster, namespace)
        if "name" not in document["metadata"]:
            made = cluster.create(kind, document, namespace)
        else:
            named = {
                **document,
                "metadata": {**document["metadata"], **({"namespace": namespace} if namespace else {})},
            }
            made = cluster.run(cluster.client.apply(kind, named, field_manager="public-manifests"))
        yield Row(file, what, namespace or "", made["metadata"]["uid"])


def ensure_namespace(cluster: Cluster, name: str) -> None:
    """Create a namespace that does not exist."""
    try:
        cluster.create(NAMESPACES, {"metadata": {"name": name}})
    except ApiError as error:
        if not error.already_exists:
            raise


def look(cluster: Cluster, rows: list[Row]) -> None:
    """Bring the pods and events of all rows up to date."""
    owned: dict[str, set[str]] = {}
    objects = {kind.plural: cluster.all(kind) for kind in (PODS, REPLICA_SETS, JOBS)}
    for found in objects.values():
        for one in found:
            for owner in one["metadata"].get("ownerReferences", []):
                owned.setdefault(owner["uid"], set()).add(one["metadata"]["uid"])
    events = cluster.all(EVENTS)
    for row in rows:
        family = {row.uid}
        for _ in range(2):
            family |= {child for uid in family for child in owned.get(uid, ())}
        row.pods = [pod for pod in objects["pods"] if pod["metadata"]["uid"] in family]
        row.events = [event for event in events if event["regarding"].get("uid") in family]


@pytest.fixture(scope="module")
def outcome(new_fleet: NewFleet) -> Iterator[Outcome]:
    """Everything applied to a fleet of the default preset, once nothing moves any more."""
    fleet = new_fleet("manifests")
    fleet.up()
    with Cluster(fleet) as cluster:
        files = sorted(path for path in SHARED.rglob("*") if path.suffix in (".yaml", ".yml"))
        rows = [row for path in files for row in apply_file(cluster, path)]

        def unsettled() -> list[str]:
            look(cluster, rows)
            return [f"{row.file} {row.what}: {row.phases}" for row in rows if not row.settled]

        deadline = time.monotonic() + SETTLED_WITHIN_S
        while (moving := unsettled()) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert moving == []
        yield Outcome(cluster, rows)


def test_every_pod_runs_or_says_why(outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\n" + table(outcome.rows))
    applied = [row for row in outcome.rows if not row.note]
    assert len([row for row in applied if row.what.startswith(WORKLOADS)]) > 15
    for row in applied:
        for pod in row.pods:
            assert pod["status"]["phase"] in ("Running", "Succeeded") or reason_of(pod), pod["metadata"][
                "name"
            ]


def test_only_what_is_not_installed_or_no_object_was_left_out(outcome: Outcome) -> None:
    builtin = re.compile(
        r"^(v1|apps/v1|batch/v1|autoscaling/|policy/|rbac|scheduling\.k8s\.io|resource\.k8s\.io/v1 )"
    )
    assert not [row for row in outcome.rows if builtin.match(row.note)]


def test_pods_that_wait_have_our_code_in_condition_and_message(outcome: Outcome) -> None:
    assert outcome.waiting()
    for pod in outcome.waiting():
        code, scheduled = condition(pod, DECISION_CONDITION)["reason"], condition(pod, "PodScheduled")
        codes = re.findall(r"\[([A-Za-z, ]+)\]$", scheduled["message"])
        assert codes, scheduled["message"]
        assert codes[0].split(", ")[0] == code
        assert set(codes[0].split(", ")) <= set(CODES)
        assert scheduled["reason"] in ("Unschedulable", code)


def test_counts_of_nodes_are_what_an_oracle_finds(outcome: Outcome) -> None:
    nodes = outcome.cluster.all(NODES)
    judged = 0
    for pod in outcome.waiting():
        message = condition(pod, "PodScheduled")["message"]
        verdicts = [blocks(pod, node) for node in nodes]
        for count, code in told_counts(message):
            judged += 1
            assert count <= sum(code in verdict for verdict in verdicts), (
                pod["metadata"]["name"],
                code,
                message,
            )
    assert judged > 5


def test_a_pod_that_no_empty_node_would_take_is_not_blamed_on_others(outcome: Outcome) -> None:
    nodes = outcome.cluster.all(NODES)
    for pod in outcome.waiting():
        message = condition(pod, "PodScheduled")["message"]
        if message.startswith("0/") and all(blocks(pod, node) for node in nodes):
            assert "InsufficientResource" not in message


def test_claims_that_do_not_exist_are_named(outcome: Outcome) -> None:
    claims = outcome.cluster.all(PERSISTENT_VOLUME_CLAIMS)
    without = [pod for pod in outcome.waiting() if missing_claims(pod, claims)]
    assert without
    for pod in without:
        if "resourceClaims" not in pod["spec"]:
            assert condition(pod, DECISION_CONDITION)["reason"] == "ClaimNotFound"
            assert missing_claims(pod, claims)[0] in condition(pod, "PodScheduled")["message"]


def test_a_bound_pod_may_run_where_it_is(outcome: Outcome) -> None:
    nodes = {node["metadata"]["name"]: node for node in outcome.cluster.all(NODES)}
    bound = [pod for row in outcome.rows for pod in row.pods if pod["spec"].get("nodeName")]
    assert len(bound) > 20
    for pod in bound:
        assert blocks(pod, nodes[pod["spec"]["nodeName"]]) == set(), pod["metadata"]["name"]


WORDS = {
    r"(\d+) node\(s\) didn't match Pod's node affinity/selector": (
        "NodeSelectorMismatch",
        "NodeAffinityMismatch",
    ),
    r"(\d+) node\(s\) had untolerated taint": ("UntoleratedTaint",),
    r"(\d+) node\(s\) without [a-z]": ("ResourceNotOffered",),
    r"(\d+) node\(s\) too small for": ("ExceedsNodeCapacity",),
}


def told_counts(message: str) -> Iterator[tuple[int, str]]:
    """Numbers of nodes in a message, by the code that they are about, where it is one code."""
    for words, codes in WORDS.items():
        stands = [code for code in codes if re.search(rf"\b{code}\b", message)]
        if len(stands) == 1:
            for count in re.findall(words, message):
                yield int(count), stands[0]


def table(rows: list[Row]) -> str:
    """Rows of file, object, pods, outcome and reason."""
    cells = [("FILE", "OBJECT", "PODS", "OUTCOME", "REASON")]
    cells += [(row.file, row.what, str(len(row.pods)), row.outcome, row.reason) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    lines = [
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[4]])
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)
