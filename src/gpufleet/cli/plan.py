"""`gpufleet plan what-if`: what other nodes or more pods would change, on a copy of the fleet."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpufleet.cli.cluster import choose_cluster, client_for
from gpufleet.cli.options import cluster_options, everywhere, namespace_option, output_option
from gpufleet.cli.output import Cell, Column, print_data, printable, styled, table
from gpufleet.cli.recordings import (
    live_recording,
    no_cluster_beside,
    read_recording,
    schedulers_option,
    snapshot_option,
)
from gpufleet.fleet.errors import GpufleetError

if TYPE_CHECKING:
    from gpufleet.fleet.pods import Pod
    from gpufleet.kube.config import ClusterConfig
    from gpufleet.kube.manifests import Manifest
    from gpufleet.scheduling.recording import Recording
    from gpufleet.scheduling.whatif import Added, Answer, Changed, Outcome, Summary

MOST_NODES = 100_000

STYLES = {"placed": "green", "soon": "cyan", "evicted": "red", "gone": "red", "pending": "yellow"}

_ADD = re.compile(r"like=(?P<like>[^,=]+)(,count=(?P<count>[0-9]{1,6}))?")
_SHOWN = 20
"""How many different changes people are shown; programs get the change of every pod."""

_NAMED = 4
"""How many pods are named that change in one way."""

_COUNTS = (Column(""), Column("BEFORE", number=True), Column("AFTER", number=True))


@click.group("plan", short_help="What if: other nodes or a manifest on a copy of the fleet")
@everywhere
def command() -> None:
    """Ask what a change would do, without making it."""


@command.command("what-if", short_help="What other nodes or more pods would change")
@click.option(
    "--add-nodes",
    "added",
    multiple=True,
    metavar="like=NODE,count=N",
    help="Add N (default: 1) empty nodes like one that there is. May be repeated.",
)
@click.option(
    "--remove-node", "removed", multiple=True, metavar="NODE", help="Remove a node. May be repeated."
)
@click.option(
    "-f",
    "--filename",
    "files",
    multiple=True,
    metavar="MANIFEST",
    help="Run the pods of a YAML file, of any kind (- for stdin). May be repeated.",
)
@namespace_option
@schedulers_option("those that nobody else answers for, or those in the file of --snapshot")
@output_option("json", "yaml")
@snapshot_option
@cluster_options
@everywhere
def what_if_command(
    added: tuple[str, ...],
    removed: tuple[str, ...],
    files: tuple[str, ...],
    namespace: str | None,
    schedulers: str | None,
    output: str | None,
    saved: str | None,
    kubeconfig: str | None,
    context: str | None,
    name: str | None,
) -> None:
    """Say what a change would do to the pods of a cluster or of a saved snapshot: who would start, where, who
    would wait or have to end, and why. Nothing is changed.

    The change is made on a copy and decided by the scheduler's own code until nothing more starts. Evictions
    and cuts are shown and not carried out. Pods of a removed node that have an owner are made again and wait;
    the others are gone. Pods of a manifest come after those that wait already with the same priority.

    \b
    gpufleet plan what-if --add-nodes like=gpu-7,count=4
    gpufleet plan what-if --snapshot cluster.json.gz --remove-node gpu-7
    gpufleet plan what-if -f training.yaml -n team-a -o json
    """
    from gpufleet.scheduling.whatif import Scenario, what_if

    if not (added or removed or files):
        raise click.UsageError("give a change: --add-nodes, --remove-node or -f")
    nodes = tuple(map(_added, added))
    manifests = _manifests(files)
    if saved is not None:
        no_cluster_beside(saved, kubeconfig, context, name)
        recording, priorities = read_recording(saved, schedulers), dict[str, int]()
        where = namespace or "default"
    else:
        config = choose_cluster(kubeconfig, context, name)
        recording, priorities = asyncio.run(_live(config, schedulers, bool(files)))
        where = namespace or config.namespace
    pods = _pods(manifests, where, priorities, recording)
    answer = what_if(recording.snapshot, recording.policy, Scenario(nodes, removed, pods))
    if output:
        print_data(as_data(answer), output)
    else:
        sys.stdout.write(render(answer))


def _added(text: str) -> Added:
    from gpufleet.scheduling.whatif import Added

    match = _ADD.fullmatch(text)
    count = int(match["count"] or 1) if match else 0
    if match is None or not 1 <= count <= MOST_NODES:
        raise GpufleetError(
            reason="Usage",
            message=f"--add-nodes {text!r} is not like=NODE,count=N with N from 1 to {MOST_NODES}",
            hint="for example --add-nodes like=gpu-7,count=4; kubectl get nodes shows the names",
        )
    return Added(match["like"], count)


def _manifests(files: Sequence[str]) -> list[Manifest]:
    from gpufleet.kube.manifests import manifests_in, read_manifests

    found: list[Manifest] = []
    for file in files:
        found += manifests_in(sys.stdin.buffer.read(), "stdin") if file == "-" else read_manifests(Path(file))
    return found


def _pods(
    manifests: Sequence[Manifest], namespace: str, priorities: dict[str, int], recording: Recording
) -> tuple[Pod, ...]:
    """The pods of manifests, all for gpufleet to decide; remarks about them go to stderr."""
    import msgspec

    from gpufleet.fleet.pods import SCHEDULER_NAME
    from gpufleet.kube.manifest_pods import manifest_pods
    from gpufleet.scheduling.whatif import with_usual_tolerations

    found = manifest_pods(manifests, namespace=namespace, priorities=priorities)
    for remark in found.remarks:
        sys.stderr.write(f"{printable(remark)}\n")
    if manifests and not found.pods:
        raise GpufleetError(
            reason="NoWorkload",
            message="the manifests make no pods",
            hint="name a file with a Pod, a Deployment, a Job or another kind that makes pods",
        )
    names = recording.policy.schedulers
    ours = SCHEDULER_NAME if SCHEDULER_NAME in names else min(names, default="")
    pods = (
        pod if pod.scheduler in names else msgspec.structs.replace(pod, scheduler=ours) for pod in found.pods
    )
    admitted, tolerated = with_usual_tolerations(tuple(pods), recording.snapshot)
    for resource in tolerated:
        sys.stderr.write(f"the taint {resource} is tolerated, as all pods there do that ask for {resource}\n")
    return admitted


async def _live(
    config: ClusterConfig, schedulers: str | None, classes: bool
) -> tuple[Recording, dict[str, int]]:
    """A live cluster, and the values of its priority classes where somebody wants them."""
    from gpufleet.kube.kinds import PRIORITY_CLASSES

    recording = await live_recording(config, "plan", schedulers)
    if not classes:
        return recording, {}
    async with client_for(config, "plan") as client:
        listing = await client.list(PRIORITY_CLASSES)
    return recording, {item["metadata"]["name"]: item.get("value", 0) for item in listing.items}


def as_data(answer: Answer) -> dict[str, Any]:
    """The answer for scripts, every field present."""
    import msgspec

    from gpufleet.fleet.plan_text import reason_data

    def outcome(one: Outcome | None) -> dict[str, Any] | None:
        if one is None:
            return None
        data = {"state": one.state, "node": one.node, "beneficiary": one.beneficiary}
        return {**data, "reasons": [reason_data(reason) for reason in one.reasons]}

    return {
        "before": msgspec.to_builtins(answer.before),
        "after": msgspec.to_builtins(answer.after),
        "changed": [
            {"pod": one.pod, "before": outcome(one.before), "after": outcome(one.after)}
            for one in answer.changed
        ],
    }


def render(answer: Answer) -> str:
    """The answer for people."""
    parts = [table(_COUNTS, _counts(answer.before, answer.after))]
    if not answer.changed:
        return f"{parts[0]}\nNo pod would be affected.\n"
    parts.append(f"\n{styled('What would be different', 'bold')}\n")
    alike: dict[str, list[Changed]] = {}
    for one in answer.changed:
        alike.setdefault(_way(one), []).append(one)
    for changes in islice(alike.values(), _SHOWN):
        parts += _lines(changes)
    if len(alike) > _SHOWN:
        parts.append(f"and {len(alike) - _SHOWN} other changes, all of them with -o json\n")
    return "".join(parts)


def _way(one: Changed) -> str:
    """How a pod changes; why something was so before is not what was asked."""
    return "".join((_told(one.before), " -> ", _told(one.after), *_reasons(one.after)))


def _lines(changes: Sequence[Changed]) -> Iterator[str]:
    """What becomes of pods that change in one way, and why."""
    pods, after = [one.pod for one in changes], changes[0].after
    shown = ", ".join(pods[:_NAMED]) + (f" and {len(pods) - _NAMED} more" if len(pods) > _NAMED else "")
    now = styled(printable(_told(after)), STYLES.get(after.state, "") if after else "")
    yield f"{printable(shown)}: {printable(_told(changes[0].before))} -> {now}\n"
    yield from _reasons(after)


def _reasons(outcome: Outcome | None) -> Iterator[str]:
    reasons = outcome.reasons if outcome is not None else ()
    width = max((len(reason.code) for reason in reasons), default=0)
    for reason in reasons:
        yield f"  {reason.code:{width}}  {printable(reason.message)}\n"


def _counts(before: Summary, after: Summary) -> Iterator[list[Cell]]:
    yield [Cell("nodes"), Cell(str(before.nodes)), Cell(str(after.nodes))]
    for state, count in before.pods.items():
        if count or after.pods[state]:
            yield [Cell(f"pods {state}"), Cell(str(count)), Cell(str(after.pods[state]))]
    uses = [
        {(use.pool, use.product, use.resource): f"{use.used} of {use.total}" for use in side.gpus}
        for side in (before, after)
    ]
    for key in sorted({**uses[0], **uses[1]}):
        told = " ".join(part for part in (key[2], key[1], f"(pool {key[0]})" if key[0] else "") if part)
        yield [Cell(f"{told} used"), *(Cell(side.get(key, "-")) for side in uses)]
    for code in sorted({**before.reasons, **after.reasons}):
        counts = (side.reasons.get(code, 0) for side in (before, after))
        yield [Cell(f"waiting: {code}"), *(Cell(str(count)) for count in counts)]


def _told(outcome: Outcome | None) -> str:
    if outcome is None:
        return "not there"
    if outcome.state == "evicted":
        return f"evicted from {outcome.node} for {outcome.beneficiary}"
    return f"{outcome.state} on {outcome.node}" if outcome.node else outcome.state
