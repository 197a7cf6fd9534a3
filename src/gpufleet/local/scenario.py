"""Scenarios: a script of steps that is played on a fleet, and what the fleet looked like after each.

A scenario is a folder with manifests and a `scenario.yaml`: each step applies manifests or scales a
Deployment, then waits until pods are as expected, then prints what ran where and why. The reasons are those
that the scheduler wrote (events and conditions), never the scenario's own.
"""

from __future__ import annotations

import asyncio
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.pods import gpus_requested
from gpufleet.kube import kinds, objects
from gpufleet.kube.client import Client
from gpufleet.kube.manifests import apply_manifests, read_manifests
from gpufleet.kube.times import parse_time
from gpufleet.kube.values import DECISION_CONDITION, pod_value
from gpufleet.local.fleetfile import Fleet, load_fleet
from gpufleet.local.yamlfile import YamlDocument

FIELD_MANAGER = "gpufleet-scenario"
STEP_SECONDS = 60.0
POLL_SECONDS = 0.2
_WIDTH = 100


class Scale(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Set the replicas of a Deployment."""

    deployment: str
    replicas: int


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the pods that a label selector names should be; what is not given is not checked.

    `nodes` is the number of different nodes of the running ones, `reason` the code that pending ones show.
    """

    pods: str
    running: int | None = None
    pending: int | None = None
    nodes: int | None = None
    reason: str | None = None


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step: change something, then wait for the expectations."""

    title: str
    apply: tuple[str, ...] = ()
    scale: Scale | None = None
    expect: tuple[Expectation, ...] = ()


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A script. All pods are looked for in `namespace`; `fleet` is the preset whose machines it needs, if
    any.
    """

    title: str
    namespace: str
    steps: tuple[Step, ...]
    fleet: str | None = None

    def fits(self, fleet: Fleet) -> bool:
        """Whether it can come out as expected on a fleet."""
        return self.fleet is None or load_fleet(self.fleet)[0].groups == fleet.groups


class Eviction(msgspec.Struct, frozen=True):
    """An eviction that the scheduler announced in an Event."""

    pod: str
    note: str
    time: float


def load(folder: Path) -> Scenario:
    """Read `scenario.yaml` of a folder and what it names; a GpufleetError tells the place of a mistake."""
    path = folder / "scenario.yaml"
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise GpufleetError(
            reason="InvalidScenario",
            message=f"{path}: byte {error.start} is not UTF-8",
            hint="save the file as UTF-8 text",
        ) from None
    except OSError as error:
        raise GpufleetError(
            reason="ScenarioNotFound",
            message=f"cannot read {path}: {error.strerror}",
            hint="name a folder that holds a scenario.yaml, for example examples/primer",
        ) from error
    hint = "examples/primer/scenario.yaml shows every field"
    scenario = YamlDocument(text, str(path)).decode(Scenario, "InvalidScenario", hint)
    for name in (name for step in scenario.steps for name in step.apply):
        if not (folder / name).is_file():
            raise GpufleetError(
                reason="InvalidScenario",
                message=f"{path} applies {name}, which is not there",
                hint=f"correct the name, or put the file into {folder}",
            )
        read_manifests(folder / name)
    if scenario.fleet is not None:
        load_fleet(scenario.fleet)
    return scenario


async def play(client: Client, folder: Path, scenario: Scenario, say: Callable[[str], None]) -> bool:
    """Play the scenario of a folder and say what happened; False when a step did not come out as expected."""
    say(f"{scenario.title}: {len(scenario.steps)} steps")
    good = True
    for number, step in enumerate(scenario.steps, 1):
        started = time.time()
        say(f"\n{number}. {step.title}")
        await _act(client, scenario, step, folder)
        reached = await _wait(client, scenario, step)
        good = good and reached
        for line in await _outcome(client, scenario, step, started):
            say(f"   {line}")
        if not reached:
            say(f"   ! not as expected within {STEP_SECONDS:.0f} s: {_wanted(step)}")
    return good


async def first_waiting(client: Client, scenario: Scenario) -> str:
    """The name of a pod of the scenario that waits for a node, or nothing."""
    pods = (await client.list(kinds.PODS, scenario.namespace, type=objects.Pod)).items
    waiting = (pod.metadata.name for pod in pods if pod.status.phase == "Pending" and not pod.spec.node_name)
    return min(waiting, default="")


async def _act(client: Client, scenario: Scenario, step: Step, folder: Path) -> None:
    for name in step.apply:
        manifests = read_manifests(folder / name)
        unserved = await apply_manifests(
            client, manifests, field_manager=FIELD_MANAGER, namespace=scenario.namespace
        )
        if unserved:
            what = ", ".join(f"{m['apiVersion']} {m['kind']}" for m in unserved)
            raise GpufleetError(
                reason="KindNotServed",
                message=f"{name}: the cluster does not serve {what}",
                hint=f"install the custom resource definitions, or take it out of {folder / name}",
            )
    if step.scale is not None:
        patch = {"spec": {"replicas": step.scale.replicas}}
        await client.patch(
            kinds.DEPLOYMENTS, step.scale.deployment, patch, scenario.namespace, subresource="scale"
        )


async def _wait(client: Client, scenario: Scenario, step: Step) -> bool:
    until = time.monotonic() + STEP_SECONDS
    while True:
        met = [await _met(client, scenario, expectation) for expectation in step.expect]
        if all(met):
            return True
        if time.monotonic() > until:
            return False
        await asyncio.sleep(POLL_SECONDS)


async def _met(client: Client, scenario: Scenario, expectation: Expectation) -> bool:
    pods = await _pods(client, scenario, expectation)
    running = [pod for pod in pods if pod.status.phase == "Running"]
    pending = [pod for pod in pods if not pod.spec.node_name]
    checks = (
        (expectation.running, len(running)),
        (expectation.pending, len(pending)),
        (expectation.nodes, len({pod.spec.node_name for pod in running})),
    )
    if any(wanted is not None and wanted != actual for wanted, actual in checks):
        return False
    # Every waiting pod must have been told why, also where the script names no code.
    codes = {_decision(pod).reason for pod in pending}
    return codes <= {expectation.reason} if expectation.reason else "" not in codes


async def _pods(client: Client, scenario: Scenario, expectation: Expectation) -> list[objects.Pod]:
    """The pods of an expectation that are not ending, in order of their names."""
    listing = await client.list(kinds.PODS, scenario.namespace, labels=expectation.pods, type=objects.Pod)
    alive = [pod for pod in listing.items if pod.metadata.deletion_timestamp is None]
    return sorted(alive, key=lambda pod: (pod.spec.node_name == "", pod.metadata.name))


def _decision(pod: objects.Pod) -> objects.Condition:
    found = (c for c in pod.status.conditions if c.type == DECISION_CONDITION)
    return next(found, objects.Condition(type=DECISION_CONDITION))


async def _outcome(client: Client, scenario: Scenario, step: Step, started: float) -> list[str]:
    lines: list[str] = []
    for eviction in await _evictions(client, scenario, started):
        lines.append(f"evicted  {eviction.pod:22} {eviction.note.removeprefix('evicted ')}")
    for expectation in step.expect:
        pods = await _pods(client, scenario, expectation)
        explained: set[str] = set()
        for pod in pods:
            where = pod.spec.node_name or "-"
            state = pod.status.phase.lower()
            gpus = gpus_requested(pod_value(pod).shape)
            lines.append(f"{state:8} {pod.metadata.name:22} {gpus:>2} GPU  {where}")
            why = "" if pod.spec.node_name else _decision(pod).message
            if why not in explained:
                explained.add(why)
                lines += textwrap.wrap(why, _WIDTH, initial_indent=" " * 9, subsequent_indent=" " * 9)
    return lines


async def _evictions(client: Client, scenario: Scenario, since: float) -> list[Eviction]:
    body = await client.request("GET", kinds.EVENTS.path(scenario.namespace))
    events = msgspec.json.decode(body)["items"]
    found = [
        Eviction(event["regarding"]["name"], event.get("note", ""), parse_time(event.get("eventTime")))
        for event in events
        if event.get("reason") == "Preempted"
    ]
    return [eviction for eviction in found if eviction.time >= since]


def _wanted(step: Step) -> str:
    parts = []
    for expectation in step.expect:
        fields = {f: getattr(expectation, f) for f in ("running", "pending", "nodes", "reason")}
        words = ", ".join(f"{value} {name}" for name, value in fields.items() if value is not None)
        parts.append(f"{expectation.pods}: {words}")
    return "; ".join(parts)
