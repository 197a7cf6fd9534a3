"""`gpufleet snapshot`: a cluster as a file."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import click

from gpufleet.cli.cluster import choose_cluster
from gpufleet.cli.options import cluster_options, everywhere
from gpufleet.cli.recordings import live_recording, schedulers_option, write_recording

if TYPE_CHECKING:
    from gpufleet.scheduling.recording import Recording


@click.group("snapshot", short_help="A cluster as a file, to decide and explain elsewhere")
@everywhere
def command() -> None:
    """A cluster as a file: decide, explain and ask what-if questions without it."""


@command.command("save", short_help="Save what the scheduler sees of a cluster")
@click.argument("file")
@click.option(
    "--redact",
    is_flag=True,
    help="Replace names of pods, namespaces, nodes and owners, uids and label values by pseudonyms.",
)
@schedulers_option("gpufleet, and every known one that nobody runs")
@cluster_options
@everywhere
def save_command(
    file: str,
    redact: bool,
    schedulers: str | None,
    kubeconfig: str | None,
    context: str | None,
    name: str | None,
) -> None:
    """Save what the scheduler sees of a cluster into FILE (compressed if it ends with .gz; - for stdout).

    It holds nodes, devices, pods with their requests and constraints, volumes and budgets; no images, no
    commands, no environment, no secrets. gpufleet need not run on the cluster, and nothing is changed. With
    --redact the file can be given to others: it decides the same. Resources, GPU products, MIG profiles, keys
    of labels and taints, names of storage drivers and of schedulers stay.

    \b
    gpufleet snapshot save cluster.json.gz
    gpufleet decide cluster.json.gz
    gpufleet why POD --snapshot cluster.json.gz
    gpufleet plan what-if --snapshot cluster.json.gz --remove-node NODE
    """
    config = choose_cluster(kubeconfig, context, name)
    recording = asyncio.run(live_recording(config, "snapshot", schedulers))
    if redact:
        recording = _redacted(recording)
    size = write_recording(recording, file)
    if file != "-":
        sys.stderr.write(f"{file}: {_summary(recording)}, {size} bytes\n")


def _redacted(recording: Recording) -> Recording:
    from gpufleet.scheduling.redaction import Redaction

    return Redaction(recording).recording


def _summary(recording: Recording) -> str:
    snapshot = recording.snapshot
    bound = sum(len(pods) for pods in snapshot.pods_by_node.values())
    return f"{len(snapshot.nodes)} nodes, {bound} pods on nodes, {len(snapshot.unbound)} pending pods"
